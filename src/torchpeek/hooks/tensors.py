"""Record or replace the gradients of plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType

from torch import Tensor

from torchpeek.errors import GradUnavailable, InputError
from torchpeek.hooks.gradient_tap import TensorHook, hooked
from torchpeek.hooks.recording.storage import GradientSlot, SlotHook, StoredTensor
from torchpeek.interrupts import uninterrupted


@contextmanager
def record_gradients(**tensors: Tensor) -> Iterator[Mapping[str, Tensor | None]]:
    """Record the gradients that flow back to these tensors inside the block.

    `.grad` is not touched, and no tensor retains its gradient. A second backward pass replaces the gradients of the
    first.

    Args:
        **tensors: Tensors that require gradients, leaf or not, each under a name of your choice.

    Yields:
        A mapping from each name to the gradient, of the shape of the tensor; None where no gradient has arrived.

    Raises:
        InputError: When an argument is not a tensor.
        GradUnavailable: When a tensor does not require gradients.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> with tp.record_gradients(x=x) as gradients:
        ...     (3 * x).sum().backward()
        >>> gradients["x"]
        tensor([3., 3.])
    """
    slots = {name: GradientSlot(partial(StoredTensor, copy=False)) for name in tensors}
    handles: list[TensorHook] = []
    gradients = _GradientMapping(slots)
    try:
        with uninterrupted():
            for name, tensor in tensors.items():
                _check_differentiable(tensor, name)
                handles.append(hooked(tensor, SlotHook(slots[name])))
        yield gradients
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()


@contextmanager
def edit_gradient(tensor: Tensor, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the gradient of a tensor inside the block.

    Args:
        tensor: A tensor that requires gradients, leaf or not.
        function: Called with a copy of the gradient, into which it may write. What it returns, of the same shape,
            flows on instead of the gradient.

    Yields:
        None.

    Raises:
        InputError: When `tensor` is not a tensor.
        GradUnavailable: When the tensor does not require gradients.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> with tp.edit_gradient(x, lambda gradient: 10 * gradient):
        ...     (3 * x).sum().backward()
        >>> x.grad
        tensor([30., 30.])
    """
    _check_differentiable(tensor, "tensor")
    handle = hooked(tensor, lambda gradient: function(gradient.clone()))
    try:
        yield
    finally:
        handle.remove()


class _GradientMapping(Mapping[str, "Tensor | None"]):
    def __init__(self, slots: Mapping[str, GradientSlot]) -> None:
        self._slots = MappingProxyType(dict(slots))

    def __getitem__(self, name: str) -> Tensor | None:
        gradient: Tensor | None = self._slots[name].read()
        return gradient

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)


def _check_differentiable(tensor: object, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}; allowed: a tensor, because only tensors have gradients")
    if not tensor.requires_grad:
        raise GradUnavailable(
            f"{name} needs no gradient, so none will arrive: it was computed under torch.no_grad(), or from tensors "
            "that need none. Call requires_grad_() on it, or on what it was computed from"
        )

"""Gradients of plain tensors: seen and changed as they flow back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from torchpeek.errors import GradUnavailable, InputError
from torchpeek.hooks.gradient_tap import hooked
from torchpeek.hooks.recording.storage import GradientSlot, StoredTensor, slot_hook
from torchpeek.interrupts import uninterrupted


@contextmanager
def record_gradients(**tensors: Tensor) -> Iterator[Mapping[str, Tensor | None]]:
    """The gradients that flow back to these tensors, leaf or not, inside the block: a mapping from name to gradient.

    None where none has arrived. `.grad` is not touched, and no tensor keeps more than it would. A second backward pass
    replaces the first one's. Raises GradUnavailable for a tensor that needs no gradient.
    """
    slots = {name: GradientSlot(partial(StoredTensor, copy=False)) for name in tensors}
    handles: list[RemovableHandle] = []
    gradients = _GradientMapping(slots)
    try:
        with uninterrupted():
            for name, tensor in tensors.items():
                _check_differentiable(tensor, name)
                handles.append(hooked(tensor, slot_hook(slots[name])))
        yield gradients
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()


@contextmanager
def edit_gradient(tensor: Tensor, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, what `function` returns flows on instead of the gradient of `tensor`, leaf or not.

    The function is given a copy, so it may write into it.
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
        raise InputError(f"{name} is a {type(tensor).__name__}; gradients are those of tensors")
    if not tensor.requires_grad:
        raise GradUnavailable(
            f"{name} needs no gradient, so none will arrive: it was made under torch.no_grad(), or of tensors that "
            "need none. Next: requires_grad_()"
        )

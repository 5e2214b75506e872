"""Gradients of plain tensors: seen and changed as they flow back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from torchpeek.errors import GradUnavailable, InputError
from torchpeek.hooks.interrupts import uninterrupted
from torchpeek.hooks.kept import Kept, Slot

GradientHook: TypeAlias = Callable[[Tensor], "Tensor | None"]
"""Called with a gradient; what it returns, if not None, flows on instead."""


def arrival(slot: Slot) -> GradientHook:
    """A hook that has the gradient arrive in `slot`."""
    reference = weakref.ref(slot)

    def arrived(gradient: Tensor) -> None:
        target = reference()
        if target is not None:
            target.arrive(gradient)

    return arrived


def hooked(tensor: Tensor, hook: GradientHook) -> RemovableHandle:
    """Have `hook` called with the gradient of `tensor` as it is now, also if a later operation writes into it."""
    handle: RemovableHandle = tensor.register_hook(hook)  # type: ignore[no-untyped-call]  # torch has no types for it
    return handle


@dataclass(frozen=True)
class Alone:
    """One use of a tensor, told apart from its other uses: `own` is to be used in its place."""

    own: Tensor
    handles: list[RemovableHandle]
    edge: GradientEdge  # of this use
    edge_of_all: GradientEdge  # of all uses of what it is a view of
    written_into: Callable[[], bool]  # then the first edge is no longer in the graph, and the second one counts


def hooked_alone(tensor: Tensor, hook: GradientHook) -> Alone:
    """Have `hook` called with what flows back to this use of `tensor` alone.

    That is to a view of it, which is used in its place. An operation that writes into a view takes all views out of the
    graph, and puts itself behind their base. Then the hook is called with the gradient of that, of all its uses.
    """
    own = tensor.view_as(tensor)
    base = _base(tensor)
    # An alias: it shares the count of what is written in, and is not in the graph, which would hold itself alive.
    alias, version = own.detach(), own._version
    came = False

    def written_into() -> bool:
        return alias._version != version

    def through_own(gradient: Tensor) -> Tensor | None:
        nonlocal came
        came = True
        return hook(gradient)

    def through_all(gradient: Tensor) -> Tensor | None:
        nonlocal came
        if came or not written_into():  # this is what others add to it
            came = False
            return None
        changed = hook(gradient.view(tensor_shape))
        return None if changed is None else changed.view(gradient.shape)

    tensor_shape = tensor.shape
    handles = [hooked(own, through_own), hooked(base, through_all)]
    return Alone(own, handles, get_gradient_edge(own), get_gradient_edge(base), written_into)


def _base(tensor: Tensor) -> Tensor:
    """What this is a view of, if it shows all of that in the same order."""
    base = tensor._base
    if base is None or not base.requires_grad or base.numel() != tensor.numel():
        return tensor
    alike = base.shape == tensor.shape and base.stride() == tensor.stride()
    return base if alike or (base.is_contiguous() and tensor.is_contiguous()) else tensor


@contextmanager
def record_gradients(**tensors: Tensor) -> Iterator[Mapping[str, Tensor | None]]:
    """The gradients that flow back to these tensors, leaf or not, inside the block: a mapping from name to gradient.

    None where none has arrived. `.grad` is not touched, and no tensor keeps more than it would. A second backward pass
    replaces the first one's. Raises GradUnavailable for a tensor that needs no gradient.
    """
    slots = {name: Slot(partial(Kept, copy=False)) for name in tensors}
    handles: list[RemovableHandle] = []
    view = _Gradients(slots)
    try:
        with uninterrupted():
            for name, tensor in tensors.items():
                _check(tensor, name)
                handles.append(hooked(tensor, arrival(slots[name])))
        yield view
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()


@contextmanager
def edit_gradient(tensor: Tensor, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, what `function` returns flows on instead of the gradient of `tensor`, leaf or not.

    The function is given a copy, so it may write into it.
    """
    _check(tensor, "tensor")
    handle = hooked(tensor, lambda gradient: function(gradient.clone()))
    try:
        yield
    finally:
        handle.remove()


class _Gradients(Mapping[str, "Tensor | None"]):
    def __init__(self, slots: Mapping[str, Slot]) -> None:
        self._slots = MappingProxyType(dict(slots))

    def __getitem__(self, name: str) -> Tensor | None:
        gradient: Tensor | None = self._slots[name].read()
        return gradient

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)


def _check(tensor: object, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}; gradients are those of tensors")
    if not tensor.requires_grad:
        raise GradUnavailable(
            f"{name} needs no gradient, so none will arrive: it was made under torch.no_grad(), or of tensors that "
            "need none. Next: requires_grad_()"
        )

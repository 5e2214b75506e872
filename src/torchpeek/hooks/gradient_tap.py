"""Gradients of one use of a tensor: told apart from its other uses, and as they were before it is written into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

GradientHook: TypeAlias = Callable[[Tensor], "Tensor | None"]
"""Called with a gradient; what it returns, if not None, flows on instead."""


def hooked(tensor: Tensor, hook: GradientHook) -> RemovableHandle:
    """Have `hook` called with the gradient of `tensor` as it is now, also if a later operation writes into it."""
    handle: RemovableHandle = tensor.register_hook(hook)  # type: ignore[no-untyped-call]  # torch has no types for it
    return handle


class GradientTap:
    """One use of a tensor, told apart from its other uses. Made by `used_alone`.

    What is used is a view. An operation that writes into a view takes all views out of the graph, and puts itself
    behind their base; then it is the gradient of the base, of all its uses, that the hook is called with. Gradients
    meet the uses as they flow back: the later one first.
    """

    __slots__ = ("_alias", "_base_edge", "_came", "_chain", "_handles", "_hook", "_place", "_version", "_view_edge")

    def __init__(self, tensor: Tensor, hook: GradientHook) -> None:
        base = _base(tensor)
        self._hook = hook
        self._came = False
        self._place = None if base is tensor else _place(tensor, base)
        # Not the view itself: the graph holds this, and would hold itself alive. An alias shares the count of writes.
        self._alias: Tensor | None = tensor.detach()
        self._version = tensor._version
        self._base_edge = get_gradient_edge(base)
        self._view_edge: GradientEdge | None = None
        self._handles: list[RemovableHandle] = []
        # Uses of one tensor share a hook on its base, which asks the later ones first.
        self._chain: _Chain | None = getattr(tensor, _CHAIN, None)
        if self._chain is not None:
            self._chain.uses.insert(0, self)

    @property
    def edges(self) -> list[GradientEdge]:
        """Where in the graph its gradient is to be had: at that of the view, or else at that of the base."""
        assert self._view_edge is not None
        return [self._view_edge, self._base_edge] if self.written_into() else [self._view_edge]

    def gradient_of(self, found: list[Tensor | None]) -> Tensor | None:
        """Its gradient, from those at the edges."""
        if found[0] is not None or len(found) == 1 or found[1] is None:
            return found[0]
        return found[1] if self._place is None else self._place.part_of(found[1])[1]

    def written_into(self) -> bool:
        """Whether something has been written into what the tensor shows."""
        return self._alias is not None and self._alias._version != self._version

    def watch_base(self, tensor: Tensor) -> None:
        """Be there if something is written into the view, which the tensor was made for, or has been already."""
        if self._chain is None:
            self._chain = _Chain(None if self.written_into() else _base(tensor), self._base_edge)
            self._chain.uses.append(self)

    def settle(self, tensor: Tensor) -> None:
        """Nobody can write into the view from now on; what is written into its base by other ways does not matter."""
        if self.written_into():
            self.watch_base(tensor)
        else:
            self._alias = None

    def remove(self) -> None:
        """No more gradients."""
        for handle in self._handles:
            handle.remove()
        if self._chain is not None:
            self._chain.drop(self)

    def through_base(self, gradient: Tensor) -> Tensor | None:
        """Called with the gradient of the base."""
        came, self._came = self._came, False
        if came or not self.written_into():  # it has been seen; this is what others add to it
            return None
        if self._place is None:
            return self._hook(gradient)
        laid_out, part = self._place.part_of(gradient)
        changed = self._hook(part)
        if changed is None:
            return None
        part.copy_(changed)
        return laid_out

    def _through_view(self, gradient: Tensor) -> Tensor | None:
        self._came = True
        return self._hook(gradient)

    def _view_of(self, tensor: Tensor) -> Tensor:
        own = tensor.view_as(tensor)
        self._view_edge = get_gradient_edge(own)
        self._handles.append(hooked(own, self._through_view))
        if self._chain is not None:
            setattr(own, _CHAIN, self._chain)
        return own


def tap_gradient(tensor: Tensor, hook: GradientHook, *, passed_on: bool) -> tuple[GradientTap, Tensor]:
    """Have `hook` called with what flows back to this use of `tensor` alone; the view is to be used in its place.

    `passed_on` says that the view goes on to where it may be written into; else `settle` says when that is over.
    """
    use = GradientTap(tensor, hook)
    if passed_on:
        use.watch_base(tensor)
    return use, use._view_of(tensor)


class _Chain:
    """The uses of one base, and one hook for all of them: on the base, or where it was once that is written into."""

    __slots__ = ("_handle", "uses")

    def __init__(self, base: Tensor | None, edge: GradientEdge) -> None:
        self.uses: list[GradientTap] = []
        uses, number = self.uses, edge.output_nr

        def through(gradient: Tensor) -> Tensor | None:
            now = gradient
            for use in tuple(uses):
                changed = use.through_base(now)
                now = now if changed is None else changed
            return None if now is gradient else now

        def through_node(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
            gradient = gradients[number]
            changed = None if gradient is None else through(gradient)
            return None if changed is None else (*gradients[:number], changed, *gradients[number + 1 :])

        if base is None:
            self._handle = edge.node.register_prehook(through_node)
        else:
            self._handle = hooked(base, through)
            # Before those that are on the base already: what uses it comes later, and so its gradient earlier.
            earlier: Any = base._backward_hooks
            for key in [key for key in earlier if key != self._handle.id]:
                earlier[key] = earlier.pop(key)

    def drop(self, use: GradientTap) -> None:
        if use in self.uses:
            self.uses.remove(use)
        if not self.uses:
            self._handle.remove()


_CHAIN = "_torchpeek_uses"


def _base(tensor: Tensor) -> Tensor:
    """What it is a view of, or itself."""
    return tensor._base if tensor._base is not None and tensor._base.requires_grad else tensor


class _Place(NamedTuple):
    """Where a view is in its base."""

    base: tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides
    view: tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides and offset

    def part_of(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of the base's gradient, laid out as the base was, and the view's part of it, in the same memory."""
        laid_out = torch.empty_strided(*self.base, dtype=gradient.dtype, device=gradient.device).copy_(gradient)
        return laid_out, laid_out.as_strided(*self.view)


def _place(tensor: Tensor, base: Tensor) -> _Place:
    offset = int(tensor.storage_offset()) - int(base.storage_offset())
    return _Place((base.shape, base.stride()), (tensor.shape, tensor.stride(), offset))

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

    __slots__ = (
        "_alias",
        "_base_edge",
        "_base_hook",
        "_geometry",
        "_handles",
        "_hook",
        "_version",
        "_view_edge",
        "_view_gradient_arrived",
    )

    def __init__(self, tensor: Tensor, hook: GradientHook) -> None:
        base = _base(tensor)
        self._hook = hook
        self._view_gradient_arrived = False
        self._geometry = None if base is tensor else _view_geometry(tensor, base)
        # Not the view itself: the graph holds this, and would hold itself alive. An alias shares the count of writes.
        self._alias: Tensor | None = tensor.detach()
        self._version = tensor._version
        self._base_edge = get_gradient_edge(base)
        self._view_edge: GradientEdge | None = None
        self._handles: list[RemovableHandle] = []
        # Uses of one tensor share a hook on its base, which asks the later ones first.
        self._base_hook: _BaseHook | None = getattr(tensor, _BASE_HOOK, None)
        if self._base_hook is not None:
            self._base_hook.taps.insert(0, self)

    @property
    def edges(self) -> list[GradientEdge]:
        """Where in the graph its gradient is to be had: at that of the view, or else at that of the base."""
        assert self._view_edge is not None
        return [self._view_edge, self._base_edge] if self.is_overwritten() else [self._view_edge]

    def gradient_of(self, gradients: list[Tensor | None]) -> Tensor | None:
        """Its gradient, from those at the edges."""
        if gradients[0] is not None or len(gradients) == 1 or gradients[1] is None:
            return gradients[0]
        return gradients[1] if self._geometry is None else self._geometry.part_of(gradients[1])[1]

    def is_overwritten(self) -> bool:
        """Whether something has been written into what the tensor shows."""
        return self._alias is not None and self._alias._version != self._version

    def hook_base(self, tensor: Tensor) -> None:
        """Be there if something is written into the view, which the tensor was made for, or has been already."""
        if self._base_hook is None:
            self._base_hook = _BaseHook(None if self.is_overwritten() else _base(tensor), self._base_edge)
            self._base_hook.taps.append(self)

    def end_writes(self, tensor: Tensor) -> None:
        """Nobody can write into the view from now on; what is written into its base by other ways does not matter."""
        if self.is_overwritten():
            self.hook_base(tensor)
        else:
            self._alias = None

    def remove(self) -> None:
        """No more gradients."""
        for handle in self._handles:
            handle.remove()
        if self._base_hook is not None:
            self._base_hook.drop(self)

    def on_base_gradient(self, gradient: Tensor) -> Tensor | None:
        """Called with the gradient of the base."""
        came, self._view_gradient_arrived = self._view_gradient_arrived, False
        if came or not self.is_overwritten():  # it has been seen; this is what others add to it
            return None
        if self._geometry is None:
            return self._hook(gradient)
        base_gradient, part = self._geometry.part_of(gradient)
        changed = self._hook(part)
        if changed is None:
            return None
        part.copy_(changed)
        return base_gradient

    def _on_view_gradient(self, gradient: Tensor) -> Tensor | None:
        self._view_gradient_arrived = True
        return self._hook(gradient)

    def _make_view(self, tensor: Tensor) -> Tensor:
        view = tensor.view_as(tensor)
        self._view_edge = get_gradient_edge(view)
        self._handles.append(hooked(view, self._on_view_gradient))
        if self._base_hook is not None:
            setattr(view, _BASE_HOOK, self._base_hook)
        return view


def tap_gradient(tensor: Tensor, hook: GradientHook, *, hook_base: bool) -> tuple[GradientTap, Tensor]:
    """Have `hook` called with what flows back to this use of `tensor` alone; the view is to be used in its place.

    `hook_base` says that the view goes on to where it may be written into; else `end_writes` says when that is over.
    """
    tap = GradientTap(tensor, hook)
    if hook_base:
        tap.hook_base(tensor)
    return tap, tap._make_view(tensor)


class _BaseHook:
    """The uses of one base, and one hook for all of them: on the base, or where it was once that is written into."""

    __slots__ = ("_handle", "taps")

    def __init__(self, base: Tensor | None, edge: GradientEdge) -> None:
        self.taps: list[GradientTap] = []
        taps, number = self.taps, edge.output_nr

        def on_gradient(gradient: Tensor) -> Tensor | None:
            current = gradient
            for tap in tuple(taps):
                changed = tap.on_base_gradient(current)
                current = current if changed is None else changed
            return None if current is gradient else current

        def on_node_gradients(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
            gradient = gradients[number]
            changed = None if gradient is None else on_gradient(gradient)
            return None if changed is None else (*gradients[:number], changed, *gradients[number + 1 :])

        if base is None:
            self._handle = edge.node.register_prehook(on_node_gradients)
        else:
            self._handle = hooked(base, on_gradient)
            # Before those that are on the base already: what uses it comes later, and so its gradient earlier.
            earlier: Any = base._backward_hooks
            for key in [key for key in earlier if key != self._handle.id]:
                earlier[key] = earlier.pop(key)

    def drop(self, tap: GradientTap) -> None:
        if tap in self.taps:
            self.taps.remove(tap)
        if not self.taps:
            self._handle.remove()


_BASE_HOOK = "_torchpeek_base_hook"


def _base(tensor: Tensor) -> Tensor:
    """What it is a view of, or itself."""
    return tensor._base if tensor._base is not None and tensor._base.requires_grad else tensor


class _ViewGeometry(NamedTuple):
    """Where a view is in its base."""

    base: tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides
    view: tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides and offset

    def part_of(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of the base's gradient, laid out as the base was, and the view's part of it, in the same memory."""
        base_gradient = torch.empty_strided(*self.base, dtype=gradient.dtype, device=gradient.device).copy_(gradient)
        return base_gradient, base_gradient.as_strided(*self.view)


def _view_geometry(tensor: Tensor, base: Tensor) -> _ViewGeometry:
    offset = int(tensor.storage_offset()) - int(base.storage_offset())
    return _ViewGeometry((base.shape, base.stride()), (tensor.shape, tensor.stride(), offset))

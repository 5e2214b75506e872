"""Read or replace the gradient of one use of a tensor, apart from its other uses and in spite of in-place writes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

GradientHook: TypeAlias = Callable[[Any], "Tensor | None"]
"""Called with a gradient, or with None by an operation without a derivative.

If it returns a tensor, that tensor flows on instead of the gradient.
"""


class FirstHook:
    """The first hook of a tensor. It does what torch's handle does, in a quarter of the time."""

    __slots__ = ("_hooks",)

    def __init__(self, hooks: dict[Any, GradientHook], hook: GradientHook) -> None:
        self._hooks = hooks
        hooks[self] = hook

    def remove(self) -> None:
        """Take the hook off."""
        self._hooks.pop(self, None)


TensorHook: TypeAlias = FirstHook | RemovableHandle


def hooked(tensor: Tensor, hook: GradientHook) -> TensorHook:
    """Register `hook` for the gradient of `tensor` as it is now; a later in-place write does not change that."""
    node = tensor.grad_fn
    if type(tensor) is not Tensor or node is None or tensor._backward_hooks is not None:
        handle: RemovableHandle = tensor.register_hook(hook)  # type: ignore[no-untyped-call]  # it has no types
        return handle
    # What `register_hook` does. A recording calls it twice for each layer, and the handle takes most of its time.
    hooks: Any = OrderedDict()
    tensor._backward_hooks = hooks
    node._register_hook_dict(tensor)
    return FirstHook(hooks, hook)


class TensorHooks:
    """Hooks of tensors that come off together, also where an exception has struck while one was registered."""

    def __init__(self) -> None:
        self._handles: list[TensorHook] = []
        self._registering: list[tuple[Tensor, GradientHook]] = []

    def add(self, tensor: Tensor, hook: GradientHook) -> None:
        """Register `hook` for the gradient of `tensor`."""
        self._registering.append((tensor, hook))  # an exception may strike before the handle is known
        self._handles.append(hooked(tensor, hook))
        self._registering.clear()  # it must not keep the tensor alive

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        for tensor, hook in self._registering:
            hooks: Any = tensor._backward_hooks or {}
            for key in [key for key, each in hooks.items() if each is hook]:
                hooks.pop(key, None)
        self._handles.clear()
        self._registering.clear()


class GradientTap:
    """The gradient of one use of a tensor, apart from the other uses of that tensor. Made by `tap_gradient`.

    The user of the tensor gets a view of it, and the hook is on the view. An in-place operation on a view of a base
    breaks this: it cuts all views of the base out of the graph and becomes part of the history of the base. From then
    on only the base has a gradient, the sum over all its uses. So the tap can also be called with the gradient of the
    base, from which it takes its own part.
    """

    __slots__ = (
        "_alias",
        "_base_edge",
        "_base_hook",
        "_geometry",
        "_handle",
        "_hook",
        "_tensor",
        "_version",
        "_view_edge",
        "_view_gradient_arrived",
    )

    def __init__(self, tensor: Tensor, hook: GradientHook) -> None:
        base = tensor if tensor._base is None else _base(tensor)
        self._hook = hook
        self._tensor: Tensor | None = tensor  # until it is known whether there are writes
        self._view_gradient_arrived = False
        self._geometry = None if base is tensor else _view_geometry(tensor, base)
        self._alias: Tensor | None = None  # while it listens at the base; it shares the counter of writes
        self._version = tensor._version
        self._base_edge = edge_of(base)
        self._view_edge: GradientEdge | None = None
        self._handle: TensorHook | None = None
        # All taps on one tensor share the hook on its base. A later use comes first, as it does in the backward pass.
        self._base_hook: _BaseHook | None = getattr(tensor, _BASE_HOOK, None)
        if self._base_hook is not None:
            self._base_hook.gradient_taps.insert(0, self)

    @property
    def edges(self) -> list[GradientEdge]:
        """The edges of the graph at which its gradient arrives: the view's, and after an in-place write the base's."""
        assert self._view_edge is not None
        return [self._view_edge, self._base_edge] if self.is_overwritten() else [self._view_edge]

    def gradient_of(self, gradients: list[Tensor | None]) -> Tensor | None:
        """Its gradient, computed from the gradients at its `edges`."""
        if gradients[0] is not None or len(gradients) == 1 or gradients[1] is None:
            return gradients[0]
        return gradients[1] if self._geometry is None else self._geometry.part_of(gradients[1])[1]

    def is_overwritten(self) -> bool:
        """Whether an operation has written into the memory of the tensor since the tap was made."""
        return self._alias is not None and self._alias._version != self._version

    def hook_base(self) -> None:
        """Also listen at the base of the tensor, because of a write into the view that is made or to come."""
        tensor, self._tensor = self._tensor, None  # the graph holds this tap, so it must not hold the graph
        assert tensor is not None
        self._alias = tensor.detach()
        if self._base_hook is None:
            self._base_hook = _BaseHook(None if self.is_overwritten() else tensor, self._base_edge)
            self._base_hook.gradient_taps.append(self)

    def end_writes(self) -> None:
        """Declare that no operation writes into the view from now on. Writes into its base no longer matter then."""
        assert self._tensor is not None
        if self._tensor._version != self._version:
            self.hook_base()
        self._tensor = None

    def remove(self) -> None:
        """Take the hooks off."""
        if self._handle is not None:
            self._handle.remove()
        if self._base_hook is not None:
            self._base_hook.drop(self)

    def on_base_gradient(self, gradient: Tensor | None) -> Tensor | None:
        """Take in the gradient of the base, and return the gradient that flows on instead, if it is another one."""
        was_handled, self._view_gradient_arrived = self._view_gradient_arrived, False
        if (
            gradient is None or was_handled or not self.is_overwritten()
        ):  # this gradient is the sum with what the other uses add
            return None
        if self._geometry is None:
            return self._hook(gradient)
        base_gradient, part = self._geometry.part_of(gradient)
        changed = self._hook(part)
        if changed is None:
            return None
        part.copy_(changed)
        return base_gradient

    def __call__(self, gradient: Tensor | None) -> Tensor | None:
        """Take in the gradient of the view, and return the gradient that flows on instead, if it is another one."""
        self._view_gradient_arrived = True
        return self._hook(gradient)

    def make_view(self, tensor: Tensor) -> Tensor:
        """The view of `tensor` that the user of the tensor takes, with the attributes that the tensor has."""
        view = _view_of(tensor)
        if attributes := tensor.__dict__:
            view.__dict__.update(attributes)
        if self._base_hook is not None:
            setattr(view, _BASE_HOOK, self._base_hook)
        self._handle = hooked(view, self)
        return view


def tap_gradient(tensor: Tensor, hook: GradientHook, *, hook_base: bool) -> tuple[GradientTap, Tensor]:
    """Call `hook` with the gradient of one use of `tensor`; return the tap, and the view that this use has to take.

    With `hook_base` the tap listens at the base of the tensor at once, because any later operation may write into the
    view. Without it the caller has to call the tap's `hook_base` or `end_writes` when it knows more.
    """
    tap = GradientTap(tensor, hook)
    if not hook_base:
        return tap, tap.make_view(tensor)
    tap.hook_base()
    view = tap.make_view(tensor)
    tap._view_edge = edge_of(view)
    return tap, view


def _view_of(tensor: Tensor) -> Tensor:
    if tensor.layout is torch.strided and not tensor.is_nested:
        return tensor[...]  # faster than `view_as`, and with the strides of `tensor` also on axes of size 1
    # No views exist of sparse tensors, and of nested ones only some.
    return tensor.view_as(tensor) if tensor.layout == torch.jagged else tensor.clone()


def edge_of(tensor: Tensor) -> GradientEdge:
    """Where `tensor` is in the graph as it is now. As `get_gradient_edge`, but also of a leaf that is sparse."""
    if tensor.grad_fn is not None:
        return GradientEdge(tensor.grad_fn, tensor.output_nr)
    node: Any = _view_of(tensor).grad_fn
    return GradientEdge(node.next_functions[0][0], 0)


class _GraphStart(torch.autograd.Function):
    """Returns a tensor that needs no gradient as one that does, in the same memory."""

    @staticmethod
    def forward(leaf: Tensor, tensor: Tensor) -> Tensor:
        return tensor.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is needed later."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[1].view_as(tangents[1])  # of forward-mode differentiation; the output is a view, too


def start_graph(tensor: Tensor) -> Tensor:
    """A tensor in the memory of `tensor`, at which the graph of a model begins that is frozen up to here.

    It is no leaf, because the next operation may write into it, and no copy, because others may see what is written.
    """
    if tensor.is_nested and tensor.layout == torch.strided:  # torch's functions in Python cannot return them
        return tensor.detach().requires_grad_().clone()
    leaf = torch.empty(0, device=tensor.device, requires_grad=True)
    # Inference tensors take no part in a graph.
    started: Tensor = _GraphStart.apply(leaf, tensor.clone() if tensor.is_inference() else tensor)
    return started


class _BaseHook:
    """One hook for all taps on the views of one base.

    It is on the base tensor, or on the node that the base had in the graph before an operation wrote into it.
    """

    __slots__ = ("_handle", "gradient_taps")

    def __init__(self, tensor: Tensor | None, edge: GradientEdge) -> None:
        self.gradient_taps: list[GradientTap] = []
        gradient_taps, number = self.gradient_taps, edge.output_nr

        def on_gradient(gradient: Tensor) -> Tensor | None:
            current = gradient
            for tap in tuple(gradient_taps):
                changed = tap.on_base_gradient(current)
                current = current if changed is None else changed
            return None if current is gradient else current

        def on_node_gradients(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
            gradient = gradients[number]
            changed = None if gradient is None else on_gradient(gradient)
            return None if changed is None else (*gradients[:number], changed, *gradients[number + 1 :])

        if tensor is None:
            self._handle: TensorHook = edge.node.register_prehook(on_node_gradients)
        else:
            base = _base(tensor)
            earlier = list(base._backward_hooks or ())
            self._handle = hooked(base, on_gradient)
            # Move it before the hooks that the base has already: this use comes later, so its gradient comes earlier.
            hooks: Any = base._backward_hooks
            for key in earlier:
                hooks[key] = hooks.pop(key)

    def drop(self, tap: GradientTap) -> None:
        if tap in self.gradient_taps:
            self.gradient_taps.remove(tap)
        if not self.gradient_taps:
            self._handle.remove()


# The attribute of a tensor that holds the hook of its base.
_BASE_HOOK = "_torchpeek_base_hook"


def _base(tensor: Tensor) -> Tensor:
    """The tensor of which `tensor` is a view, or `tensor` itself if it is no view.

    A nested tensor is a view of the memory of its parts, and is not written into.
    """
    if tensor.is_nested:
        return tensor
    return tensor._base if tensor._base is not None and tensor._base.requires_grad else tensor


class _ViewGeometry(NamedTuple):
    """Where the elements of a view are in the memory of its base."""

    base: tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides
    view: tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides and offset

    def part_of(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of the base's gradient with the strides of the base, and the view's part of it in the same memory."""
        base_gradient = torch.empty_strided(*self.base, dtype=gradient.dtype, device=gradient.device).copy_(gradient)
        return base_gradient, base_gradient.as_strided(*self.view)


def _view_geometry(tensor: Tensor, base: Tensor) -> _ViewGeometry:
    offset = int(tensor.storage_offset()) - int(base.storage_offset())
    return _ViewGeometry((base.shape, base.stride()), (tensor.shape, tensor.stride(), offset))

"""The hooks of a recording: what happens each time a recorded layer is called."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from torchpeek.errors import GradUnavailable
from torchpeek.hooks import containers
from torchpeek.hooks.gradient_tap import GradientTap, hooked, tap_gradient
from torchpeek.hooks.recording.call import Call
from torchpeek.hooks.recording.keep import Accumulator, Keeper
from torchpeek.hooks.recording.pass_tracker import OutputEdge, PassTracker
from torchpeek.hooks.recording.storage import GradientSlot, Leaf, StoredTensor, arrival
from torchpeek.hooks.temporary_hooks import Inert

_thread = threading.get_ident
_graph_task: Callable[[], int] = torch._C._current_graph_task_id


class Called(Inert):
    """When a layer is called: its inputs."""

    __slots__ = ("_tap",)

    def __init__(self, tap: LayerRecorder) -> None:
        self._tap = tap

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        tap, passes = self._tap, self._tap.passes
        if (_thread() != passes.thread or _graph_task() != -1) and not passes.is_ours(module is not tap.module):
            return None
        return tap.called(module, args, kwargs or {})


class LayerRecorder(Inert):
    """The calls of one layer, and its forward hook: what it returns."""

    __slots__ = (
        "_accumulates",
        "_begun",
        "_calls",
        "_keeper",
        "_next",
        "_number",
        "_under_way",
        "layer",
        "module",
        "passes",
    )

    def __init__(
        self, layer: str, module: nn.Module, passes: PassTracker, keeper: Keeper | None, accumulates: bool
    ) -> None:
        self.layer = layer
        self.module = module
        self.passes = passes
        self._keeper = keeper
        self._accumulates = accumulates
        self._calls: list[Call] = []
        self._number = self._begun = 0
        self._next: dict[int, int] = {}
        self._under_way: dict[int, list[Call]] | None = {} if passes.inputs or passes.gradients else None

    def forget(self) -> None:
        """A new pass begins: let go of the memory of the last one, also where this one does not call the layer."""
        if not self._accumulates and self._number != self.passes.number:
            self._number = self.passes.number
            self._calls = []
            if self._under_way:
                self._under_way = {}

    @property
    def calls(self) -> list[Call]:
        """Those of this pass, or of all of them."""
        return self._calls if self._accumulates or self._number == self.passes.number else []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        passes = self.passes
        # Here every tenth of a microsecond counts, so what nearly always holds is asked right here.
        if (_thread() != passes.thread or _graph_task() != -1) and not passes.is_ours(module is not self.module):
            # A checkpointed part has to run again just as it ran.
            return containers.mapped(output, _as_frozen) if passes.gradients and _graph_task() != -1 else None
        if self._under_way is None and self._keeper is None and self._number == passes.number:
            call = Call(self.layer, next(passes.order))
            call.replica = module is not self.module or bool(passes.replicas)
            self._calls.append(call)
        else:
            call = self._new_call(module) if self._under_way is None else self._finished(module)
        if type(output) is Tensor and self._keeper is None and passes.admit is None:
            call.kept_output = StoredTensor(output, passes.copy)
        else:
            call.kept_output = self._kept("output", call, output)
        call.complete = True
        passed_on = self._watched_output(call, args, output) if passes.gradients else None
        if passes.waiting is not None:
            passes.returned(self.layer)
        return passed_on

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer is called: keep what it is given, and return what it is to be given, if not just that."""
        passes, call = self.passes, self._new_call(module)
        assert self._under_way is not None
        self._under_way.setdefault(_thread(), []).append(call)
        if passes.inputs:
            call.kept_input = self._kept("input", call, args)
            call.kept_kwargs = self._kept("input", call, kwargs) if kwargs else kwargs
        if not passes.gradients:
            return None

        slots: dict[tuple[str, str], GradientSlot] = {}
        uses: list[tuple[GradientTap, Tensor]] = []

        def watched(kind: str) -> Callable[[str, Tensor], Tensor]:
            def watch(path: str, tensor: Tensor) -> Tensor:
                slots[kind, path] = slot = self._slot(call, "grad_input", path)
                if not tensor.requires_grad:
                    return tensor
                # What flows back to it comes of this layer alone, wherever else the input is used.
                use, own = tap_gradient(tensor, arrival(slot), passed_on=False)
                passes.handles.append(use)
                uses.append((use, tensor))
                return own

            return watch

        passed_on = containers.mapped(args, watched("args")), containers.mapped(kwargs, watched("kwargs"))
        call.uses = uses
        call.began = torch._C._autograd._get_sequence_nr()
        call.kept_grad_input = containers.mapped(args, lambda path, tensor: slots["args", path], only=True)
        call.kept_grad_kwargs = containers.mapped(kwargs, lambda path, tensor: slots["kwargs", path], only=True)
        return None if passed_on[0] is args and passed_on[1] is kwargs else passed_on

    def _new_call(self, module: nn.Module) -> Call:
        passes = self.passes
        if self._number != passes.number:
            self._number = passes.number
            if self._under_way:
                self._under_way = {}
            if not self._accumulates:
                self._calls = []
        call = Call(self.layer, next(passes.order))
        if module is not self.module or passes.replicas:
            call.replica = True
        if not self._accumulates:
            self._calls.append(call)
            return call
        # The first call of every pass goes with the first of those before, the second with the second.
        # Replicas have theirs next to each other's: each is the first of its thread.
        if self._begun != passes.begun or not passes.begun:
            self._begun, self._next = passes.begun, {}
        call.number = self._next.get(_thread(), 0)
        self._next[_thread()] = call.number + 1
        call.replica = False
        self._calls[call.number : call.number + 1] = [call]
        return call

    def _finished(self, module: nn.Module) -> Call:
        assert self._under_way is not None
        under_way = self._under_way.get(_thread())
        return under_way.pop() if under_way else self._new_call(module)

    def _kept(self, part: str, call: Call, value: Any) -> Any:
        keeper, admit, copy = self._keeper, self.passes.admit, self.passes.copy
        if keeper is None and admit is None:
            return containers.mapped(value, lambda path, tensor: StoredTensor(tensor, copy))
        return containers.mapped(
            value, lambda path, tensor: _leaf(keeper, admit, part, path, call.order, call.number, copy, tensor)
        )

    def _slot(self, call: Call, part: str, path: str) -> GradientSlot:
        # Not through this tap, which holds the call, which holds the slot: memory is to go at once, not when Python
        # next looks for cycles.
        keeper, admit, copy = self._keeper, self.passes.admit, self.passes.copy_gradients
        slot = GradientSlot(partial(_leaf, keeper, admit, part, path, call.order, call.number, copy))
        if isinstance(keeper, Accumulator):
            slot.leaf = keeper.so_far(call.number, _joined(part, path))
        return slot

    def _watched_output(self, call: Call, args: Any, output: Any) -> Any:
        passes = self.passes
        if not torch.is_grad_enabled():
            raise GradUnavailable(
                f"layer {self.layer!r} ran under torch.no_grad(); run the model with gradients, or record none. (What "
                "is checkpointed with use_reentrant=True runs so, too: use_reentrant=False)"
            )
        # One tensor, which this very call made: then whatever flows back to it flows back to the layer. Not so for what
        # is passed on, or comes from elsewhere, or where one output may be made from another.
        made_here = (
            isinstance(output, Tensor)
            and output.grad_fn is not None
            and not output._is_view()
            and output.grad_fn._sequence_nr() >= call.began
        )
        for use, given in call.uses:  # of its inputs, which a layer may pass on
            (use.settle if made_here else use.watch_base)(given)
        call.uses = ()
        slots: dict[str, GradientSlot] = {}

        def watch(path: str, tensor: Tensor) -> Tensor:
            slots[path] = slot = self._slot(call, "grad_output", path)
            if not tensor.is_floating_point() and not tensor.is_complex():
                return tensor
            if tensor.requires_grad and made_here:
                passes.handles.append(hooked(tensor, arrival(slot)))
                passes.exits.append(OutputEdge(self.layer, slot, get_gradient_edge(tensor)))
                return tensor
            if tensor.requires_grad:
                use, own = tap_gradient(tensor, arrival(slot), passed_on=True)
                passes.handles.append(use)
                passes.exits.append(OutputEdge(self.layer, slot, use))
                return own
            leaf = _leaf_of(tensor)
            passes.handles.append(hooked(leaf, arrival(slot)))
            passes.exits.append(OutputEdge(self.layer, slot, get_gradient_edge(leaf)))
            return leaf.clone()  # not the leaf itself: what comes next may write into it

        passed_on = containers.mapped(output, watch)
        call.kept_grad_output = containers.mapped(output, lambda path, tensor: slots[path], only=True)
        return None if passed_on is output else passed_on


def _leaf_of(tensor: Tensor) -> Tensor:
    """A frozen model, up to here: the graph begins with this."""
    return (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()


def _as_frozen(path: str, tensor: Tensor) -> Tensor:
    differentiable = tensor.is_floating_point() or tensor.is_complex()
    return _leaf_of(tensor).clone() if differentiable and not tensor.requires_grad else tensor


def _leaf(
    keeper: Keeper | None,
    admit: Callable[[Leaf], None] | None,
    part: str,
    path: str,
    order: int,
    number: int,
    copy: bool,
    tensor: Tensor,
) -> Leaf:
    """What to leave in the place of a tensor."""
    if keeper is None:
        leaf: Leaf = StoredTensor(tensor, copy)
    else:
        leaf = keeper(_joined(part, path), order, number, tensor, copy)
    if admit is not None:
        admit(leaf)
    return leaf


def _joined(part: str, path: str) -> str:
    return f"{part}.{path}" if path else part

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
from torchpeek.hooks.recording.keep import Keeper, StatisticsKeeper
from torchpeek.hooks.recording.pass_tracker import OutputEdge, PassTracker
from torchpeek.hooks.recording.storage import GradientSlot, Leaf, StoredTensor, slot_hook
from torchpeek.hooks.temporary_hooks import UncopiedHook

_thread = threading.get_ident
_graph_task: Callable[[], int] = torch._C._current_graph_task_id


class LayerInputHook(UncopiedHook):
    """When a layer is called: its inputs."""

    __slots__ = ("_recorder",)

    def __init__(self, recorder: LayerRecorder) -> None:
        self._recorder = recorder

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        recorder, tracker = self._recorder, self._recorder.tracker
        if (_thread() != tracker.thread or _graph_task() != -1) and not tracker.is_ours(module is not recorder.module):
            return None
        return recorder.called(module, args, kwargs or {})


class LayerRecorder(UncopiedHook):
    """The calls of one layer, and its forward hook: what it returns."""

    __slots__ = (
        "_accumulates",
        "_calls",
        "_keeper",
        "_next_number",
        "_pass_count",
        "_pass_number",
        "_pending_calls",
        "layer",
        "module",
        "tracker",
    )

    def __init__(
        self, layer: str, module: nn.Module, tracker: PassTracker, keeper: Keeper | None, accumulates: bool
    ) -> None:
        self.layer = layer
        self.module = module
        self.tracker = tracker
        self._keeper = keeper
        self._accumulates = accumulates
        self._calls: list[Call] = []
        self._pass_number = self._pass_count = 0
        self._next_number: dict[int, int] = {}
        self._pending_calls: dict[int, list[Call]] | None = {} if tracker.inputs or tracker.gradients else None

    def start_pass(self) -> None:
        """A new pass begins: let go of the memory of the last one, also where this one does not call the layer."""
        if not self._accumulates and self._pass_number != self.tracker.pass_number:
            self._pass_number = self.tracker.pass_number
            self._calls = []
            if self._pending_calls:
                self._pending_calls = {}

    @property
    def calls(self) -> list[Call]:
        """Those of this pass, or of all of them."""
        return self._calls if self._accumulates or self._pass_number == self.tracker.pass_number else []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        tracker = self.tracker
        # Here every tenth of a microsecond counts, so what nearly always holds is asked right here.
        if (_thread() != tracker.thread or _graph_task() != -1) and not tracker.is_ours(module is not self.module):
            # A checkpointed part has to run again just as it ran.
            return containers.mapped(output, _as_first_run) if tracker.gradients and _graph_task() != -1 else None
        if self._pending_calls is None and self._keeper is None and self._pass_number == tracker.pass_number:
            call = Call(self.layer, next(tracker.call_order))
            call.replica = module is not self.module or bool(tracker.replicas)
            self._calls.append(call)
        else:
            call = self._new_call(module) if self._pending_calls is None else self._finished(module)
        if type(output) is Tensor and self._keeper is None and tracker.admit is None:
            call.stored_output = StoredTensor(output, tracker.copy)
        else:
            call.stored_output = self._stored("output", call, output)
        call.complete = True
        replacement = self._tap_output(call, args, output) if tracker.gradients else None
        if tracker.pending_layers is not None:
            tracker.layer_returned(self.layer)
        return replacement

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer is called: keep what it is given, and return what it is to be given, if not just that."""
        tracker, call = self.tracker, self._new_call(module)
        assert self._pending_calls is not None
        self._pending_calls.setdefault(_thread(), []).append(call)
        if tracker.inputs:
            call.stored_input = self._stored("input", call, args)
            call.stored_kwargs = self._stored("input", call, kwargs) if kwargs else kwargs
        if not tracker.gradients:
            return None

        slots: dict[tuple[str, str], GradientSlot] = {}
        taps: list[tuple[GradientTap, Tensor]] = []

        def tapped(container: str) -> Callable[[str, Tensor], Tensor]:
            def tap_tensor(path: str, tensor: Tensor) -> Tensor:
                slots[container, path] = slot = self._slot(call, "grad_input", path)
                if not tensor.requires_grad:
                    return tensor
                # What flows back to it comes of this layer alone, wherever else the input is used.
                tap, view = tap_gradient(tensor, slot_hook(slot), hook_base=False)
                tracker.tensor_hooks.append(tap)
                taps.append((tap, tensor))
                return view

            return tap_tensor

        replacement = containers.mapped(args, tapped("args")), containers.mapped(kwargs, tapped("kwargs"))
        call.input_taps = taps
        call.first_node = torch._C._autograd._get_sequence_nr()
        call.stored_grad_input = containers.mapped(args, lambda path, tensor: slots["args", path], leaves_only=True)
        call.stored_grad_kwargs = containers.mapped(
            kwargs, lambda path, tensor: slots["kwargs", path], leaves_only=True
        )
        return None if replacement[0] is args and replacement[1] is kwargs else replacement

    def _new_call(self, module: nn.Module) -> Call:
        tracker = self.tracker
        if self._pass_number != tracker.pass_number:
            self._pass_number = tracker.pass_number
            if self._pending_calls:
                self._pending_calls = {}
            if not self._accumulates:
                self._calls = []
        call = Call(self.layer, next(tracker.call_order))
        if module is not self.module or tracker.replicas:
            call.replica = True
        if not self._accumulates:
            self._calls.append(call)
            return call
        # The first call of every pass goes with the first of those before, the second with the second.
        # Replicas have theirs next to each other's: each is the first of its thread.
        if self._pass_count != tracker.pass_count or not tracker.pass_count:
            self._pass_count, self._next_number = tracker.pass_count, {}
        call.number = self._next_number.get(_thread(), 0)
        self._next_number[_thread()] = call.number + 1
        call.replica = False
        self._calls[call.number : call.number + 1] = [call]
        return call

    def _finished(self, module: nn.Module) -> Call:
        assert self._pending_calls is not None
        pending = self._pending_calls.get(_thread())
        return pending.pop() if pending else self._new_call(module)

    def _stored(self, part: str, call: Call, value: Any) -> Any:
        keeper, admit, copy = self._keeper, self.tracker.admit, self.tracker.copy
        if keeper is None and admit is None:
            return containers.mapped(value, lambda path, tensor: StoredTensor(tensor, copy))
        return containers.mapped(
            value, lambda path, tensor: _store(keeper, admit, part, path, call.order, call.number, copy, tensor)
        )

    def _slot(self, call: Call, part: str, path: str) -> GradientSlot:
        # Not through this tap, which holds the call, which holds the slot: memory is to go at once, not when Python
        # next looks for cycles.
        keeper, admit, copy = self._keeper, self.tracker.admit, self.tracker.copy_gradients
        slot = GradientSlot(partial(_store, keeper, admit, part, path, call.order, call.number, copy))
        if isinstance(keeper, StatisticsKeeper):
            slot.leaf = keeper.current(call.number, _joined(part, path))
        return slot

    def _tap_output(self, call: Call, args: Any, output: Any) -> Any:
        tracker = self.tracker
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
            and output.grad_fn._sequence_nr() >= call.first_node
        )
        for tap, tensor in call.input_taps:  # of its inputs, which a layer may pass on
            (tap.end_writes if made_here else tap.hook_base)(tensor)
        call.input_taps = ()
        slots: dict[str, GradientSlot] = {}

        def tap_tensor(path: str, tensor: Tensor) -> Tensor:
            slots[path] = slot = self._slot(call, "grad_output", path)
            if not tensor.is_floating_point() and not tensor.is_complex():
                return tensor
            if tensor.requires_grad and made_here:
                tracker.tensor_hooks.append(hooked(tensor, slot_hook(slot)))
                tracker.output_edges.append(OutputEdge(self.layer, slot, get_gradient_edge(tensor)))
                return tensor
            if tensor.requires_grad:
                tap, view = tap_gradient(tensor, slot_hook(slot), hook_base=True)
                tracker.tensor_hooks.append(tap)
                tracker.output_edges.append(OutputEdge(self.layer, slot, tap))
                return view
            leaf = _graph_leaf(tensor)
            tracker.tensor_hooks.append(hooked(leaf, slot_hook(slot)))
            tracker.output_edges.append(OutputEdge(self.layer, slot, get_gradient_edge(leaf)))
            return leaf.clone()  # not the leaf itself: what comes next may write into it

        replacement = containers.mapped(output, tap_tensor)
        call.stored_grad_output = containers.mapped(output, lambda path, tensor: slots[path], leaves_only=True)
        return None if replacement is output else replacement


def _graph_leaf(tensor: Tensor) -> Tensor:
    """A frozen model, up to here: the graph begins with this."""
    return (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()


def _as_first_run(path: str, tensor: Tensor) -> Tensor:
    differentiable = tensor.is_floating_point() or tensor.is_complex()
    return _graph_leaf(tensor).clone() if differentiable and not tensor.requires_grad else tensor


def _store(
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

"""Record the calls of one layer: the hooks that run each time the layer is called."""

from __future__ import annotations

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
from torchpeek.hooks.recording.pass_tracker import (
    CallCounter,
    LatestCalls,
    OutputEdge,
    PassTracker,
    PendingCalls,
    in_backward_pass,
)
from torchpeek.hooks.recording.storage import GradientSlot, Leaf, StoredTensor, slot_hook
from torchpeek.hooks.selected_layer import SelectedLayer
from torchpeek.hooks.temporary_hooks import UncopiedHook


class LayerInputHook(UncopiedHook):
    """The pre-hook of a layer: records the inputs."""

    __slots__ = ("_recorder",)

    def __init__(self, recorder: LayerRecorder) -> None:
        self._recorder = recorder

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        recorder = self._recorder
        if not recorder.tracker.is_ours(module, recorder.module):
            return None
        return recorder.record_input(module, args, kwargs or {})


class LayerRecorder(UncopiedHook):
    """The recorded calls of one layer, and its forward hook: records the output.

    Where one call of each pass is selected, the others are counted and not recorded. A call that is counted from the
    end is only known when the pass has ended, so the latest calls are stored until then.
    """

    __slots__ = (
        "_accumulates",
        "_calls",
        "_counter",
        "_keeper",
        "_latest",
        "_pass_number",
        "_pending",
        "_records_every_call",
        "layer",
        "module",
        "selected",
        "tracker",
    )

    def __init__(self, selected: SelectedLayer, tracker: PassTracker, keeper: Keeper | None, accumulates: bool) -> None:
        self.selected = selected
        self.layer = selected.name
        self.module = selected.module
        self.tracker = tracker
        call = selected.call
        self._records_every_call = call is None
        self._latest = LatestCalls(-call) if call is not None and call < 0 else None
        self._keeper = keeper
        self._accumulates = accumulates
        self._calls: list[Call] = []
        self._pass_number = 0
        self._counter = CallCounter() if accumulates or call is not None else None
        self._pending = PendingCalls() if tracker.inputs or tracker.gradients else None

    def start_pass(self) -> None:
        """Free the memory of the last pass, also if the new pass does not call the layer."""
        if not self._accumulates and self._pass_number != self.tracker.pass_number:
            self._pass_number = self.tracker.pass_number
            self._clear_calls()
            if self._pending is not None:
                self._pending.clear()

    @property
    def calls(self) -> list[Call]:
        """The recorded calls of the last pass, or of all passes if they are recorded or accumulated."""
        if not self._accumulates and self._pass_number != self.tracker.pass_number:
            return []
        return self._calls if self._latest is None else self._latest.selected

    @property
    def call_count(self) -> int:
        """How often the last pass called the layer, if one call is selected: also the calls that are not recorded."""
        return 0 if self._counter is None else self._counter.total(self.tracker.pass_count)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        # This runs for every layer in every pass, so the common case comes first and makes the fewest calls.
        tracker = self.tracker
        if not tracker.is_ours(module, self.module):
            # The second run of a checkpointed part must build the same graph as the first one.
            return self._in_second_run(output) if tracker.gradients and in_backward_pass() else None
        if (
            self._pending is None
            and self._keeper is None
            and self._records_every_call
            and self._pass_number == tracker.pass_number
        ):
            call = Call(self.layer, next(tracker.call_order))
            if tracker.replicas or module is not self.module:
                call.replica = True
            self._calls.append(call)
        elif (finished := self._finished_call(module)) is not None:
            call = finished
        else:
            return None
        if type(output) is Tensor and self._keeper is None and tracker.admit is None:
            call.stored_output = StoredTensor(output, tracker.copy)
        else:
            call.stored_output = self._stored("output", call, output)
        call.complete = True
        replacement = self._tap_output(call, output) if tracker.gradients else None
        if tracker.pending_layers is not None:
            tracker.layer_returned(self.layer)
        return replacement

    def record_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Store the inputs and tap their gradients; return the inputs that the layer has to take, or None for these."""
        tracker, call = self.tracker, self._new_call(module)
        assert self._pending is not None
        self._pending.begin(call)
        if call is None:
            return None
        if tracker.inputs:
            call.stored_input = self._stored("input", call, args)
            call.stored_kwargs = self._stored("input", call, kwargs) if kwargs else kwargs
        if not tracker.gradients:
            return None

        slots: dict[tuple[str, str], GradientSlot] = {}
        input_taps: list[tuple[GradientTap, Tensor]] = []

        def tapped(container: str) -> Callable[[str, Tensor], Tensor]:
            def tap_tensor(path: str, tensor: Tensor) -> Tensor:
                slots[container, path] = slot = self._slot(call, "grad_input", path)
                if not tensor.requires_grad or torch.is_inference_mode_enabled():  # then the output hook raises
                    return tensor
                # The tap gives the gradient of this layer alone, whatever else uses the tensor.
                tap, view = tap_gradient(tensor, slot_hook(slot), hook_base=False)
                tracker.tensor_hooks.append(tap)
                input_taps.append((tap, tensor))
                return view

            return tap_tensor

        tapped_args = containers.mapped(args, tapped("args"))
        tapped_kwargs = containers.mapped(kwargs, tapped("kwargs"))
        call.input_taps = input_taps
        call.first_node = torch._C._autograd._get_sequence_nr()
        call.stored_grad_input = containers.mapped(args, lambda path, tensor: slots["args", path], leaves_only=True)
        call.stored_grad_kwargs = containers.mapped(
            kwargs, lambda path, tensor: slots["kwargs", path], leaves_only=True
        )
        return None if tapped_args is args and tapped_kwargs is kwargs else (tapped_args, tapped_kwargs)

    def _new_call(self, module: nn.Module) -> Call | None:
        """A new call of the current thread; None for one that is not selected."""
        tracker, counter = self.tracker, self._counter
        if self._pass_number != tracker.pass_number:
            self._pass_number = tracker.pass_number
            if self._pending is not None:
                self._pending.clear()
            if not self._accumulates:
                self._clear_calls()
        number = 0 if counter is None else counter.next_number(tracker.pass_count)
        if not self._records_every_call and self._latest is None and number != self.selected.call:
            return None
        call = Call(self.layer, next(tracker.call_order))
        if module is not self.module or tracker.replicas:
            call.replica = True
        if self._latest is not None:
            dropped = self._latest.add(call, tracker.pass_count)
            if dropped is not None and tracker.gradients:
                tracker.forget(dropped)
        elif self._accumulates:
            # The statistics of the first call of a pass go on with those of the first calls of earlier passes, and so
            # on. The calls of all replicas add to the same statistics. Outside a pass there is no first call.
            call.number = number if self._records_every_call and tracker.pass_count else 0
            call.replica = False
            self._calls[call.number : call.number + 1] = [call]
        else:
            self._calls.append(call)
        return call

    def _finished_call(self, module: nn.Module) -> Call | None:
        """The call that returns now; None for one that is not selected."""
        if self._pending is not None and self._pending.has_begun:
            return self._pending.finish()
        return self._new_call(module)

    def _clear_calls(self) -> None:
        self._calls = []
        if self._latest is not None:
            self._latest.clear()

    def _in_second_run(self, output: Any) -> Any:
        """What the layer returns in the second run of a checkpointed part, inside a backward pass."""
        first = containers.mapped(output, _as_first_run)
        if first is not output and not self._records_every_call:
            raise GradUnavailable(
                f"{self.layer!r} is one call of a layer in a checkpointed part of a frozen model, which runs again in "
                f"the backward pass, where calls cannot be counted. Next: record {self.selected.path!r} with all its "
                "calls, or turn checkpointing off"
            )
        return first

    def _stored(self, part: str, call: Call, value: Any) -> Any:
        keeper, admit, copy = self._keeper, self.tracker.admit, self.tracker.copy
        if keeper is None and admit is None:
            return containers.mapped(value, lambda path, tensor: StoredTensor(tensor, copy))
        return containers.mapped(
            value, lambda path, tensor: _leaf_for(keeper, admit, part, path, call.order, call.number, copy, tensor)
        )

    def _slot(self, call: Call, part: str, path: str) -> GradientSlot:
        # The slot must not refer to this recorder: it holds the call, which holds the slot. Without such a cycle the
        # memory is freed at once, and not when Python next collects cycles.
        keeper, admit, copy = self._keeper, self.tracker.admit, self.tracker.copy_gradients
        slot = GradientSlot(partial(_leaf_for, keeper, admit, part, path, call.order, call.number, copy))
        if isinstance(keeper, StatisticsKeeper):
            slot.leaf = keeper.current(call.number, _joined(part, path))
        return slot

    def _tap_output(self, call: Call, output: Any) -> Any:
        """Register hooks for the gradient of the output; return the output to use instead, or None for this one."""
        tracker = self.tracker
        if not torch.is_grad_enabled():
            raise GradUnavailable(
                f"layer {self.layer!r} ran under torch.no_grad() or inference_mode(), so it has no gradients; enable "
                "gradients while the model runs, or record without gradients=True. A part that is checkpointed with "
                "use_reentrant=True also runs under no_grad; choose use_reentrant=False"
            )
        # If the output is one tensor, which this call made and which is no view, then every gradient that arrives at
        # the tensor belongs to the layer. Otherwise the tensor may have other uses, such as the computation of another
        # of the outputs, so it needs a tap.
        made_here = (
            isinstance(output, Tensor)
            and output.grad_fn is not None
            and not output._is_view()
            and output.grad_fn._sequence_nr() >= call.first_node
        )
        for tap, tensor in call.input_taps:  # a layer that did not make its output may return its input
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
            return leaf.clone()  # a leaf that requires gradients forbids in-place writes, which may come next

        tapped_output = containers.mapped(output, tap_tensor)
        call.stored_grad_output = containers.mapped(output, lambda path, tensor: slots[path], leaves_only=True)
        return None if tapped_output is output else tapped_output


def _graph_leaf(tensor: Tensor) -> Tensor:
    """A leaf with the values of `tensor`. The graph of a model that is frozen up to this layer begins here."""
    return (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()


def _as_first_run(path: str, tensor: Tensor) -> Tensor:
    """The tensor as `_tap_output` returned it in the first run of a checkpointed part."""
    differentiable = tensor.is_floating_point() or tensor.is_complex()
    return _graph_leaf(tensor).clone() if differentiable and not tensor.requires_grad else tensor


def _leaf_for(
    keeper: Keeper | None,
    admit: Callable[[Leaf], None] | None,
    part: str,
    path: str,
    order: int,
    number: int,
    copy: bool,
    tensor: Tensor,
) -> Leaf:
    """The leaf that takes the place of `tensor`."""
    if keeper is None:
        leaf: Leaf = StoredTensor(tensor, copy)
    else:
        leaf = keeper(_joined(part, path) if path else part, order, number, tensor, copy)
    if admit is not None:
        admit(leaf)
    return leaf


def _joined(part: str, path: str) -> str:
    return f"{part}.{path}" if path else part

"""Record the calls of one layer: the hooks that run each time the layer is called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.errors import GradUnavailable, notify, type_shown
from torchpeek.hooks import containers
from torchpeek.hooks.backward_pass import in_backward_pass
from torchpeek.hooks.container_types import holds_tensors
from torchpeek.hooks.gradient_tap import GradientTap, hooked, start_graph, tap_gradient
from torchpeek.hooks.recording.call import Call
from torchpeek.hooks.recording.keep import Keeper, StatisticsKeeper
from torchpeek.hooks.recording.pass_tracker import (
    CallCounter,
    LatestCalls,
    OutputEdge,
    PassTracker,
    PendingCalls,
    TappedInputs,
)
from torchpeek.hooks.recording.storage import GradientSlot, Leaf, SlotHook, StoredTensor
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
        "_is_plain",
        "_keeper",
        "_latest",
        "_pass_number",
        "_pending",
        "_records_every_call",
        "_store_gradient",
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
        self._store_gradient = partial(StoredTensor, copy=tracker.copy_gradients)
        self._accumulates = accumulates
        self._calls: list[Call] = []
        self._pass_number = 0
        self._counter = CallCounter() if accumulates or call is not None else None
        self._pending = PendingCalls() if tracker.inputs or tracker.gradients else None
        # The common case: the outputs of all calls, as they are.
        self._is_plain = self._records_every_call and self._pending is None and keeper is None

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
        if self._is_plain and self._pass_number == tracker.pass_number:
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

        if len(args) == 1 and not kwargs and type(args[0]) is Tensor:
            replacement = self._tap_input(call, args[0], kwargs)
        else:
            replacement = self._tap_inputs(call, args, kwargs)
        call.first_node = torch._C._autograd._get_sequence_nr()
        return replacement

    def _tap_input(
        self, call: Call, tensor: Tensor, kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Tap the gradient of the only input, as `_tap_inputs` does. Most layers have only one, so this is fast."""
        slot = self._slot(call, "grad_input", "0")
        call.stored_grad_input, call.stored_grad_kwargs = (slot,), kwargs
        if not tensor.requires_grad or not _builds_graph():
            return None
        tap, view = tap_gradient(tensor, SlotHook(slot), hook_base=False)
        self.tracker.tensor_hooks.append(tap)
        call.input_taps = (tap,)
        return (view,), kwargs

    def _tap_inputs(
        self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Tap the gradients of all inputs, one for each tensor, however often the layer gets it.

        Returns the inputs that the layer has to take, or None for these.
        """
        tracker, both = self.tracker, (args, dict(kwargs))
        slots: dict[int, GradientSlot] = {}
        input_taps: list[GradientTap] = []
        tapped_inputs = TappedInputs([], {})

        def slot_for(path: str, tensor: Tensor) -> GradientSlot:
            slots[id(tensor)] = slot = self._slot(call, "grad_input", path.partition(".")[2])
            return slot

        def tap_tensor(path: str, tensor: Tensor) -> Tensor:
            if not tensor.requires_grad or not _builds_graph():  # then the output hook raises
                return tensor
            # The tap gives the gradient of this layer alone, whatever else uses the tensor.
            tap, view = tap_gradient(tensor, SlotHook(slots[id(tensor)]), hook_base=False)
            tracker.tensor_hooks.append(tap)
            input_taps.append(tap)
            tapped_inputs.originals[id(view)] = view, tensor
            return view

        try:
            call.stored_grad_input, call.stored_grad_kwargs = containers.mapped(
                both, slot_for, leaves_only=True, once_each=True, fresh=True, others=_without_tensors
            )
            tapped: Any = containers.mapped(both, tap_tensor, once_each=True, in_place=tapped_inputs.containers)
        except Exception as error:
            tapped_inputs.restore()
            error.add_note(f"in the recording of the inputs of layer {self.layer!r}")
            raise
        call.input_taps = input_taps
        if tapped_inputs.containers:
            tracker.tapped_inputs[id(call)] = tapped_inputs
        return tapped if input_taps else None

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
        pending = None if self._pending is None else self._pending.of_thread()
        return pending.pop() if pending else self._new_call(module)

    def _clear_calls(self) -> None:
        self._calls = []
        if self._latest is not None:
            self._latest.clear()

    def _in_second_run(self, output: Any) -> Any:
        """What the layer returns in the second run of a checkpointed part, inside a backward pass."""
        first = containers.mapped(output, _as_first_run, once_each=True)
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
            if type(value) is tuple and len(value) == 1 and type(value[0]) is Tensor:  # most inputs, fast
                return (StoredTensor(value[0], copy),)
            return containers.mapped(
                value,
                lambda path, tensor: StoredTensor(tensor, copy),
                fresh=True,
                others=partial(_other, self.layer, part),
            )

        def leaf(path: str, tensor: Tensor) -> Leaf:
            return _leaf_for(keeper, admit, part, path, call.order, call.number, copy, tensor)

        return containers.mapped(value, leaf, fresh=True, others=partial(_other, self.layer, part))

    def _slot(self, call: Call, part: str, path: str) -> GradientSlot:
        # The slot must not refer to this recorder: it holds the call, which holds the slot. Without such a cycle the
        # memory is freed at once, and not when Python next collects cycles.
        keeper, admit, copy = self._keeper, self.tracker.admit, self.tracker.copy_gradients
        if keeper is None and admit is None:
            return GradientSlot(self._store_gradient)
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
        node = output.grad_fn if isinstance(output, Tensor) else None
        made_here = node is not None and not output._is_view() and node._sequence_nr() >= call.first_node
        for tap in call.input_taps:
            if made_here:
                tap.end_writes()
            else:  # it may have returned its input
                tap.hook_base()
        call.input_taps = ()
        if tracker.tapped_inputs and (tapped_inputs := tracker.tapped_inputs.pop(id(call), None)) is not None:
            tapped_inputs.restore()
        if node is not None and made_here:
            call.stored_grad_output = slot = self._slot(call, "grad_output", "")
            tracker.tensor_hooks.append(hooked(output, SlotHook(slot)))
            tracker.output_edges.append(OutputEdge(self.layer, slot, node, output.output_nr))
            return None
        slots: dict[int, GradientSlot] = {}

        def slot_for(path: str, tensor: Tensor) -> GradientSlot:
            slots[id(tensor)] = slot = self._slot(call, "grad_output", path)
            return slot

        def tap_tensor(path: str, tensor: Tensor) -> Tensor:
            slot = slots[id(tensor)]
            if not tensor.is_floating_point() and not tensor.is_complex():
                return tensor
            if tensor.requires_grad:
                tap, view = tap_gradient(tensor, SlotHook(slot), hook_base=True)
                tracker.tensor_hooks.append(tap)
                tracker.output_edges.append(OutputEdge(self.layer, slot, tap))
                return view
            start = start_graph(tensor)
            tracker.tensor_hooks.append(hooked(start, SlotHook(slot)))
            assert start.grad_fn is not None
            tracker.output_edges.append(OutputEdge(self.layer, slot, start.grad_fn))
            return start

        # A tensor that the layer returns twice is one tensor, with one gradient.
        call.stored_grad_output = containers.mapped(
            output, slot_for, leaves_only=True, once_each=True, fresh=True, others=_without_tensors
        )
        tapped_output = containers.mapped(output, tap_tensor, once_each=True)
        return None if tapped_output is output else tapped_output


def _builds_graph() -> bool:
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def _other(layer: str, part: str, path: str, value: Any) -> Any:
    """What is stored of a value that is no container: the value, or None if it would keep tensors and their graph."""
    if not isinstance(value, nn.Module) and not holds_tensors(value):
        return value
    notify(
        f"the {_joined(part, path)} of layer {layer!r} is {type_shown(value)}, whose tensors cannot be read "
        "without changing it; None is recorded in its place. Next: record a layer inside or after this one"
    )
    return None


def _without_tensors(path: str, value: Any) -> Any:
    """What stands beside the gradients in a container: no tensors and their graph. The output said so in a notice."""
    return None if holds_tensors(value) else value


def _as_first_run(path: str, tensor: Tensor) -> Tensor:
    """The tensor as `_tap_output` returned it in the first run of a checkpointed part."""
    differentiable = tensor.is_floating_point() or tensor.is_complex()
    return start_graph(tensor) if differentiable and not tensor.requires_grad else tensor


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

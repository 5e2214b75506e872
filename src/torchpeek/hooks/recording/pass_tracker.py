"""Track forward passes: which pass and which thread a call belongs to, and when a pass begins, ends or stops early."""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from torchpeek.errors import InputError
from torchpeek.forks import Lock
from torchpeek.hooks import containers
from torchpeek.hooks.backward_pass import graph_task, in_backward_pass
from torchpeek.hooks.gradient_tap import GradientTap, TensorHook
from torchpeek.hooks.model_calls import ModelCalls
from torchpeek.hooks.process import current_thread
from torchpeek.hooks.recording.call import Call
from torchpeek.hooks.recording.storage import GradientSlot, Leaf
from torchpeek.hooks.selected_layer import call_name
from torchpeek.hooks.temporary_hooks import UncopiedHook

# The transforms of torch.func that are active, such as vmap; None outside of all.
_transforms: Callable[[], list[Any] | None] = torch._C._functorch.get_interpreter_stack


class EarlyStop(BaseException):
    """Ends a pass when all layers have returned. It is not an Exception, so that no network catches it."""


class OutputEdge(NamedTuple):
    """Where the output of a layer is in the graph, and the slot for the gradient that arrives there."""

    layer: str
    slot: GradientSlot
    source: Node | GradientTap  # a tap if the tensor may have uses other than this output
    output_number: int = 0  # which of the outputs of the node it is

    @property
    def edges(self) -> list[GradientEdge]:
        """The edges at which to ask autograd for the gradient."""
        if isinstance(self.source, GradientTap):
            return self.source.edges
        return [GradientEdge(self.source, self.output_number)]

    def gradient_of(self, gradients: list[Tensor | None]) -> Tensor | None:
        """The gradient of the output, computed from the gradients at its `edges`."""
        return self.source.gradient_of(gradients) if isinstance(self.source, GradientTap) else gradients[0]


class PassTracker:
    """The state that all layers of a recording share.

    The layer recorders refer to it. It refers to none of them, so that no reference cycle keeps recorded tensors alive.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inputs: bool,
        gradients: bool,
        copy: bool,
        copy_gradients: bool,
        all_passes: bool,
        admit: Callable[[Leaf], None] | None,
    ) -> None:
        self.inputs = inputs
        self.gradients = gradients
        self.copy = copy
        self.copy_gradients = copy_gradients
        self.all_passes = all_passes
        self.admit = admit  # called with each new leaf, to bound the memory
        self.pass_number = 0  # of the pass whose calls are recorded; does not advance if all passes are recorded
        self.pass_count = 0  # the passes so far
        self.call_order = count()
        self.thread = -1  # the thread that opened the block
        self.tensor_hooks: list[TensorHook | GradientTap] = []
        self.tapped_inputs: dict[int, TappedInputs] = {}  # of the calls that have not returned
        self.output_edges: list[OutputEdge] = []  # of the recorded passes
        self.calls = ModelCalls(model)
        self.in_pass = self.calls.depth  # true for a thread in which the model runs
        self.replicas: dict[int, object] = {}  # thread -> the device of the model's replica that runs in it
        self.lock = Lock()  # replicas begin at the same time
        self.called_in_other_thread = False  # whether the model ran in a thread that does not belong to the recording
        self.opened = False  # whether the recording has been opened
        self.called_outside_pass = False  # whether a part of the model was called in the last pass, or before the first
        self.by_hand = False  # whether the user began the last pass with new_pass()
        self.completed = True  # whether the model returned in the last pass
        self.pending_layers: set[str] | None = None  # with an early stop: the layers that have not returned yet
        self.required_layers: frozenset[str] = frozenset()  # with an early stop: the layers that every pass waits for
        self.early_stop: EarlyStop | None = None

    def stop_after(self, layers: Iterable[str]) -> None:
        """Stop each pass when these layers have returned."""
        self.required_layers = frozenset(layers)
        self.pending_layers = set(self.required_layers)

    def open_block(self) -> None:
        """Begin to record in the current thread."""
        self.thread = current_thread()
        self.calls.open()
        self.opened = True
        self.called_in_other_thread, self.completed, self.early_stop = False, True, None
        if self.pending_layers is not None:
            self.pending_layers = set(self.required_layers)

    def close_block(self) -> None:
        """End what `open_block` began."""
        self.remove_tensor_hooks()
        self.calls.close()

    def start_pass(self) -> None:
        """Begin a new pass, which replaces the last one unless all passes are recorded."""
        self.replicas.clear()
        if not self.all_passes:
            self.output_edges.clear()
        self.called_in_other_thread = self.completed = self.by_hand = False
        if not self.all_passes:
            self.called_outside_pass = False
        self.pass_count += 1
        if self.pending_layers is not None:
            self.pending_layers = set(self.required_layers)
        if not self.all_passes:
            self.pass_number += 1
            self.call_order = count()
            self.remove_tensor_hooks()

    def remove_tensor_hooks(self) -> None:
        """Remove the hooks from the tensors of the graph."""
        for handle in self.tensor_hooks:
            handle.remove()
        self.tensor_hooks.clear()
        for inputs in reversed(self.tapped_inputs.values()):  # of layers that raised
            inputs.restore()
        self.tapped_inputs.clear()

    def end_pass(self) -> None:
        """The model returned. From now on an early stop does not wait for layers that this pass did not call."""
        self.completed = True
        if self.pending_layers:
            self.required_layers = (self.required_layers - self.pending_layers) or self.required_layers

    def layer_returned(self, layer: str) -> None:
        """Raise EarlyStop if this was the last layer that the pass waits for."""
        assert self.pending_layers is not None
        self.pending_layers.discard(layer)
        if (
            not self.pending_layers and current_thread() == self.thread
        ):  # in the thread of a replica nothing would catch it
            self.early_stop = EarlyStop()
            raise self.early_stop

    def forget(self, call: Call) -> None:
        """Leave out a call when gradients are computed: it is not recorded any more."""
        slots = {id(leaf) for leaf in call.stored()}
        self.output_edges = [edge for edge in self.output_edges if id(edge.slot) not in slots]

    def is_ours(self, module: nn.Module, layer: nn.Module) -> bool:
        """Whether the call that runs now belongs to the recording.

        A call inside a backward pass does not: it is the second run of a checkpointed part. A call in another thread
        does not either, unless a replica runs there: DataParallel runs each replica in a thread of its own. Nor does
        the call of another model that shares the layer.

        Args:
            module: The module that is called: the layer, or a replica of it.
            layer: The layer.
        """
        if graph_task() != -1:
            return False
        thread = current_thread()
        if self.in_pass.get(thread):
            if _transforms() is not None:
                self._check_vmap(module)
            return True
        if thread == self.thread or module is not layer or thread in self.replicas:
            included = self.calls.include(module)
            if included:
                self._check_vmap(module)
                self.called_outside_pass |= layer is not self.calls.model
            return included
        self.called_in_other_thread = True
        return False

    def _check_vmap(self, module: nn.Module) -> None:
        if any(level.key() == torch._C._functorch.TransformType.Vmap for level in _transforms() or ()):
            what = "the model" if module is self.calls.model else f"a recorded {type(module).__name__}"
            raise InputError(
                f"{what} ran inside torch.vmap, where nothing can be recorded, because the tensors there are invalid "
                "outside it; jacfwd, hessian and others use it, too. Next: leave that layer out with exclude=, run the "
                "batch without vmap, or record around it"
            )

    def why_not_called(self) -> str | None:
        """The reason why a layer was not called, if it is the same for all layers."""
        if not self.opened:
            return "the recording was not opened; call the model inside a with block of it"
        if not self.pass_count:
            if self.called_outside_pass:
                return (
                    "the model itself was not called in the block, and the part or method of it that was called does "
                    "not use this layer"
                )
            return "the model was not called in the block; call it there, this very object and not a copy of it"
        if self.by_hand:
            return "what was called of the model since tape.new_pass() does not use it"
        return None if self.completed else "an exception ended the pass before it was called"

    def about_several_calls(self, layer: str) -> str:
        """What to do where a layer was called several times, and one call is read."""
        if self.all_passes and self.pass_count > 1:
            return "record(..., passes='last') records the calls of the last pass only"
        if self.called_outside_pass:
            return (
                "A call of a part or a method of the model begins no pass: tape.new_pass() before it begins one, and "
                "the calls before that are forgotten" + (", with passes='last'" if self.all_passes else "")
            )
        return f"record(model, {call_name(layer, 0)!r}) records one call of each pass alone"


class TappedInputs(NamedTuple):
    """The containers in which a layer got views in the place of its inputs, and these views."""

    containers: list[Any]
    originals: dict[int, tuple[Tensor, Tensor]]  # id of the view -> the view, and the tensor of which it is one

    def restore(self) -> None:
        """Put the tensors back into the containers, unless the layer has put others there."""
        containers.restore(self.containers, lambda member: self.originals.get(id(member), (None, member))[1])


class PendingCalls:
    """The calls of one layer that have begun and not returned yet, for each thread apart."""

    __slots__ = ("_by_thread",)

    def __init__(self) -> None:
        self._by_thread: defaultdict[int, list[Call | None]] = defaultdict(list)

    def begin(self, call: Call | None) -> None:
        """Add a call of the current thread; None for one that is not recorded."""
        self._by_thread[current_thread()].append(call)

    def of_thread(self) -> list[Call | None] | None:
        """The calls of the current thread, the latest at the end."""
        return self._by_thread.get(current_thread())

    def clear(self) -> None:
        """Forget the calls, for example of a layer that raised."""
        if self._by_thread:
            self._by_thread = defaultdict(list)


class CallCounter:
    """Counts the calls of one layer in a pass, for each thread apart: the calls of each replica count from 0."""

    __slots__ = ("_next", "_pass_count")

    def __init__(self) -> None:
        self._pass_count = 0
        self._next: dict[int, int] = {}

    def next_number(self, pass_count: int) -> int:
        """The number of a new call of the current thread in this pass."""
        if self._pass_count != pass_count:
            self._pass_count, self._next = pass_count, {}
        number = self._next.get(current_thread(), 0)
        self._next[current_thread()] = number + 1
        return number

    def total(self, pass_count: int) -> int:
        """How many calls there were in this pass, in the thread with the most."""
        return max(self._next.values(), default=0) if self._pass_count == pass_count else 0


class LatestCalls:
    """The latest calls of one layer in each pass, for each thread apart.

    Args:
        most: How many of each pass: as many as the selected call is from the end.
    """

    __slots__ = ("_by_pass", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_pass: dict[tuple[int, int], deque[Call]] = {}  # (pass, thread)

    def add(self, call: Call, pass_count: int) -> Call | None:
        """Add a call of the current thread; returns the one that is no longer among the latest."""
        latest = self._by_pass.setdefault((pass_count, current_thread()), deque())
        latest.append(call)
        return latest.popleft() if len(latest) > self._most else None

    @property
    def selected(self) -> list[Call]:
        """The selected call of each pass that has as many calls."""
        return [latest[0] for latest in self._by_pass.values() if len(latest) == self._most]

    def clear(self) -> None:
        """Forget all passes."""
        self._by_pass = {}


class PassStartHook(UncopiedHook):
    """The pre-hook of the model: a pass begins."""

    __slots__ = ("_model", "_on_start", "_tracker")

    def __init__(self, tracker: PassTracker, model: nn.Module, on_start: Callable[[], None]) -> None:
        self._tracker = tracker
        self._model = model
        self._on_start = on_start

    def __call__(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        tracker, replica = self._tracker, module is not self._model
        if not tracker.is_ours(module, self._model):
            return
        if not tracker.calls.begin():  # the model calls itself
            return
        if not replica:
            tracker.start_pass()
            self._on_start()
            return
        # One call of DataParallel runs one replica on each device. So a second replica on a device begins a new pass.
        device = next((tensor.device for _, tensor in containers.leaves(args)), torch.device("cpu"))
        key = weakref.ref(module) if device.type == "cpu" else device
        with tracker.lock:
            if key in tracker.replicas.values():
                tracker.start_pass()
                self._on_start()
            tracker.replicas[current_thread()] = key


class PassEndHook(UncopiedHook):
    """The forward hook of the model: the pass is complete."""

    __slots__ = ("_tracker",)

    def __init__(self, tracker: PassTracker) -> None:
        self._tracker = tracker

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        tracker = self._tracker
        if tracker.in_pass.get(current_thread()) == 1 and not in_backward_pass():
            tracker.end_pass()


class CallEndHook(PassEndHook):
    """The forward hook of the model that also runs when the model raises: one open call less."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not in_backward_pass():
            self._tracker.calls.end()

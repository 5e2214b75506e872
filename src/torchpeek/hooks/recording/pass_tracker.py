"""Which pass it is, and whose: what all layers of a recording share, and the hooks of the model as a whole."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from torchpeek.errors import InputError
from torchpeek.hooks import containers
from torchpeek.hooks.gradient_tap import GradientTap
from torchpeek.hooks.recording.storage import GradientSlot, Leaf
from torchpeek.hooks.temporary_hooks import UncopiedHook

_thread = threading.get_ident
_graph_task: Callable[[], int] = torch._C._current_graph_task_id


class EarlyStop(BaseException):
    """Ends a pass of which nothing more is wanted. Not an Exception, so that no network catches it."""


@dataclass(frozen=True, slots=True)
class OutputEdge:
    """Where the graph leaves a layer: an edge, and where a gradient goes that arrives there."""

    layer: str
    slot: GradientSlot
    source: GradientEdge | GradientTap  # a use where what comes out may have others, too

    @property
    def edges(self) -> list[GradientEdge]:
        """Where to ask for the gradient now."""
        return self.source.edges if isinstance(self.source, GradientTap) else [self.source]

    def gradient_of(self, gradients: list[Tensor | None]) -> Tensor | None:
        """The gradient, from those at the edges."""
        return self.source.gradient_of(gradients) if isinstance(self.source, GradientTap) else gradients[0]


class PassTracker:
    """What all layers of a recording share: whose pass it is, and which. Taps hold it, and it holds no tap."""

    def __init__(self, *, inputs: bool, gradients: bool, copy: bool, copy_gradients: bool, all_passes: bool) -> None:
        self.inputs = inputs
        self.gradients = gradients
        self.copy = copy
        self.copy_gradients = copy_gradients
        self.all_passes = all_passes
        self.pass_number = 0  # of the pass whose calls are kept
        self.pass_count = 0  # passes so far, also where all are kept
        self.call_order = count()
        self.thread = -1
        self.tensor_hooks: list[RemovableHandle | GradientTap] = []
        self.output_edges: list[OutputEdge] = []  # of the passes that are kept
        self.call_depth: dict[int, int] = {}  # thread -> how often the model has called itself
        self.replicas: dict[int, object] = {}  # thread -> where the replica of the model runs that it runs
        self.lock = threading.Lock()  # for replicas, which begin at the same time
        self.called_in_other_thread = False  # whether another thread called the layers, which is none of ours
        self.completed = True  # whether the last pass came to its end
        self.pending_layers: set[str] | None = None  # for an early stop: the layers that have yet to return
        self.required_layers: frozenset[str] = frozenset()  # those that it waits for in every pass
        self.early_stop: EarlyStop | None = None
        self.admit: Callable[[Leaf], None] | None = None  # sees to it that the memory stays within its bound

    def open_block(self) -> None:
        """The block begins, in this thread."""
        self.thread = _thread()
        self.call_depth.clear()
        self.called_in_other_thread, self.completed, self.early_stop = False, True, None
        if self.pending_layers is not None:
            self.pending_layers = set(self.required_layers)

    def start_pass(self) -> None:
        """A new pass: what it records replaces what the last one did."""
        self.replicas.clear()
        if not self.all_passes:
            self.output_edges.clear()
        self.called_in_other_thread = self.completed = False
        self.pass_count += 1
        if self.pending_layers is not None:
            self.pending_layers = set(self.required_layers)
        if not self.all_passes:
            self.pass_number += 1
            self.call_order = count()
            self.remove_tensor_hooks()

    def remove_tensor_hooks(self) -> None:
        """Take the hooks off the tensors of the graph."""
        for handle in self.tensor_hooks:
            handle.remove()
        self.tensor_hooks.clear()

    def end_pass(self) -> None:
        """The model returned. An early stop no more waits for layers that such a pass does not call."""
        self.completed = True
        if self.pending_layers:
            self.required_layers = (self.required_layers - self.pending_layers) or self.required_layers

    def layer_returned(self, layer: str) -> None:
        """End the pass if this was the last layer that it was for."""
        assert self.pending_layers is not None
        self.pending_layers.discard(layer)
        if not self.pending_layers and _thread() == self.thread:  # a replica's thread would only die of it
            self.early_stop = EarlyStop()
            raise self.early_stop

    def is_ours(self, replica: bool) -> bool:
        """Whether a call that is now under way belongs to the recording.

        Not where a checkpointed part runs once more in the backward pass, which is not a second call; nor replica_key
        somebody else runs the model in another thread. But DataParallel runs replicas of it in threads of its own.
        """
        if _graph_task() != -1:
            return False
        if _thread() == self.thread or replica or _thread() in self.replicas:
            return True
        self.called_in_other_thread = True
        return False


class PassStartHook(UncopiedHook):
    """When the model is called, a pass begins."""

    __slots__ = ("_model", "_on_start", "_tracker")

    def __init__(self, tracker: PassTracker, model: nn.Module, on_start: Callable[[], None]) -> None:
        self._tracker = tracker
        self._model = model
        self._on_start = on_start

    def __call__(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        tracker, replica = self._tracker, module is not self._model
        if not tracker.is_ours(replica):
            return
        if _under_vmap():
            raise InputError(
                "inside of torch.vmap a layer returns wrappers that die with it, so nothing can be recorded; run the "
                "batch as it is, or record outside"
            )
        depth = tracker.call_depth.get(_thread(), 0)
        tracker.call_depth[_thread()] = depth + 1
        if depth:  # the model calls itself
            return
        if not replica:
            tracker.start_pass()
            self._on_start()
            return
        # The replicas of one call of DataParallel make one pass: the next begins when a device comes again.
        device = next((tensor.device for _, tensor in containers.leaves(args)), torch.device("cpu"))
        replica_key = weakref.ref(module) if device.type == "cpu" else device
        with tracker.lock:
            if replica_key in tracker.replicas.values():
                tracker.start_pass()
                self._on_start()
            tracker.replicas[_thread()] = replica_key


class PassEndHook(UncopiedHook):
    """When the model returns, the pass is whole."""

    __slots__ = ("_tracker",)

    def __init__(self, tracker: PassTracker) -> None:
        self._tracker = tracker

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        tracker = self._tracker
        if tracker.call_depth.get(_thread(), 0) == 1 and tracker.is_ours(replica=False):
            tracker.end_pass()


class CallDepthHook(PassEndHook):
    """When the model returns or raises, it is no longer running."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        depths = self._tracker.call_depth
        if _graph_task() == -1 and depths.get(_thread(), 0):
            depths[_thread()] -= 1


def _under_vmap() -> bool:
    stack = torch._C._functorch.get_interpreter_stack()  # None outside of every transform
    return stack is not None and any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)

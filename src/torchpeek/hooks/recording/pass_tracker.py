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
from torchpeek.hooks.temporary_hooks import Inert

_thread = threading.get_ident
_graph_task: Callable[[], int] = torch._C._current_graph_task_id


class Stopped(BaseException):
    """Ends a pass of which nothing more is wanted. Not an Exception, so that no network catches it."""


@dataclass(frozen=True, slots=True)
class OutputEdge:
    """Where the graph leaves a layer: an edge, and where a gradient goes that arrives there."""

    layer: str
    slot: GradientSlot
    at: GradientEdge | GradientTap  # a use where what comes out may have others, too

    @property
    def edges(self) -> list[GradientEdge]:
        """Where to ask for the gradient now."""
        return self.at.edges if isinstance(self.at, GradientTap) else [self.at]

    def gradient_of(self, found: list[Tensor | None]) -> Tensor | None:
        """The gradient, from those at the edges."""
        return self.at.gradient_of(found) if isinstance(self.at, GradientTap) else found[0]


class PassTracker:
    """What all layers of a recording share: whose pass it is, and which. Taps hold it, and it holds no tap."""

    def __init__(self, *, inputs: bool, gradients: bool, copy: bool, copy_gradients: bool, every: bool) -> None:
        self.inputs = inputs
        self.gradients = gradients
        self.copy = copy
        self.copy_gradients = copy_gradients
        self.every = every
        self.number = 0  # of the pass whose calls are kept
        self.begun = 0  # passes so far, also where all are kept
        self.order = count()
        self.thread = -1
        self.handles: list[RemovableHandle | GradientTap] = []
        self.exits: list[OutputEdge] = []  # of the passes that are kept
        self.depth: dict[int, int] = {}  # thread -> how often the model has called itself
        self.replicas: dict[int, object] = {}  # thread -> where the replica of the model runs that it runs
        self.lock = threading.Lock()  # for replicas, which begin at the same time
        self.elsewhere = False  # whether another thread called the layers, which is none of ours
        self.ended = True  # whether the last pass came to its end
        self.waiting: set[str] | None = None  # for an early stop: the layers that have yet to return
        self.wanted: frozenset[str] = frozenset()  # those that it waits for in every pass
        self.stopped: Stopped | None = None
        self.admit: Callable[[Leaf], None] | None = None  # sees to it that the memory stays within its bound

    def open(self) -> None:
        """The block begins, in this thread."""
        self.thread = _thread()
        self.depth.clear()
        self.elsewhere, self.ended, self.stopped = False, True, None
        if self.waiting is not None:
            self.waiting = set(self.wanted)

    def begin(self) -> None:
        """A new pass: what it records replaces what the last one did."""
        self.replicas.clear()
        if not self.every:
            self.exits.clear()
        self.elsewhere = self.ended = False
        self.begun += 1
        if self.waiting is not None:
            self.waiting = set(self.wanted)
        if not self.every:
            self.number += 1
            self.order = count()
            self.let_go()

    def let_go(self) -> None:
        """Take the hooks off the tensors of the graph."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def end(self) -> None:
        """The model returned. An early stop no more waits for layers that such a pass does not call."""
        self.ended = True
        if self.waiting:
            self.wanted = (self.wanted - self.waiting) or self.wanted

    def returned(self, layer: str) -> None:
        """End the pass if this was the last layer that it was for."""
        assert self.waiting is not None
        self.waiting.discard(layer)
        if not self.waiting and _thread() == self.thread:  # a replica's thread would only die of it
            self.stopped = Stopped()
            raise self.stopped

    def is_ours(self, replica: bool) -> bool:
        """Whether a call that is now under way belongs to the recording.

        Not where a checkpointed part runs once more in the backward pass, which is not a second call; nor where
        somebody else runs the model in another thread. But DataParallel runs replicas of it in threads of its own.
        """
        if _graph_task() != -1:
            return False
        if _thread() == self.thread or replica or _thread() in self.replicas:
            return True
        self.elsewhere = True
        return False


class Begun(Inert):
    """When the model is called, a pass begins."""

    __slots__ = ("_model", "_passes", "_then")

    def __init__(self, passes: PassTracker, model: nn.Module, then: Callable[[], None]) -> None:
        self._passes = passes
        self._model = model
        self._then = then

    def __call__(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        passes, replica = self._passes, module is not self._model
        if not passes.is_ours(replica):
            return
        if _under_vmap():
            raise InputError(
                "inside of torch.vmap a layer returns wrappers that die with it, so nothing can be recorded; run the "
                "batch as it is, or record outside"
            )
        depth = passes.depth.get(_thread(), 0)
        passes.depth[_thread()] = depth + 1
        if depth:  # the model calls itself
            return
        if not replica:
            passes.begin()
            self._then()
            return
        # The replicas of one call of DataParallel make one pass: the next begins when a device comes again.
        device = next((tensor.device for _, tensor in containers.leaves(args)), torch.device("cpu"))
        where = weakref.ref(module) if device.type == "cpu" else device
        with passes.lock:
            if where in passes.replicas.values():
                passes.begin()
                self._then()
            passes.replicas[_thread()] = where


class Returned(Inert):
    """When the model returns, the pass is whole."""

    __slots__ = ("_passes",)

    def __init__(self, passes: PassTracker) -> None:
        self._passes = passes

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        passes = self._passes
        if passes.depth.get(_thread(), 0) == 1 and passes.is_ours(replica=False):
            passes.end()


class Ended(Returned):
    """When the model returns or raises, it is no longer running."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        depth = self._passes.depth
        if _graph_task() == -1 and depth.get(_thread(), 0):
            depth[_thread()] -= 1


def _under_vmap() -> bool:
    stack = torch._C._functorch.get_interpreter_stack()  # None outside of every transform
    return stack is not None and any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)

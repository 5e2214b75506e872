"""Which backward pass runs now, also where autograd functions run backward passes of their own inside it.

A reentrant checkpoint does so: its part of the model has a graph of its own, whose backward pass runs inside the outer
one. A tensor that is used inside of such a part and elsewhere gets its gradient in parts, one from each of these
passes. Torch gives each of them another number, and nothing says which belong together. So:

1. A BackwardPass stands for the outermost pass, the user's own. The engine holds it as a callback, so it is alive until
   that pass ends, also where it ends with an exception.
2. Inside an inner pass, the Python frame of the `backward` of an autograd function is on the stack. If the BackwardPass
   of this thread is alive, it is the outermost pass. If not, a new one is made, and is given to the engine when that
   function returns to the outermost pass. Until then the frame identifies the pass.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.autograd.function import BackwardCFunction

from torchpeek.hooks.frames import first_argument, frames_from

graph_task: Callable[[], int] = torch._C._current_graph_task_id
"""The identifier of the backward pass that runs in the current thread; -1 outside of one."""


def in_backward_pass() -> bool:
    """Whether a backward pass runs in this thread. A layer that is called then belongs to a checkpointed part."""
    return graph_task() != -1


class BackwardPass:
    """The backward pass that the user runs. It is alive while it runs.

    Attributes:
        stored: What hooks store until the pass ends, each under a key of its own.
    """

    __slots__ = ("__weakref__", "stored")

    def __init__(self) -> None:
        self.stored: dict[object, Any] = {}

    def __call__(self) -> None:
        """Do nothing: the engine calls it when the pass ends, and holds it until then."""


class _ThreadState(threading.local):
    """What is known of the pass that runs in a thread."""

    def __init__(self) -> None:
        self.running: Callable[[], BackwardPass | None] = lambda: None
        # A pass that the engine does not hold yet, and the outermost frame of an autograd function in it.
        self.waiting: tuple[BackwardPass, FrameType] | None = None


_THREAD = _ThreadState()
_BY_TASK: weakref.WeakValueDictionary[int, BackwardPass] = weakref.WeakValueDictionary()


def current_backward_pass() -> BackwardPass:
    """The outermost backward pass in which this hook runs. Must be called by a hook of a tensor or of a node."""
    task = graph_task()
    found = _BY_TASK.get(task)
    if found is None:
        frame = _outermost_function()
        found = _begin(task) if frame is None else _of_frame(frame)
        _BY_TASK[task] = found
    return found


def _begin(task: int) -> BackwardPass:
    begun = BackwardPass()
    _hold(begun, task)
    return begun


def _hold(backward_pass: BackwardPass, task: int) -> None:
    """Let the engine hold the pass until the graph task that runs now ends."""
    Variable._execution_engine.queue_callback(backward_pass)
    _THREAD.running = weakref.ref(backward_pass)
    _BY_TASK[task] = backward_pass


def _of_frame(frame: FrameType) -> BackwardPass:
    """The pass in which this is the outermost frame of an autograd function's backward."""
    if _THREAD.waiting is not None:
        backward_pass, waiting_frame = _THREAD.waiting
        if waiting_frame is frame:
            return backward_pass
        _THREAD.waiting = None  # that pass ended with an exception
    running = _THREAD.running()
    if running is not None:
        return running
    begun = BackwardPass()
    _THREAD.waiting = begun, frame

    def on_return(*gradients: Any) -> None:
        handle.remove()
        if _THREAD.waiting is not None:
            _hold(_THREAD.waiting[0], graph_task())
            _THREAD.waiting = None

    handle = _node_of(frame).register_hook(on_return)
    return begun


def _outermost_function() -> FrameType | None:
    """The outermost frame of the `backward` of an autograd function; None outside of such functions."""
    outermost = None
    for frame in frames_from(sys._getframe(1)):
        if frame.f_code.co_name in ("backward", "vjp") and _node_of(frame) is not None:
            outermost = frame
    return outermost


def _node_of(frame: FrameType) -> Any:
    node = first_argument(frame)
    return node if isinstance(node, BackwardCFunction) else None


def with_earlier_parts(key: object, part: Tensor) -> Tensor:
    """The sum of a part of a gradient and of the parts that arrived before it in the same backward pass.

    Args:
        key: Identifies the gradient.
        part: The part that arrives now.
    """
    stored = current_backward_pass().stored
    total: Tensor = stored[key] + part if key in stored else part
    stored[key] = unshared(total)
    return total


def unshared(gradient: Tensor) -> Tensor:
    """An alias of a gradient. Torch copies a gradient of a leaf that somebody else refers to; an alias is no such."""
    if gradient.requires_grad:
        return gradient
    try:
        return gradient.detach()
    except RuntimeError:  # a gradient of `autograd.grad(..., is_grads_batched=True)` has no alias
        return gradient

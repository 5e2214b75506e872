"""Forward hooks that come off again, whatever happens in between."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn
from torch.utils.hooks import RemovableHandle

ForwardHook: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
"""Called as `hook(module, args, kwargs, output)` when the module returns; what is not None replaces the output."""


@contextmanager
def attached(hooks: Iterable[tuple[nn.Module, ForwardHook]]) -> Iterator[None]:
    """Register these forward hooks, after those already there, and remove just them on every exit."""
    handles: list[RemovableHandle] = []
    try:
        with uninterrupted():
            for module, hook in hooks:
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done, so that what it changes is never left half changed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield  # Python handles signals in the main thread only
        return
    received: list[tuple[int, Any]] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if received and callable(previous):
            previous(*received[0])

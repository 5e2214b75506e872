"""Delay Ctrl-C while a change is half done, and let it through while a model runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any


class _Gate:
    """The SIGINT handler of the main thread inside an `uninterrupted` or `protected` block."""

    def __init__(self, previous: Any) -> None:
        self.previous = previous
        self.open = False
        self.finished = False  # its block is done, but a gate that was installed later is still the handler
        self.protected: frozenset[CodeType] = frozenset()
        self.pending: tuple[int, FrameType | None] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.open or self._is_protected(frame):
            self.pending = number, frame
            return
        self.open = False  # the clean-up that follows is not interrupted again
        self.previous(number, frame)
        self.open = True  # reached if the user's own handler did not raise

    def _is_protected(self, frame: FrameType | None) -> bool:
        """Whether the interrupted code is protected, or was called by protected code."""
        steps = 0
        while self.protected and frame is not None and steps < 8:
            if frame.f_code in self.protected:
                return True
            frame, steps = frame.f_back, steps + 1
        return False

    def deliver(self) -> None:
        """Pass a delayed interrupt on to the previous handler."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            self.previous(*pending)

    def let_through(self) -> None:
        """Let interrupts through from now on, also the one that was delayed before."""
        self.open = True  # first, so that none is delayed between the two steps
        while self.pending is not None:
            self.open = False  # the clean-up after it is not interrupted again
            self.deliver()
            self.open = True  # reached if the user's own handler did not raise


def _current_handler() -> Any:
    """The SIGINT handler; None outside the main thread, which is the only one in which Python handles signals."""
    return signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block, except in `interruptible` parts of it.

    Blocks may be nested, also inside an interruptible part.
    """
    previous = _current_handler()
    if isinstance(previous, _Gate):
        was_open, previous.open = previous.open, False
        try:
            yield
        finally:
            if was_open:
                previous.let_through()
        return
    if not callable(previous):
        yield
        return
    gate = _Gate(previous)
    signal.signal(signal.SIGINT, gate)
    # From here on an interrupt raises nothing, so none can come between this line and the `try`.
    try:
        yield
    finally:
        gate.open = False
        if signal.getsignal(signal.SIGINT) is gate:  # otherwise the block has installed another handler
            signal.signal(signal.SIGINT, previous)
        gate.deliver()


@contextmanager
def protected(*codes: CodeType) -> Iterator[None]:
    """Let Ctrl-C through in this block, but not in the code with these code objects.

    There it is delayed to the end of an `uninterrupted` block. This is for `__exit__` methods: Python may raise
    KeyboardInterrupt at the first instruction of one, before it can protect itself.

    Args:
        codes: The code objects of the functions to protect.

    Yields:
        None.
    """
    previous = _current_handler()
    if not callable(previous):
        yield
        return
    gate = _Gate(previous)
    gate.protected = frozenset(codes)
    gate.open = True
    signal.signal(signal.SIGINT, gate)
    try:
        yield
    finally:
        gate.finished = True
        if signal.getsignal(signal.SIGINT) is gate:
            while isinstance(previous, _Gate) and previous.finished:
                previous = previous.previous
            signal.signal(signal.SIGINT, previous)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C through in a long part of an `uninterrupted` block, also one that was delayed before."""
    gate = _current_handler()
    if not isinstance(gate, _Gate):
        yield
        return
    was_open = gate.open
    try:
        gate.let_through()
        yield
    finally:
        gate.open = was_open


def let_interrupts_through() -> None:
    """Raise now a Ctrl-C that an `uninterrupted` block has delayed."""
    with interruptible():
        pass

"""Ctrl-C, held back while something is half changed, let through while a model runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any


class _Gate:
    """What SIGINT meets in the main thread while an `uninterrupted` block is under way."""

    def __init__(self, previous: Any) -> None:
        self.previous = previous
        self.open = False
        self.gone = False  # it is done with, but another one has been put before it meanwhile
        self.protected: frozenset[CodeType] = frozenset()
        self.pending: tuple[int, FrameType | None] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.open or self._is_in(frame):
            self.pending = number, frame
            return
        self.open = False  # what now cleans up is not interrupted again
        self.previous(number, frame)
        self.open = True  # the user's own handler did not raise

    def _is_in(self, frame: FrameType | None) -> bool:
        """Whether the code that was interrupted is one of those protected, or called by one."""
        steps = 0
        while self.protected and frame is not None and steps < 8:
            if frame.f_code in self.protected:
                return True
            frame, steps = frame.f_back, steps + 1
        return False

    def deliver(self) -> None:
        if self.pending is not None:
            pending, self.pending = self.pending, None
            self.previous(*pending)


def _in_force() -> Any:
    """The handler of SIGINT; None in other threads than the main one, the only one in which Python handles signals."""
    return signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done, but for `interruptible` parts of it. May be nested, also in such a part."""
    previous = _in_force()
    if isinstance(previous, _Gate):
        was_open, previous.open = previous.open, False
        try:
            yield
        finally:
            if was_open:
                previous.deliver()
                previous.open = True
        return
    if not callable(previous):
        yield
        return
    gate = _Gate(previous)
    signal.signal(signal.SIGINT, gate)
    # From here on an interrupt raises nothing, so none can come between this line and the next.
    try:
        yield
    finally:
        gate.open = False
        if signal.getsignal(signal.SIGINT) is gate:  # else the block has put a handler of its own there
            signal.signal(signal.SIGINT, previous)
        gate.deliver()


@contextmanager
def protected(*codes: CodeType) -> Iterator[None]:
    """Ctrl-C comes through, but not in this code: there it waits for an `uninterrupted` block to end.

    Python may raise KeyboardInterrupt at the very first instruction of an `__exit__`, before it has done a thing.
    """
    previous = _in_force()
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
        gate.gone = True
        if signal.getsignal(signal.SIGINT) is gate:
            while isinstance(previous, _Gate) and previous.gone:
                previous = previous.previous
            signal.signal(signal.SIGINT, previous)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C through again, also one that came before; for the long parts of an `uninterrupted` block."""
    gate = _in_force()
    if not isinstance(gate, _Gate):
        yield
        return
    was_open = gate.open
    gate.deliver()
    gate.open = True
    try:
        yield
    finally:
        gate.open = was_open


def let_interrupts_through() -> None:
    """Now is a good moment for a Ctrl-C that came in an `uninterrupted` block."""
    with interruptible():
        pass

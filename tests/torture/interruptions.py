"""Exceptions that arrive from outside: at a chosen instruction of torchpeek's code, or at a chosen moment."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torchpeek

SOURCE = str(Path(torchpeek.__file__).parent)


class Arrived(Exception):
    """What the handlers of the attempts raise. `except Exception` takes it, as it takes a TimeoutError."""


class Signals:
    """Handlers for all signals of the attempts. They count what arrives, and raise.

    `raising` is False for handlers that only count. With `alarm_after`, the first handler that is called sends SIGALRM
    after these seconds.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.received: list[int] = []
        self.raising = True
        self.alarm_after: float | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if self.alarm_after is not None:
            seconds, self.alarm_after = self.alarm_after, None
            signal.setitimer(signal.ITIMER_REAL, seconds)
        if self.raising:
            raise KeyboardInterrupt if number == signal.SIGINT else Arrived(signal.Signals(number).name)

    def install(self, numbers: tuple[signal.Signals, ...]) -> None:
        for number in numbers:
            signal.signal(number, self.handle)


class Instructions:
    """Counts the instructions that torchpeek's own code executes in a block, and calls `strike` at one of them.

    Args:
        strike_at: The number of the instruction, from 1; 0 to count only.
        strike: Called before that instruction is executed. It may raise.
    """

    def __init__(self, strike_at: int = 0, strike: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        self.place = ""
        self._strike_at = strike_at
        self._strike = strike

    @contextmanager
    def followed(self) -> Iterator[None]:
        former = sys.gettrace()
        sys.settrace(self._of_call)
        try:
            yield
        finally:
            sys.settrace(former)

    def _of_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._of_instruction

    def _of_instruction(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self.count += 1
            if self.count == self._strike_at:
                name = Path(frame.f_code.co_filename).relative_to(SOURCE)
                self.place = f"{name}:{frame.f_lineno} {frame.f_code.co_qualname}, instruction {frame.f_lasti}"
                self._strike()
        return self._of_instruction


@contextmanager
def sent_after(seconds: float, number: int) -> Iterator[None]:
    """Send this process a signal after some time, from another thread. It has been sent when the block has ended."""

    def send() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        _wait_for(thread)


def raise_in(thread: int, error: type[BaseException]) -> None:
    """Make a thread raise an exception at its next check for such ones. Nothing can hold it back."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


@contextmanager
def raised_after(seconds: float, error: type[BaseException]) -> Iterator[None]:
    """Raise an exception in this thread after some time, unless the block has ended by then."""
    ended, thread = threading.Event(), threading.get_ident()
    guard = threading.Lock()

    def strike() -> None:
        ended.wait(seconds)
        with guard:
            if not ended.is_set():
                raise_in(thread, error)

    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    try:
        yield
    finally:
        with guard:
            ended.set()
        _wait_for(striker)


def _wait_for(thread: threading.Thread) -> None:
    """Wait for the end of a thread, whatever arrives meanwhile; the last of what arrived is raised."""
    arrived: BaseException | None = None
    while thread.is_alive():
        try:
            thread.join()
        except BaseException as error:
            arrived = error
    if arrived is not None:
        raise arrived

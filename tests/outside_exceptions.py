"""Exceptions from outside, at chosen instructions of torchpeek's own code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torchpeek

SOURCE = str(Path(torchpeek.__file__).parent)


class FromOutside(Exception):
    """What an alarm, or another thread, raises."""


def raise_it(number: int = 0, frame: FrameType | None = None) -> None:
    """The handler of a signal; also raises where it is called directly, as another thread's exception does."""
    raise FromOutside


def raise_signal(number: int) -> Callable[[], None]:
    def strike() -> None:
        signal.raise_signal(number)

    return strike


STRIKES: dict[str, Callable[[], None]] = {
    "another thread": raise_it,
    **{name: raise_signal(getattr(signal, name)) for name in ("SIGINT", "SIGALRM", "SIGTERM") if hasattr(signal, name)},
}


HANDLED = [getattr(signal, name) for name in STRIKES if hasattr(signal, name)]
"""The signals among the strikes."""


@contextmanager
def raising_handlers() -> Iterator[None]:
    """Inside the block, the handlers of these signals raise. That of Ctrl-C is Python's own."""
    former = {number: signal.getsignal(number) for number in HANDLED}
    for number in HANDLED:
        if number != signal.SIGINT:
            signal.signal(number, raise_it)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def struck(action: Callable[[], Any], number: int, strike: Callable[[], None]) -> tuple[int, str]:
    """Call `action`, and strike before the instruction of torchpeek with this number.

    Returns how many instructions there were until it ended, and where it struck.
    """
    count, place = 0, ""

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count, place
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            count += 1
            if count == number:
                place = f"{frame.f_code.co_qualname}, line {frame.f_lineno}, instruction {frame.f_lasti}"
                strike()
        return trace

    former = sys.gettrace()
    try:
        sys.settrace(trace)
        action()
    except (FromOutside, KeyboardInterrupt):
        assert place
    else:
        assert not place, f"what struck at {place} was lost"
    finally:
        sys.settrace(former)
    return count, place


def numbers(action: Callable[[], Any], most: int) -> list[int]:
    """Instructions at which to strike: all, or the first and last ones and some between, evenly spread."""
    action()  # caches are filled
    total, _ = struck(action, 0, raise_it)
    if total <= most:
        return list(range(1, total + 1))
    ends = most // 3
    middle = range(ends + 1, total - ends, max(1, (total - 2 * ends) // (most - 2 * ends)))
    return [*range(1, ends + 1), *middle, *range(total - ends + 1, total + 1)]

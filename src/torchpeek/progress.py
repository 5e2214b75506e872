"""Show the progress of long computations in a terminal, or in a notebook that has ipywidgets."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torchpeek.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# A computation that takes less time shows nothing.
_MIN_SECONDS = 2.0


@cache
def console() -> Console:
    """The console that shows progress: stderr or the notebook. All bars share it, so they are below each other."""
    from rich.console import Console

    return Console(stderr=True)


_LISTENER: ContextVar[Callable[[int], None] | None] = ContextVar("listener", default=None)


@contextmanager
def reported_to(listener: Callable[[int], None]) -> Iterator[None]:
    """Report the steps of all computations inside the block to one function, in place of a bar for each of them.

    Args:
        listener: Called with the number of steps that were done since its last call.
    """
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar with an estimate of the remaining time.

    It is shown in a terminal, and in a notebook that has ipywidgets, as soon as the whole computation is expected to
    take more than two seconds.

    Args:
        what: The text beside the bar.
        total: The number of steps.

    Yields:
        A function to call with the number of steps that were done since its last call.
    """
    if (listener := _LISTENER.get()) is not None:
        yield listener
        return
    bar = _Bar(what, total)
    try:
        yield bar.advance
    finally:
        bar.close()


class _Bar:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._start = time.monotonic()
        self._shown: Progress | None = None
        self._disabled = not (sys.stderr is not None and sys.stderr.isatty()) and "IPython" not in sys.modules

    def advance(self, count: int) -> None:
        self._done += count
        if self._shown is not None:
            self._shown.update(self._shown.task_ids[0], completed=self._done)
        elif not self._disabled and self._done < self._total:
            elapsed = time.monotonic() - self._start
            if elapsed > _MIN_SECONDS / 4 and elapsed * self._total / max(1, self._done) > _MIN_SECONDS:
                self._show()

    def close(self) -> None:
        if self._shown is not None:
            self._shown.stop()

    def _show(self) -> None:
        from rich.errors import LiveError
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._disabled = True  # one attempt is enough
        target = console()
        if target.is_jupyter and find_spec("ipywidgets") is None:
            return  # rich would warn in a cell of the user's, and show nothing
        if not (target.is_terminal or target.is_jupyter):
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=target, transient=True)
        bar.add_task(printable(self._what), total=self._total, completed=self._done)
        try:
            bar.start()
        except LiveError:  # older versions of rich show one bar at a time
            return
        self._shown = bar

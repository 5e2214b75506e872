"""How far many passes have come, for whoever watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# Nothing is shown of what takes less.
_SECONDS = 2.0


@cache
def console() -> Console:
    """The one that progress is shown on: stderr, or the notebook. One for all, so that bars stand below each other."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with how many more are done; it shows a bar with an estimate where that is worth it.

    That is on a terminal and in a notebook, as soon as the whole looks to take over two seconds.
    """
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
        self._given_up = not (sys.stderr is not None and sys.stderr.isatty()) and "IPython" not in sys.modules

    def advance(self, count: int) -> None:
        self._done += count
        if self._shown is not None:
            self._shown.update(self._shown.task_ids[0], completed=self._done)
        elif not self._given_up and self._done < self._total:
            elapsed = time.monotonic() - self._start
            if elapsed > _SECONDS / 4 and elapsed * self._total / max(1, self._done) > _SECONDS:
                self._show()

    def close(self) -> None:
        if self._shown is not None:
            self._shown.stop()

    def _show(self) -> None:
        from rich.errors import LiveError
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._given_up = True  # now or never
        where = console()
        if not (where.is_terminal or where.is_jupyter):
            return
        columns = (TextColumn(self._what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=where, transient=True)
        bar.add_task(self._what, total=self._total, completed=self._done)
        try:
            bar.start()
        except LiveError:  # an older rich shows one bar at a time
            return
        self._shown = bar

"""How a data-set run shows its progress: a bar on a terminal, else a line every ten seconds, and a file on request."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from torchpeek.cli.signals import raise_if_interrupted
from torchpeek.cli.terminal import print_progress
from torchpeek.progress import console, reported_to
from torchpeek.runs.progress import RunProgress
from torchpeek.store import write_whole

_SECONDS = 10.0
"""Between two lines, and between two versions of the file."""


class RunProgressView:
    """Shows the progress of a run; a context manager, whose instance is the `report` of `run`.

    Args:
        prometheus: The file for Prometheus, or None.
    """

    def __init__(self, prometheus: Path | None = None) -> None:
        self.progress: RunProgress | None = None
        self._prometheus, self._printed = prometheus, time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> RunProgressView:
        self._silent = reported_to(lambda count: None)  # the engine's own bars, one for each batch, say nothing here
        self._silent.__enter__()
        if sys.stderr.isatty():
            words = TextColumn("{task.fields[words]}", markup=False)
            self._bar = Progress(BarColumn(bar_width=20), words, console=console(), transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._silent.__exit__(None, None, None)
        if self._bar is not None:
            self._bar.stop()
        if self.progress is not None and self._prometheus is not None:
            self._write(self.progress)

    def __call__(self, progress: RunProgress) -> None:
        """Show a progress."""
        raise_if_interrupted()
        first, self.progress = self.progress is None, progress
        if self._bar is not None:
            completed, words = progress.done + progress.skipped, progress.line()
            if self._task is None:
                self._task = self._bar.add_task("", total=progress.total, completed=completed, words=words)
            self._bar.update(self._task, total=progress.total, completed=completed, words=words)
        due = time.monotonic() - self._printed >= _SECONDS
        if due and self._bar is None:
            print_progress(progress.line())
        if (due or first) and self._prometheus is not None:
            self._write(progress)
        if due:
            self._printed = time.monotonic()

    def _write(self, progress: RunProgress) -> None:
        assert self._prometheus is not None
        write_whole(self._prometheus, progress.prometheus().encode())

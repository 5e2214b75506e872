"""Print results on stdout and progress on stderr, for a terminal and for a pipe."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple, Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from torchpeek.cli.signals import raise_if_interrupted
from torchpeek.cli.terminal import print_progress, print_text
from torchpeek.printable import printable, printable_lines
from torchpeek.progress import console, reported_to
from torchpeek.store import json_text


class Advance(Protocol):
    """Reports that `count` more are done."""

    def __call__(self, count: int) -> None: ...


def print_json(value: Any) -> None:
    """Print a value as JSON, in ASCII where stdout is not UTF-8."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    sys.stdout.write(json_text(value, ascii_only=encoding != "utf8"))


def print_written(folder: Path, *contents: str, page: str = "") -> None:
    """Print the last lines of a command with --out: the folder, what was written to it, and its page, if it has one."""
    print_text(f"written to {folder}/: {', '.join(filter(None, contents))}")
    if page:
        print_text(f"report: {folder / page}")


def counted(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`, and an empty string for 0."""
    return f"{number} {noun}{'s' if number > 1 else ''}" if number else ""


def print_skipped(skipped: Mapping[str, str], total: int) -> None:
    """Print the skipped files with the reason for each."""
    for file, reason in skipped.items():
        print_text(*f"skipped {printable(file)}: {printable_lines(reason)}".split("\n"))
    if skipped:
        print_text(f"{len(skipped)} of {total} pictures skipped")


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, names: int = 1, prose: Collection[str] = ()
) -> None:
    """Print a table that fits the terminal, in which names and paths are never cut or folded.

    Where the rows are wider than the terminal, each becomes its names, and its fields indented below them. Where stdout
    is no terminal, the width is that of the variable COLUMNS, or else without a limit.

    Args:
        header: The names of the columns.
        rows: The cells.
        names: The number of columns, from the first, that name the row.
        prose: The columns whose text may be folded between words.
    """
    lines = table_lines(header, rows, _width(), names=names, prose=prose)
    if sys.stdout.isatty():
        terminal = Console(soft_wrap=True, highlight=False)
        for line in lines:
            terminal.print(Text(line.text, "bold" if line.bold else ""))
    else:
        sys.stdout.write("".join(f"{line.text}\n" for line in lines))


class TableLine(NamedTuple):
    """A line of a table."""

    text: str
    bold: bool = False


def table_lines(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None,
    *,
    names: int = 1,
    prose: Collection[str] = (),
) -> list[TableLine]:
    """The lines of a table for a terminal of that width: columns where they fit, else stacked rows."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = _column_widths(header, cells, width, prose)
    if widths is None:
        assert width is not None
        lines, title = [], ""
        for row in cells:
            if (row_title := "  ".join(row[:names])) != title:  # rows of one picture stand below its name
                lines.append(TableLine(title := row_title, bold=True))
            lines += _fields(header[names:], row[names:], width, prose)
        return lines
    lines = [TableLine(_columns(header, widths), bold=True)]
    for row in cells:
        folded = [
            wrap(cell, limit, break_long_words=False, break_on_hyphens=False) or [""] if name in prose else [cell]
            for name, cell, limit in zip(header, row, widths, strict=True)
        ]
        lines += [TableLine(_columns(line, widths)) for line in zip_longest(*folded, fillvalue="")]
    return lines


_FEWEST_OF_PROSE = 24  # columns, in which prose can be read


def _column_widths(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, prose: Collection[str]
) -> list[int] | None:
    """The widths of the columns. None where they do not fit, even with the prose folded."""
    widths = [max(cell_len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    room = None if width is None else width - 2 * (len(header) - 1)
    if room is None or sum(widths) <= room:
        return widths
    folded = [column for column, name in enumerate(header) if name in prose]
    room -= sum(each for column, each in enumerate(widths) if column not in folded)
    for column in sorted(folded, key=lambda column: widths[column]):  # a short one leaves its room to the others
        widths[column] = min(widths[column], room // len(folded))
        room -= widths[column]
        folded = folded[1:]
        if widths[column] < min(_FEWEST_OF_PROSE, max(cell_len(row[column]) for row in [header, *rows])):
            return None
    return widths if room >= 0 else None


def _columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _fields(header: Sequence[str], cells: Sequence[str], width: int, prose: Collection[str]) -> Iterator[TableLine]:
    """The fields of a stacked row, indented: as many in a line as fit. Only prose is folded."""
    line = ""
    for name, cell in zip(header, cells, strict=True):
        field = f"{name}: {cell}"
        if not cell:
            continue
        if line and cell_len(f"  {line}   {field}") > width:
            yield TableLine(f"  {line}")
            line = ""
        if name in prose and cell_len(f"  {field}") > width:
            parts = wrap(field, max(10, width - 2), break_long_words=False, break_on_hyphens=False)
            yield from (TableLine(f"  {part}") for part in parts)
        else:
            line = f"{line}   {field}" if line else field
    if line:
        yield TableLine(f"  {line}")


def _width() -> int | None:
    """The width to print in; None without a limit."""
    if sys.stdout.isatty():
        return Console().width
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() and int(columns) else None


@contextmanager
def progress(activity: str, total: int, *, steps: int = 1) -> Iterator[Advance]:
    """Show progress on stderr: a bar on a terminal, else plain lines.

    Args:
        activity: The text beside the bar.
        total: The number of pictures.
        steps: About how many steps of the engine one picture takes. Above 1, the progress within a picture is shown.
    """
    counter = _Counter(total, steps)
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console(), transient=True) as bar:  # the console of the engine's bars
            task = bar.add_task(printable(activity), total=total * steps, done=f"0/{total}")

            def show() -> None:
                bar.update(task, completed=counter.completed, done=f"{counter.done}/{total}")

            with _within(counter, show):
                yield lambda count: counter.advance(count, show)
    else:
        lines = _Lines(activity, counter)
        with _within(counter, lines.within):
            yield lambda count: counter.advance(count, lines.after)


@contextmanager
def _within(counter: _Counter, show: Callable[[], None]) -> Iterator[None]:
    """Count the steps of the engine inside the block."""
    if counter.steps == 1:
        yield
        return
    with reported_to(lambda count: counter.step(count, show)):
        yield


class _Counter:
    """How many pictures are done, and how far the next one is."""

    def __init__(self, total: int, steps: int) -> None:
        self.total, self.steps, self.done, self._step = total, steps, 0, 0

    @property
    def completed(self) -> int:
        """The number of steps that are done. A picture is complete only when it is reported so."""
        return self.done * self.steps + min(self._step, self.steps - 1)

    @property
    def share(self) -> float:
        """The share of the picture that is being worked on."""
        return min(self._step, self.steps - 1) / self.steps

    def step(self, count: int, show: Callable[[], None]) -> None:
        self._step += count
        show()

    def advance(self, count: int, show: Callable[[], None]) -> None:
        raise_if_interrupted()
        self.done, self._step = self.done + count, 0
        show()


class _Lines:
    """Progress in lines: at most about twenty for all pictures, and one for each half minute within a picture."""

    def __init__(self, activity: str, counter: _Counter) -> None:
        self._activity, self._counter, self._printed, self._time = activity, counter, 0, time.monotonic()

    def after(self) -> None:
        done, total = self._counter.done, self._counter.total
        if done - self._printed >= max(1, total // 20) or done == total:
            self._print(f"{done} of {total}")
            self._printed = done

    def within(self) -> None:
        if time.monotonic() - self._time >= _SECONDS_BETWEEN_LINES:
            number, total = self._counter.done + 1, self._counter.total
            self._print(f"{100 * self._counter.share:.0f} % of picture {number} of {total}")

    def _print(self, words: str) -> None:
        print_progress(f"{self._activity}: {words}")
        self._time = time.monotonic()


_SECONDS_BETWEEN_LINES = 30.0

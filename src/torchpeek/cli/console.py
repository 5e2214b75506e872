"""Print results on stdout and progress on stderr, for a terminal and for a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from torchpeek.progress import console
from torchpeek.store import json_text


class Advance(Protocol):
    """Reports that `count` more are done."""

    def __call__(self, count: int) -> None: ...


def print_json(value: Any) -> None:
    """Print a value as JSON, in ASCII where stdout is not UTF-8."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    sys.stdout.write(json_text(value, ascii_only=encoding != "utf8"))


def print_written(folder: Path, *contents: str) -> None:
    """Print the last line of a command with --out: the folder, and what was written to it."""
    print(f"written to {folder}/: {', '.join(filter(None, contents))}")


def counted(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`, and an empty string for 0."""
    return f"{number} {noun}{'s' if number > 1 else ''}" if number else ""


def print_skipped(skipped: Mapping[str, str], total: int) -> None:
    """Print the skipped files with the reason for each."""
    for file, reason in skipped.items():
        print(f"skipped {file}: {reason}")
    if skipped:
        print(f"{len(skipped)} of {total} pictures skipped")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that fits the terminal. Where stdout is no terminal, no cell is cut or folded."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if sys.stdout.isatty():
        Console().print(table)
    else:
        wide = Console(width=10_000)
        sys.stdout.write("".join(line.rstrip() + "\n" for line in _plain(wide, table).splitlines()))


@contextmanager
def progress(activity: str, total: int) -> Iterator[Advance]:
    """Show progress on stderr: a bar on a terminal, else plain lines, at most about twenty."""
    if sys.stderr.isatty():
        columns = (TextColumn(activity), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console(), transient=True) as bar:  # the console of the engine's bars
            task = bar.add_task(activity, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        done, step, printed = 0, max(1, total // 20), 0

        def advance(count: int) -> None:
            nonlocal done, printed
            done += count
            if done - printed >= step or done == total:
                printed = done
                sys.stderr.write(f"{activity}: {done} of {total}\n")

        yield advance


def _plain(console: Console, table: Table) -> str:
    with console.capture() as captured:
        console.print(table)
    return captured.get()

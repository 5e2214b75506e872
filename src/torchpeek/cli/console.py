"""Results on stdout, progress on stderr; a table for people and for pipes."""

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
    """Called with how many more are done."""

    def __call__(self, count: int) -> None: ...


def print_json(value: Any) -> None:
    """For machines."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    sys.stdout.write(json_text(value, ascii_only=encoding != "utf8"))


def print_written(folder: Path, *what: str) -> None:
    """Where, and what: the last line of a command that was given --out."""
    print(f"written to {folder}/: {', '.join(filter(None, what))}")


def counted(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`, and nothing for 0."""
    return f"{number} {noun}{'s' if number > 1 else ''}" if number else ""


def print_skipped(skipped: Mapping[str, str], total: int) -> None:
    """What was left out, and why."""
    for file, why in skipped.items():
        print(f"skipped {file}: {why}")
    if skipped:
        print(f"{len(skipped)} of {total} pictures skipped")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Fits a terminal; where stdout is none, no cell is cut or folded."""
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
def progress(what: str, total: int) -> Iterator[Advance]:
    """A bar on stderr where it is a terminal, and plain lines, at most twenty, where it is not."""
    if sys.stderr.isatty():
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console(), transient=True) as bar:  # the one that the engine's bars are on
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        done, step, said = 0, max(1, total // 20), 0

        def advance(count: int) -> None:
            nonlocal done, said
            done += count
            if done - said >= step or done == total:
                said = done
                sys.stderr.write(f"{what}: {done} of {total}\n")

        yield advance


def _plain(console: Console, table: Table) -> str:
    with console.capture() as captured:
        console.print(table)
    return captured.get()

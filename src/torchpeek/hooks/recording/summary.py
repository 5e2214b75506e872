"""A recording in words: what is stored, as cells of a table, and the table as text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from torchpeek.hooks import containers
from torchpeek.hooks.recording.running_statistics import RunningStatistics
from torchpeek.hooks.recording.storage import GradientSlot, Leaf, StoredTensor

Cells: TypeAlias = dict[str, str]
"""Column -> the text of one row in it."""

WIDTH = 100
"""The columns of a terminal that a table may take."""

_MOST_ROWS = 60  # of a table of calls
_MOST_PARTS = 8  # of the tensors in one cell
_MOST_LETTERS = 60  # of a value that is no tensor


def describe(value: Any) -> str:
    """The shapes and dtypes of the stored tensors in a container, as text."""
    texts = [_leaf_text(leaf) for _, leaf in containers.leaves(value, Leaf)]
    return _shortened(texts) or "no tensor"


def describe_gradient(gradients: Any, values: Any) -> str:
    """The same for the gradients of values that are or are not recorded: "as output" stands for the same shapes."""
    slots = [slot for _, slot in containers.leaves(gradients, Leaf)]
    arrived = [slot for slot in slots if not isinstance(slot, GradientSlot) or slot.leaf is not None]
    if not arrived:
        return "none arrived" if slots else "no tensor"
    text = _shortened([_leaf_text(slot) for slot in slots])
    return "the same" if values is not None and text == describe(values) else text


def describe_parameters(parameters: Mapping[str, Leaf]) -> str:
    """The names and shapes of parameters, as text."""
    return _shortened([f"{name} {_leaf_text(leaf)}" for name, leaf in parameters.items()]) or "none"


def _leaf_text(leaf: Leaf) -> str:
    if isinstance(leaf, GradientSlot):
        return "none" if leaf.leaf is None else _leaf_text(leaf.leaf)
    if isinstance(leaf, StoredTensor):
        return _tensor_text(leaf.tensor)
    if isinstance(leaf, RunningStatistics):
        return repr(leaf).removeprefix("RunningStatistics(").removesuffix(")")
    text = " ".join(repr(leaf.read()).split())
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 3] + "..."


def _tensor_text(tensor: Tensor) -> str:
    shape = "nested" if tensor.is_nested else str(tuple(tensor.shape))
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def _shortened(texts: list[str]) -> str:
    more = [f"and {len(texts) - _MOST_PARTS + 1} more"] if len(texts) > _MOST_PARTS else []
    return ", ".join([*texts[: _MOST_PARTS - len(more)], *more] if more else texts)


def merged(rows: Sequence[Cells]) -> Cells:
    """One row for several calls of a layer: where they differ, the texts are joined."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return {column: "; ".join(_first_texts(row[column] for row in rows if column in row)) for column in columns}


def _first_texts(texts: Iterable[str]) -> list[str]:
    different = list(dict.fromkeys(texts))
    return different if len(different) <= 3 else [*different[:2], f"and {len(different) - 2} others"]


def table(rows: Sequence[Cells], *, width: int = WIDTH) -> str:
    """The rows as a table of at most `width` characters.

    The first column is never wrapped. The others are, between tensors. Where that does not suffice, each row becomes a
    paragraph with a line for each column.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    widths = _column_widths(cells, width)
    if widths is None:
        return "\n".join(_paragraph(row, width) for row in rows)
    return "\n".join(line for row in cells for line in _lines(row, widths))


def shortened_rows(rows: Sequence[Cells]) -> tuple[Sequence[Cells], str]:
    """The rows to print, and a line that says how many are left out; "" for none."""
    if len(rows) <= _MOST_ROWS:
        return rows, ""
    shown = [*rows[: _MOST_ROWS - 10], *rows[-10:]]
    return shown, f"{len(rows) - len(shown)} more calls are between the last 10 rows and those above them"


def _column_widths(cells: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """The width of each column so that the table fits; None where it cannot."""
    natural = [max(map(len, column)) for column in zip(*cells, strict=True)]
    least = [
        natural[0],
        *(max(len(part) for cell in column for part in _parts(cell)) for column in list(zip(*cells, strict=True))[1:]),
    ]
    room = width - 2 * (len(natural) - 1)
    if sum(least) > room:
        return None
    widths = natural
    while (excess := sum(widths) - room) > 0:
        widest = max((each for each, low in zip(widths, least, strict=True) if each > low), default=0)
        index = next(i for i, each in enumerate(widths) if each == widest and each > least[i])
        widths[index] = max(least[index], widest - excess)
    return widths


def _parts(cell: str) -> list[str]:
    """The cell in the parts between which it may be wrapped: at commas and semicolons outside of brackets."""
    return re.findall(r"(?:[^,;(\[]|\([^)]*\)?|\[[^\]]*\]?)+[,;]?", cell.strip()) or [""]


def _wrapped(cell: str, width: int) -> list[str]:
    lines = [""]
    for part in map(str.strip, _parts(cell)):
        joined = f"{lines[-1]} {part}".strip()
        if len(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(part)
    return lines


def _lines(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    columns = [
        _wrapped(cell, width) if number else [cell]
        for number, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    for number in range(max(map(len, columns))):
        cells = [column[number] if number < len(column) else "" for column in columns]
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _paragraph(row: Cells, width: int) -> str:
    (_, name), *others = row.items()
    indent = 4 + max((len(column) for column, _ in others), default=0)
    lines = [name]
    for column, cell in others:
        lines += textwrap.wrap(
            cell,
            width,
            initial_indent=f"  {column}".ljust(indent),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
    return "\n".join(lines)

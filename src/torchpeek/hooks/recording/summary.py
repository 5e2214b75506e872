"""A recording in words: what is stored, as cells of a table, and the table as text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from torchpeek.hooks import containers
from torchpeek.hooks.recording.running_statistics import RunningStatistics
from torchpeek.hooks.recording.storage import GradientSlot, Leaf, StoredTensor, UnreadableTensor
from torchpeek.printable import printable
from torchpeek.tensor_formats import shape_text, type_text

Cells: TypeAlias = dict[str, str]
"""Column -> the text of one row in it."""

WIDTH = 100
"""The columns of a terminal that a table may take."""

_MOST_ROWS = 60  # of a table of calls
_MOST_PARTS = 8  # of the tensors in one cell
_COMFORTABLE = 40  # letters of a cell, before it takes several lines
_MOST_LETTERS = 60  # of a value that is no tensor


def describe(value: Any) -> str:
    """The shapes and dtypes of the stored tensors in a container, as text."""
    texts = [_leaf_text(leaf) for _, leaf in containers.leaves(value, Leaf)]
    return _shortened(texts) or "no tensor"


def shapes(value: Any) -> str:
    """The shapes and dtypes of the tensors in a container, as text."""
    return _shortened([_tensor_text(tensor) for _, tensor in containers.leaves(value)]) or "none arrived"


def describe_gradient(gradients: Any, values: Any) -> str:
    """The shapes and dtypes of gradients, as text: "the same" where the values are recorded and have the same ones.

    Args:
        gradients: The stored gradients, in a container.
        values: The stored values of which they are the gradients; None if these are not recorded.
    """
    slots = [slot for _, slot in containers.leaves(gradients, Leaf)]
    arrived = [slot for slot in slots if not isinstance(slot, GradientSlot) or slot.leaf is not None]
    if not arrived:
        return "none arrived" if slots else "none"
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
    if isinstance(leaf, UnreadableTensor):
        return repr(leaf)
    text = " ".join(repr(leaf.read()).split())
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 3] + "..."


def _tensor_text(tensor: Tensor) -> str:
    return f"{shape_text(tensor)} {type_text(tensor)}"


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
    """The rows as text, at most `width` characters wide unless a name is wider.

    The first column names the rows and is never wrapped. The others are, between tensors. Columns that do not fit
    beside each other make another table below the first. Where the names take more than half of the width, or a column
    does not fit beside them, each row becomes a paragraph.
    """
    rows = [{column: printable(cell) for column, cell in row.items()} for row in rows]
    names, *columns = dict.fromkeys(column for row in rows for column in row)
    blocks: list[list[str]] = []
    for column in columns:
        if not blocks or _comfortable_width(rows, [names, *blocks[-1], column]) > width:
            blocks.append([])
        blocks[-1].append(column)
    widths = [_column_widths(rows, [names, *block], width) for block in blocks]
    if None in widths or max(len(row[names]) for row in rows) > width // 2:
        return "\n".join(
            line
            for row in rows
            for line in paragraphs(row[names], {column: row[column] for column in columns if column in row}, width)
        )
    return "\n\n".join(
        "\n".join(line for cells in _cells(rows, [names, *block]) for line in _lines(cells, each or []))
        for block, each in zip(blocks, widths, strict=True)
    )


def paragraph(title: str, cell: str, *, indent: int = 0, width: int = WIDTH) -> str:
    """A title and a cell beside it, wrapped between tensors."""
    title, cell = printable(title), printable(cell)
    indent = max(indent, len(title) + 2)
    lines = _wrapped(cell, width - indent)
    return "\n".join(f"{'' if number else title}".ljust(indent) + line for number, line in enumerate(lines))


def paragraphs(title: str, cells: Cells, width: int = WIDTH) -> list[str]:
    """The title, and below it a paragraph for each of the cells."""
    indent = 4 + max(map(len, cells), default=0)
    return [title, *(paragraph(f"  {name}", cell, indent=indent, width=width) for name, cell in cells.items())]


def shortened_rows(rows: Sequence[Cells]) -> tuple[list[Cells], str]:
    """The rows to print, and a line that says how many are left out; "" for none."""
    if len(rows) <= _MOST_ROWS:
        return list(rows), ""
    gap: Cells = {next(iter(rows[0])): "..."}
    return [*rows[: _MOST_ROWS - 10], gap, *rows[-10:]], f"{len(rows) - _MOST_ROWS} of {len(rows)} calls are not shown"


def _cells(rows: Sequence[Cells], columns: Sequence[str]) -> list[list[str]]:
    """The header and the rows, with these columns."""
    return [list(columns), *([row.get(column, "") for column in columns] for row in rows)]


def _comfortable_width(rows: Sequence[Cells], columns: Sequence[str]) -> int:
    """The width of a table of these columns in which a cell of some length takes several lines."""
    by_column = list(zip(*_cells(rows, columns), strict=True))
    widths = [min(_COMFORTABLE, max(map(len, column))) for column in by_column[1:]]
    return max(map(len, by_column[0])) + sum(2 + each for each in widths)


def _column_widths(rows: Sequence[Cells], columns: Sequence[str], width: int) -> list[int] | None:
    """The width of each column so that they fit beside each other; None where they cannot."""
    by_column = list(zip(*_cells(rows, columns), strict=True))
    widths = [max(map(len, column)) for column in by_column]
    least = [max(len(part) for cell in column for part in _parts(cell)) for column in by_column]
    least[0] = widths[0]
    room = width - 2 * (len(columns) - 1)
    if sum(least) > room:
        return None
    while (excess := sum(widths) - room) > 0:
        index = max((i for i in range(len(widths)) if widths[i] > least[i]), key=widths.__getitem__)
        widths[index] = max(least[index], widths[index] - excess)
    return widths


def _parts(cell: str) -> list[str]:
    """The cell in the parts between which it may be wrapped: at commas and semicolons outside of brackets."""
    return list(map(str.strip, re.findall(r"(?:[^,;(\[]|\([^)]*\)?|\[[^\]]*\]?)+[,;]?", cell))) or [""]


def _wrapped(cell: str, width: int) -> list[str]:
    lines = [""]
    for part in _parts(cell):
        for piece in [part] if len(part) <= width else textwrap.wrap(part, max(width, 1)):
            joined = f"{lines[-1]} {piece}".strip()
            if len(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(piece)
    return lines if lines[0] or len(lines) == 1 else lines[1:]


def _lines(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    columns = [[row[0]], *(_wrapped(cell, width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    for number in range(max(map(len, columns))):
        cells = [column[number] if number < len(column) else "" for column in columns]
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

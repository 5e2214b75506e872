"""Tables as text, in aligned columns."""

from __future__ import annotations

from collections.abc import Sequence

from torchpeek.printable import printable

Cells = Sequence[str]


def text_table(header: Cells, rows: Sequence[Cells], footer: str = "") -> str:
    """Return a table as text, with the footer below it if there is one. Columns without an entry are left out."""
    header, rows = without_empty_columns(header, [[printable(cell) for cell in row] for row in rows])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in [header, *rows]
    ]
    return "\n".join([*lines, *filter(None, [footer])])


def without_empty_columns(header: Cells, rows: Sequence[Cells]) -> tuple[Cells, list[Cells]]:
    """Return the header and the rows without the columns in which every cell is empty."""
    if not rows:
        return header, []
    filled = [column for column, cells in enumerate(zip(*rows, strict=True)) if any(cells)]
    return [header[column] for column in filled], [[row[column] for column in filled] for row in rows]


def percentage(share: float) -> str:
    """Return a share from 0 to 1 as text, such as 12.5%; NaN, a share of nothing, as nan."""
    return f"{share:.1%}" if share == share else "nan"

"""Table: rows that print as text, and as HTML in a notebook."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Generic, TypeVar

from torchpeek.html import notebook_html, table

Row = TypeVar("Row")


class Table(Sequence[Row], Generic[Row]):
    """A sequence of rows that prints as a table, with a footer if it has one. Columns without an entry are left out."""

    header: tuple[str, ...]
    rows: tuple[Row, ...]

    @abstractmethod
    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows as text, without the header."""

    @property
    def footer(self) -> str:
        """The line below the table, or an empty string."""
        return ""

    @property
    def marked(self) -> Collection[int]:
        """Indices of the rows of `cells` that a notebook highlights."""
        return ()

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # as tuple's own
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        return table_text(*without_empty_columns(self.header, self.cells()), self.footer)

    def __repr__(self) -> str:
        return str(self)

    @notebook_html
    def _repr_html_(self) -> str:
        header, cells = without_empty_columns(self.header, self.cells())
        return table(header, cells, footer=self.footer, marked=self.marked)


def without_empty_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and the rows without the columns in which every cell is empty."""
    filled = [column for column in range(len(header)) if not rows or any(row[column] for row in rows)]
    return tuple(header[column] for column in filled), [tuple(row[column] for column in filled) for row in rows]


def table_text(header: Sequence[str], rows: Sequence[Sequence[str]], footer: str = "") -> str:
    """Return a table as text in aligned columns, with the footer below it if there is one."""
    cells = [header, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([*lines, *filter(None, [footer])])

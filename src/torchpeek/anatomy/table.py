"""Table: rows that print as text, and as HTML in a notebook."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from html import escape
from typing import Generic, TypeVar

Row = TypeVar("Row")


class Table(Sequence[Row], Generic[Row]):
    """A sequence of rows that prints as a table, with a footer if it has one."""

    header: tuple[str, ...]
    rows: tuple[Row, ...]

    @abstractmethod
    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows as text, without the header."""

    @property
    def footer(self) -> str:
        """The line below the table, or an empty string."""
        return ""

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # as tuple's own
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        cells = [self.header, *self.cells()]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return "\n".join([*lines, *filter(None, [self.footer])])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(row(cells, "td") for cells in self.cells())
        foot = f"<p>{escape(self.footer)}</p>" if self.footer else ""
        return f"<table><thead>{row(self.header, 'th')}</thead><tbody>{body}</tbody></table>{foot}"

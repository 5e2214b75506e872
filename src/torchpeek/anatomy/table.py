"""Table: rows that print as text, and as HTML in a notebook."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Generic, TypeVar

from torchpeek.html import html_table, notebook_html
from torchpeek.keywords import checked_class
from torchpeek.text_table import text_table

Row = TypeVar("Row")


@checked_class
class Table(Sequence[Row], Generic[Row]):
    """A sequence of rows that prints as a table, with a footer if it has one. Columns without an entry are left out.

    Example:
        >>> table = tp.layers(nn.Sequential(nn.Linear(2, 1)))
        >>> len(table), table[0].name
        (1, '0')
    """

    header: tuple[str, ...]
    rows: tuple[Row, ...]

    @abstractmethod
    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows as text, without the header.

        Returns:
            A tuple for each row, with an entry for each column of `header`; an empty text where there is none.

        Example:
            >>> table = tp.layers(nn.Sequential(nn.Linear(2, 1)))
            >>> table.cells()
            [('0', 'Linear', '', '', '3')]
        """

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
        return text_table(self.header, self.cells(), self.footer)

    def __repr__(self) -> str:
        return str(self)

    @notebook_html
    def _repr_html_(self) -> str:
        return html_table(self.header, self.cells(), footer=self.footer, marked=self.marked)

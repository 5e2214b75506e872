"""layers(): a table of a network's layers, with the shapes that they return."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from torchpeek.engine import LayerCall, ModelRunner, Suggestion, survey
from torchpeek.models import Inputs, Model, input_tensor, module_of

_HEADER = ("layer", "type", "output", "calls", "parameters")


@dataclass(frozen=True)
class LayerTable(Sequence[LayerCall]):
    """The layers of a network, in the order of `named_modules`. Prints as a table; `len` and indexing work."""

    model: str
    rows: tuple[LayerCall, ...]
    suggested: Suggestion | None = None  # the layer that explain() would look at

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # as tuple's own
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[LayerCall]:
        return iter(self.rows)

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, a row for each layer, without the header."""
        return [(r.name, r.type, r.output or "", str(r.calls or ""), f"{r.parameters:,}") for r in self.rows]

    @property
    def header(self) -> tuple[str, ...]:
        """The names of the columns."""
        return _HEADER

    def __str__(self) -> str:
        cells = [_HEADER, *self.cells()]
        widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADER))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return "\n".join([*lines, *([self._suggestion()] if self.suggested else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(row(cells, "td") for cells in self.cells())
        foot = f"<p>{escape(self._suggestion())}</p>" if self.suggested else ""
        return f"<table><thead>{row(_HEADER, 'th')}</thead><tbody>{body}</tbody></table>{foot}"

    def _suggestion(self) -> str:
        assert self.suggested is not None
        return f"suggested for heatmaps: {self.suggested.layer}, {self.suggested.reason}"


def layers(model: Model, inputs: Inputs | None = None) -> LayerTable:
    """The layers of `model`: name, type, parameters and, with `inputs`, what each returned in a dry pass.

    Shapes start with N, whatever the batch. The model is left exactly as it was found.
    """
    module = ModelRunner(module_of(model)).model
    rows, suggested = survey(module, None if inputs is None else input_tensor(model, inputs))
    return LayerTable(type(module).__name__, tuple(rows), suggested)

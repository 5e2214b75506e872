"""The table that statistics() returns: a row for each call of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torchpeek.anatomy.table import Table
from torchpeek.errors import InputError, LayerNotFound, closest
from torchpeek.hooks import RunningStatistics
from torchpeek.keywords import checked_class
from torchpeek.render.axes_plots import spread_plot
from torchpeek.text_table import percentage

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LayerStatistics:
    """The statistics of one call of a layer, or of one tensor of its output if it returns several.

    Args:
        name: Name of the layer. `relu[1]` is the second call in a pass, `lstm:1.0` the tensor at that path of the
            output. `block.relu()[1]` is the second rectifier that `block` calls as a function, such as `F.relu(x)`.
        type: Name of the layer's class; "function" for a function.
        output: Statistics of the output. None if there is none; `remark` says why.
        gradient: Statistics of the gradient with respect to the output, or None.
        remark: Why there is no output, or what is unclear about its channels.
        first_not_finite: Index of the first batch whose output has NaN or infinity, or None.
        first_not_finite_gradient: Index of the first batch whose gradient has NaN or infinity, or None.
    """

    name: str
    type: str
    output: RunningStatistics | None
    gradient: RunningStatistics | None
    remark: str = ""
    first_not_finite: int | None = None
    first_not_finite_gradient: int | None = None


@checked_class
@dataclass(frozen=True, repr=False)
class Statistics(Table[LayerStatistics]):
    """The statistics of each layer, in the order in which they ran. `[name]` returns those of one layer.

    Args:
        rows: A row for each call of a layer, and each tensor that it returns.
        batches: The number of batches.

    Example:
        >>> table = tp.statistics(nn.Sequential(nn.ReLU()), [torch.tensor([[-1.0, 1.0]])])
        >>> table["0"].output.summary().zero_share, table.batches
        (0.5, 1)
    """

    rows: tuple[LayerStatistics, ...]
    batches: int

    header = ("layer", "type", "of", "mean", "std", "min", "max", "zeros", "dead", "NaN", "inf")

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # an index as in a tuple, or a name
        if not isinstance(index, str):
            return self.rows[index]
        matching = [row for row in self.rows if row.name == index]
        if not matching:
            names = [row.name for row in self.rows]
            raise LayerNotFound(f"no statistics of layer {index!r}{closest(index, names)}; there are {len(names)}")
        return matching[0]

    @property
    def left_out(self) -> dict[str, str]:
        """The layers without statistics, by name, with the reason.

        They were not called, or what they return has no statistics, such as class indices.
        """
        return {row.name: row.remark for row in self.rows if row.output is None}

    @property
    def first_not_finite(self) -> str | None:
        """The layer that first returned NaN or infinity: the first that ran, in the first such batch."""
        return _first(self.rows, lambda row: row.first_not_finite)

    @property
    def first_not_finite_gradient(self) -> str | None:
        """The layer whose output gradient first had NaN or infinity: the last that ran, in the first such batch."""
        return _first(self.rows[::-1], lambda row: row.first_not_finite_gradient)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the mean of each output, with one standard deviation above and below it. Needs the extra `plot`.

        Args:
            ax: matplotlib's Axes to draw on. None makes a new figure with pyplot.

        Returns:
            The matplotlib Axes.

        Raises:
            InputError: When no layer has statistics.
            TorchpeekError: When matplotlib is not installed.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
            >>> axes = tp.statistics(model, [torch.rand(2, 3, 8, 8)]).plot()
            >>> [label.get_text() for label in axes.get_xticklabels()]
            ['0', '1']
        """
        summaries = {row.name: row.output.summary() for row in self.rows if row.output is not None and row.output.calls}
        if not summaries:
            raise InputError("no layer has statistics, so there is nothing to plot")
        means, deviations = [each.mean for each in summaries.values()], [each.std for each in summaries.values()]
        return spread_plot(ax, list(summaries), means, deviations)

    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows as text, as in `Table.cells`."""
        cells = []
        output = "output" if any(row.gradient is not None for row in self.rows) else ""  # the column is needed for both
        for row in self.rows:
            for what, values in ((output, row.output), ("gradient", row.gradient)):
                if values is not None and values.calls:
                    cells.append((row.name, row.type, what, *_numbers(values)))
            if row.output is None:
                cells.append((row.name, row.type, "left out", *[""] * 8))
        return cells

    @property
    def footer(self) -> str:
        """The number of batches, where NaN or infinity first appeared, and why layers are left out."""
        parts = [f"{self.batches:,} batch{'es' * (self.batches != 1)}"]
        if self.first_not_finite is not None:
            parts.append(f"NaN or infinity first came out of {self.first_not_finite}")
        if self.first_not_finite_gradient is not None:
            parts.append(f"NaN or infinity first flowed back to {self.first_not_finite_gradient}")
        remarks = [f"{row.name}: {row.remark}" for row in self.rows if row.remark]
        return "\n".join(["; ".join(parts), *remarks])


def _numbers(statistics: RunningStatistics) -> tuple[str, ...]:
    s = statistics.summary()
    return (
        *(f"{value:.4g}" for value in (s.mean, s.std, s.min, s.max)),
        percentage(s.zero_share),
        f"{s.dead}/{s.channels}",
        f"{s.nan:,}" if s.nan else "",  # empty, so that a table without any has no such column
        f"{s.inf:,}" if s.inf else "",
    )


def _first(rows: Sequence[LayerStatistics], batch: Callable[[LayerStatistics], int | None]) -> str | None:
    """Return the name of the first row among those with the smallest batch."""
    firsts = [(first, row.name) for row in rows if (first := batch(row)) is not None]
    return min(firsts, key=lambda pair: pair[0])[1] if firsts else None

"""The plot of a training: gradient norms and update ratios of the blocks, step by step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeAlias

from torchpeek.argument_types import Allowed
from torchpeek.errors import InputError
from torchpeek.keywords import checked_keywords
from torchpeek.render.plots import figure_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_MOST_NAMES = 14  # more do not fit beside the plot
_USUAL_RATIO = 1e-3

FlowColumn: TypeAlias = Literal["gradient_norm", "weight_norm", "update_norm", "update_ratio"]
"""A number of a block in a step."""

COLUMN_LABELS: dict[FlowColumn, str] = {
    "gradient_norm": "gradient norm",
    "weight_norm": "weight norm",
    "update_norm": "update norm",
    "update_ratio": "update / weights",
}
"""The columns that can be drawn, and how their axis is named."""


class StepRow(Protocol):
    """One block in one step, as `training_flow` draws it."""

    @property
    def step(self) -> int: ...
    @property
    def layer(self) -> str: ...
    @property
    def gradient_norm(self) -> float | None: ...
    @property
    def update_ratio(self) -> float | None: ...


@checked_keywords
def training_flow(
    rows: Annotated[Sequence[StepRow], Allowed("rows of the table that tp.watch yields")], *, title: str = ""
) -> Figure:
    """Plot what `tp.watch` saw: above the gradient norm of each block, below the ratio of its update to its weights.

    A line is a block. Its colour is its place in the model, from dark (first) to light (last). Both axes are
    logarithmic; a value that they cannot show, such as zero, NaN or that of a frozen block, is a gap. Blocks without
    any value are counted in the title. The dotted line marks a usual ratio, 1e-3. Needs the extra `plot`.

    Args:
        rows: The rows of the table that `tp.watch` yields, or some of them.
        title: Title of the figure, above the counts.

    Returns:
        A matplotlib Figure.

    Raises:
        InputError: When there are no rows.
        TorchpeekError: When matplotlib is not installed.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> with tp.watch(model) as seen:
        ...     model(torch.rand(4, 2)).square().mean().backward()
        ...     torch.optim.SGD(model.parameters(), lr=0.1).step()
        >>> [axes.get_ylabel() for axes in tp.render.training_flow(seen).axes]
        ['gradient norm', 'update / weights']
    """
    figure_of = figure_class()
    if not len(rows):
        raise InputError("rows is empty; give the rows of at least one watched step")
    colours = block_colours(rows)
    figure = figure_of(figsize=(9.0, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    lines = draw_blocks(above, rows, "gradient_norm", colours)
    lines = draw_blocks(below, rows, "update_ratio", colours) | lines
    above.set_xlabel("")
    counts = block_counts(rows, lines)
    above.set_title(f"{title}\n{counts}" if title else counts, fontsize=10, loc="left")
    name_blocks(above, {layer: lines[layer] for layer in colours if layer in lines})
    return figure


def block_colours(rows: Sequence[StepRow]) -> dict[str, str]:
    """A colour for each block, in their order: from dark (first) to light (last)."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    layers = list(dict.fromkeys(row.layer for row in rows))
    scale = colormaps["viridis"]
    return {layer: to_hex(scale(0.92 * place / max(1, len(layers) - 1))) for place, layer in enumerate(layers)}


def draw_blocks(
    axes: Axes, rows: Sequence[StepRow], column: FlowColumn, colours: Mapping[str, str]
) -> dict[str, Line2D]:
    """Draw a line for each block that has a value. Returns these blocks and their lines."""
    from matplotlib.ticker import MaxNLocator

    lines = {}
    axes.set_yscale("log")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    for layer, colour in colours.items():
        points = [(row.step, getattr(row, column)) for row in rows if row.layer == layer]
        steps = [step for step, _ in points]
        values = [value if value and math.isfinite(value) else math.nan for _, value in points]
        if not all(map(math.isnan, values)):
            [lines[layer]] = axes.plot(
                steps, values, color=colour, linewidth=1.0, marker="o", markersize=2.5, gid=layer
            )
    if column == "update_ratio":
        axes.axhline(_USUAL_RATIO, color="#777777", linewidth=0.8, linestyle=":")
    axes.set(xlabel="step", ylabel=COLUMN_LABELS[column])
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    steps = sorted({row.step for row in rows})
    if len(steps) == 1:  # else the axis has fractions of a step
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    return lines


def block_counts(rows: Sequence[StepRow], drawn: Collection[str]) -> str:
    """How many blocks and steps there are, and how many blocks are without a line."""
    layers, steps = {row.layer for row in rows}, {row.step for row in rows}
    counts = f"{_counted(len(layers), 'block')}, {_counted(len(steps), 'step')}"
    return f"{counts}, without values: {len(layers) - len(drawn)}" if len(drawn) < len(layers) else counts


def name_blocks(axes: Axes, lines: Mapping[str, Line2D]) -> None:
    """Name the lines of the blocks in a legend beside the axes: of many blocks, some from the first to the last."""
    named = list(lines)
    if len(named) > _MOST_NAMES:
        picked = {round(place * (len(named) - 1) / (_MOST_NAMES - 1)) for place in range(_MOST_NAMES)}
        named = [named[place] for place in sorted(picked)]
    if named:
        axes.legend(
            handles=[lines[layer] for layer in named],
            labels=[_short(layer) for layer in named],
            title=f"{len(named)} of {len(lines)} blocks" if len(named) < len(lines) else None,
            title_fontsize=8,
            fontsize=7,
            loc="upper left",
            bbox_to_anchor=(1, 1),
            frameon=False,
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _short(layer: str) -> str:
    name = layer or "(model)"
    return name if len(name) <= 30 else f"…{name[-29:]}"

"""The plot of a training: gradient norms and update ratios of the blocks, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torchpeek.errors import InputError
from torchpeek.render.plots import figure_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMES = 14  # more do not fit beside the plot
_USUAL_RATIO = 1e-3


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


def training_flow(rows: Sequence[StepRow], *, title: str = "") -> Figure:
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
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    layers = list(dict.fromkeys(row.layer for row in rows))
    scale = colormaps["viridis"]
    colours = {layer: to_hex(scale(0.92 * place / max(1, len(layers) - 1))) for place, layer in enumerate(layers)}
    figure = figure_of(figsize=(9.0, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    drawn = _draw(above, colours, rows, "gradient_norm") | _draw(below, colours, rows, "update_ratio")
    above.set_ylabel("gradient norm")
    below.set_ylabel("update / weights")
    below.set_xlabel("step")
    below.xaxis.get_major_locator().set_params(integer=True)
    below.axhline(_USUAL_RATIO, color="#777777", linewidth=0.8, linestyle=":")
    steps = sorted({row.step for row in rows})
    if len(steps) == 1:  # else the axis has fractions of a step
        below.set_xlim(steps[0] - 1, steps[0] + 1)
    counts = f"{_counted(len(layers), 'block')}, {_counted(len(steps), 'step')}"
    if len(drawn) < len(layers):
        counts += f", without values: {len(layers) - len(drawn)}"
    above.set_title(f"{title}\n{counts}" if title else counts, fontsize=10, loc="left")
    named = [layer for layer in layers if layer in drawn]
    if len(named) > _MOST_NAMES:
        picked = {round(place * (len(named) - 1) / (_MOST_NAMES - 1)) for place in range(_MOST_NAMES)}
        named = [named[place] for place in sorted(picked)]
    lines = {line.get_gid(): line for axes in (below, above) for line in axes.lines}
    if named:
        above.legend(
            handles=[lines[layer] for layer in named],
            labels=[_short(layer) for layer in named],
            title=f"{len(named)} of {len(drawn)} blocks" if len(named) < len(drawn) else None,
            title_fontsize=8,
            fontsize=7,
            loc="upper left",
            bbox_to_anchor=(1, 1),
            frameon=False,
        )
    return figure


def _draw(axes: Axes, colours: dict[str, str], rows: Sequence[StepRow], what: str) -> set[str]:
    """Draw a line for each block that has a value. Returns these blocks."""
    drawn = set()
    axes.set_yscale("log")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    for layer, colour in colours.items():
        points = [(row.step, getattr(row, what)) for row in rows if row.layer == layer]
        steps = [step for step, _ in points]
        values = [value if value and math.isfinite(value) else math.nan for _, value in points]
        if not all(map(math.isnan, values)):
            drawn.add(layer)
            axes.plot(steps, values, color=colour, linewidth=1.0, marker="o", markersize=2.5, gid=layer)
    return drawn


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _short(layer: str) -> str:
    name = layer or "(model)"
    return name if len(name) <= 30 else f"…{name[-29:]}"

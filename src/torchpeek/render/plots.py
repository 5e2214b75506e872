"""Plots of numbers about a network, drawn with matplotlib without pyplot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from torchpeek.argument_types import Allowed
from torchpeek.errors import InputError, TorchpeekError
from torchpeek.keywords import checked_keywords

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers: TypeAlias = npt.NDArray[np.float64]

_BLUE, _ORANGE, _GREY, _RED = "#3366aa", "#dd7711", "#777777", "#cc2233"
_MARKERS = {
    "weight": ("o", _BLUE, -0.2),
    "bias": ("^", _ORANGE, 0.2),
    "other": ("s", _GREY, 0.0),
}  # marker, colour, and offset in the strip
_MARKS = ("zero", "NaN or infinite", "no gradient")
_EDGE_MARKERS = {"zero": "v", "NaN or infinite": "X", "no gradient": "|"}
_LABEL_INCHES = 0.13  # room for a label of 7 points
_BROADEST = 24.0  # inches
_FINEST = 200  # bins across a plot; finer ones cannot be distinguished
_TOWER = 3.0  # a bin is cut off if it is this many times as dense as the densest other one


class GradientRow(Protocol):
    """The gradient of one parameter, as `gradient_flow` draws it."""

    @property
    def layer(self) -> str: ...
    @property
    def parameter(self) -> str: ...
    @property
    def gradient_norm(self) -> float | None: ...  # None if the parameter is frozen or unused
    @property
    def weight_norm(self) -> float: ...
    @property
    def gradient_mean_abs(self) -> float | None: ...
    @property
    def gradient_max_abs(self) -> float | None: ...
    @property
    def numel(self) -> int: ...


@checked_keywords
def gradient_flow(
    rows: Annotated[Sequence[GradientRow], Allowed("rows of the table that tp.gradient_flow returns")],
    *,
    log: bool = True,
    title: str = "",
) -> Figure:
    """Plot the gradient norm of each layer's parameters, in the order of the rows.

    Weights, biases and other parameters have different markers. A norm that the axis cannot show is marked in a strip
    below: zero, NaN, infinity, or no gradient. The line is broken there, and the layer's name is red. The figure grows
    with the number of layers, up to 24 inches; beyond that some names are left out, those of marked layers last. Needs
    the extra `plot`.

    Args:
        rows: The parameters, such as the rows of `tp.gradient_flow(...)`.
        log: Whether the axis of the norm is logarithmic.
        title: Title of the figure, above the counts.

    Returns:
        A matplotlib Figure.

    Raises:
        InputError: When there are no rows.
        TorchpeekError: When matplotlib is not installed.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> figure = tp.render.gradient_flow(tp.gradient_flow(model, torch.rand(2, 3, 8, 8)))
        >>> figure.axes[0].get_ylabel()
        'gradient norm'
    """
    figure_of = figure_class()
    if not rows:
        raise InputError("rows is empty; give at least one parameter's gradient norm")
    layers, points = _points(rows)
    marked = [point for point in points if point.mark]
    width = min(_BROADEST, max(7.0, 1.5 + _LABEL_INCHES * len(layers)))
    figure = figure_of(figsize=(width, 5.0), layout="constrained")
    heights = [6, 0.2 + 0.35 * len({point.mark for point in marked})] if marked else [1]
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    axes = panels[0]
    _draw_norms(axes, points, log)
    summary = _summary(len(rows), len(layers), [point.mark for point in marked])
    axes.set_title(f"{title}\n{summary}" if title else summary, fontsize=10, loc="left")
    if marked:
        _draw_marks(panels[1], marked)
    lines = {
        line.get_label(): line for panel in reversed(panels) for line in panel.lines
    }  # a group of parameters may be in the strip only
    handles = [lines[kind] for kind in _MARKERS if kind in lines]
    axes.legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    name_layers(panels[-1], layers, {point.x for point in marked}, width)
    return figure


@checked_keywords
def histograms(
    distributions: Annotated[Mapping[str, tuple[Any, Any]], Allowed("a dict from a name to (counts, edges)")],
) -> Figure:
    """Plot the distribution of the values of each layer, in a small plot each.

    Bins may differ in width, so the density is drawn: the fraction of all values per unit. Empty bins at both ends are
    left out, and bins narrower than a 200th of the plot are merged. A line marks zero, or an arrow if zero is outside
    of the plot. A single bin that is far higher than all others, such as the zeros after a ReLU, is cut off, and its
    fraction is written beside it. Needs the extra `plot`.

    Args:
        distributions: Layer name -> (counts (n,), edges (n + 1,)), arrays or tensors.

    Returns:
        A matplotlib Figure.

    Raises:
        InputError: When there is nothing to draw, or counts and edges do not fit.
        TorchpeekError: When matplotlib is not installed.

    Example:
        >>> counts, edges = torch.tensor([1.0, 4.0, 2.0]), torch.tensor([-1.0, 0.0, 1.0, 2.0])
        >>> figure = tp.render.histograms({"relu": (counts, edges)})
        >>> figure.axes[0].get_title()
        'relu'
    """
    figure_of = figure_class()
    if not distributions:
        raise InputError("distributions is empty; give at least one layer -> (counts, edges)")
    checked = {name: _checked(name, pair) for name, pair in distributions.items()}
    columns = min(5, math.ceil(math.sqrt(len(checked))))
    lines = math.ceil(len(checked) / columns)
    size = (6.0, 3.5) if len(checked) == 1 else (max(2.4 * columns, 5.0), 1.5 * lines + 0.4)
    figure = figure_of(figsize=size, layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, (name, (counts, edges)) in zip(grid, checked.items(), strict=False):
        axes.set_title(name if len(name) <= 38 else f"…{name[-37:]}", fontsize=8)
        _draw_density(axes, counts, edges)
        if len(checked) > 1:
            axes.set_yticks([])  # shapes are compared, not numbers
    for axes in grid[len(checked) :]:
        axes.remove()
    figure.supylabel("density: fraction of values per unit", fontsize=8)
    return figure


def figure_class() -> type[Figure]:
    """Import matplotlib's Figure. Raises TorchpeekError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise TorchpeekError("matplotlib is not installed; next: pip install 'torchpeek[plot]'") from error
    return Figure


@dataclass(frozen=True)
class _Point:
    """One parameter's gradient norm, above its layer."""

    x: int
    kind: str
    norm: float | None

    @property
    def mark(self) -> str:
        """Why the axis cannot show the norm, or "" if it can."""
        if self.norm is None:
            return "no gradient"
        if not math.isfinite(self.norm):
            return "NaN or infinite"
        return "zero" if self.norm == 0 else ""

    def on_axis(self, log: bool) -> float:
        """Return the norm, or NaN, which breaks the line, if the axis cannot show it."""
        return math.nan if self.norm is None or (self.mark and (log or self.norm != 0)) else float(self.norm)


def draw_gradient_norms(axes: Axes, rows: Sequence[GradientRow], *, log: bool, width: float) -> None:
    """Draw the norms on one pair of axes. What the axis cannot show is marked along its lower edge."""
    layers, points = _points(rows)
    _draw_norms(axes, points, log)
    marked = [point for point in points if point.mark]
    for line, mark in enumerate(mark for mark in _MARKS if any(mark == point.mark for point in marked)):
        x = [point.x for point in marked if point.mark == mark]
        y = [0.02 + 0.03 * line] * len(x)
        style: dict[str, Any] = {"linestyle": "", "marker": _EDGE_MARKERS[mark], "color": _RED, "markersize": 5}
        axes.plot(x, y, label=mark, transform=axes.get_xaxis_transform(), clip_on=False, **style)
    axes.set_title(_summary(len(rows), len(layers), [point.mark for point in marked]), fontsize=10, loc="left")
    axes.legend(fontsize=8)
    name_layers(axes, layers, {point.x for point in marked}, width)


def _points(rows: Sequence[GradientRow]) -> tuple[list[str], list[_Point]]:
    layers = list(dict.fromkeys(row.layer for row in rows))
    place = {layer: x for x, layer in enumerate(layers)}
    return layers, [_Point(place[row.layer], _kind(row.parameter), row.gradient_norm) for row in rows]


def _draw_norms(axes: Axes, points: Sequence[_Point], log: bool) -> None:
    axes.set_yscale("log" if log else "linear")
    for kind, (marker, colour, _) in _MARKERS.items():
        drawn = [(point.x, point.on_axis(log)) for point in points if point.kind == kind]
        if any(math.isfinite(y) for _, y in drawn):
            x, y = zip(*drawn, strict=True)
            axes.plot(x, y, marker=marker, color=colour, label=kind, markersize=4, linewidth=0.8, alpha=0.9)
    axes.set_ylabel("gradient norm")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


def _kind(parameter: str) -> str:
    last = parameter.rpartition(".")[2]
    return next((kind for kind in ("weight", "bias") if kind in last), "other")


def _summary(rows: int, layers: int, marks: Sequence[str]) -> str:
    counts = [f"{mark}: {marks.count(mark)}" for mark in _MARKS if mark in marks]
    return ", ".join([f"{rows} parameters in {layers} layers", *counts])


def _draw_marks(axes: Axes, marked: Sequence[_Point]) -> None:
    """Draw a line for each reason that occurs, with a mark at each of its parameters."""
    reasons = [mark for mark in _MARKS if any(mark == point.mark for point in marked)]
    for kind, (marker, colour, shift) in _MARKERS.items():
        of_kind = [(point.x, reasons.index(point.mark) + shift) for point in marked if point.kind == kind]
        if of_kind:
            x, y = zip(*of_kind, strict=True)
            axes.plot(x, y, linestyle="", marker=marker, color=colour, markersize=4.5, label=kind)
    axes.set_yticks(range(len(reasons)), reasons, fontsize=8)
    axes.set_ylim(len(reasons) - 0.5, -0.5)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


def name_layers(axes: Axes, layers: Sequence[str], marked: set[int], width: float) -> None:
    """Write the names of the layers along the axis, as many as fit, those of marked layers first and in red."""
    step = math.ceil(len(layers) * _LABEL_INCHES / (width - 1.5))
    named: list[int] = []
    for x in [*sorted(marked), *range(0, len(layers), step)]:
        if all(abs(x - other) >= step for other in named):
            named.append(x)
    axes.set_xticks(named, [layers[x] or "(model)" for x in named], rotation=90, fontsize=7)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    for x, label in zip(named, axes.get_xticklabels(), strict=True):
        label.set_color(_RED if x in marked else "black")


def _checked(name: str, pair: tuple[Any, Any]) -> tuple[Numbers, Numbers]:
    counts, edges = (
        np.asarray(each.detach().cpu().double() if isinstance(each, Tensor) else each, dtype=np.float64)
        for each in pair
    )
    if counts.ndim != 1 or not len(counts) or edges.shape != (len(counts) + 1,):
        raise InputError(
            f"{name!r} has counts of shape {counts.shape} and edges of shape {edges.shape}; allowed: (n,) and (n + 1,)"
        )
    if not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
        raise InputError(f"the edges of {name!r} are not finite and rising; leave out bins that are open or empty")
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise InputError(f"the counts of {name!r} are not all finite and at least 0")
    return counts, edges


def _density(counts: Numbers, edges: Numbers) -> tuple[Numbers, Numbers]:
    """Return the density and its edges, without empty bins at the ends and without bins too narrow to be seen."""
    nonzero = np.flatnonzero(counts)
    counts, edges = counts[nonzero[0] : nonzero[-1] + 1], edges[nonzero[0] : nonzero[-1] + 2]
    finest = (edges[-1] - edges[0]) / _FINEST * (1 - 1e-9)
    starts = [0]
    for k in range(1, len(counts)):
        if edges[k] - edges[starts[-1]] >= finest:
            starts.append(k)
    merged = np.append(edges[starts], edges[-1])
    return np.add.reduceat(counts, starts) / counts.sum() / np.diff(merged), merged


def _draw_density(axes: Axes, counts: Numbers, edges: Numbers) -> None:
    axes.tick_params(labelsize=7)
    if not counts.any():
        axes.set_xticks([])
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", fontsize=8)
        return
    density, edges = _density(counts, edges)
    axes.stairs(density, edges, fill=True, color=_BLUE, linewidth=0)
    axes.locator_params(axis="x", nbins=4)
    low, high = edges[0], edges[-1]
    axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    top, height = int(density.argmax()), float(density.max())
    others = np.delete(density, top).max(initial=0)
    tower = 0 < _TOWER * others < height
    axes.set_ylim(0, 1.3 * (others if tower else height))
    if tower:
        share = density[top] * (edges[top + 1] - edges[top])
        left = edges[top] + edges[top + 1] > low + high  # on the side without the tower
        words = f"{share:.0%} in {edges[top]:.2g} to {edges[top + 1]:.2g}"
        _corner(axes, words, left=left, below=0, color="black")
    if low <= 0 <= high:
        axes.axvline(0, color=_RED, linewidth=0.9)
    else:
        _corner(axes, "← 0" if low > 0 else "0 →", left=low > 0, below=int(tower), color=_RED)


def _corner(axes: Axes, words: str, *, left: bool, below: int, color: str) -> None:
    """Write small words in an upper corner, `below` lines below the first."""
    place, side = (0.02, "left") if left else (0.98, "right")
    axes.text(place, 0.96 - 0.12 * below, words, transform=axes.transAxes, ha=side, va="top", color=color, fontsize=7)

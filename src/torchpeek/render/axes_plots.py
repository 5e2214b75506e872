"""Plots on one pair of matplotlib's axes, the caller's own or those of a new figure of pyplot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from torchpeek.argument_types import Seed
from torchpeek.errors import InputError, OptionError, type_shown
from torchpeek.render.curves import CURVE_COLOURS, draw_band, draw_curve, share_label
from torchpeek.render.plots import GradientRow, draw_gradient_norms, figure_class, name_layers
from torchpeek.render.training import (
    COLUMN_LABELS,
    FlowColumn,
    StepRow,
    block_colours,
    block_counts,
    draw_blocks,
    name_blocks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (6.4, 4.4)  # inches
_BLUE, _GREY = "#3366aa", "#777777"


def plot_axes(ax: Axes | None, size: tuple[float, float] = _SIZE) -> Axes:
    """Return the axes to draw on: those of the caller, or those of a new figure of pyplot, which notebooks show.

    Raises:
        InputError: When `ax` is something else than axes.
        TorchpeekError: When matplotlib is not installed.
    """
    figure_class()  # says what to install
    if ax is None:
        from matplotlib import pyplot

        axes: Axes = pyplot.subplots(figsize=size, layout="constrained")[1]
        return axes
    if not hasattr(ax, "plot"):
        raise InputError(f"ax is {type_shown(ax)}; allowed: matplotlib's Axes, such as plt.gca(), or None")
    return ax


def image_plot(ax: Axes | None, image: Image.Image) -> Axes:
    """Draw an image without ticks."""
    axes = plot_axes(ax, (_SIZE[0], max(2.0, min(12.0, _SIZE[0] * image.height / image.width))))
    axes.imshow(np.asarray(image))
    axes.set_axis_off()
    return axes


def curve_plot(
    ax: Axes | None,
    curves: Mapping[str, Tensor],
    baselines: Mapping[str, Tensor],
    *,
    title: str,
    metric: str = "",
    seed: Seed = 0,
) -> Axes:
    """Draw the mean of each (N, steps + 1), with its 95 % confidence interval; baselines are dashed.

    The legend gives the area under each curve.
    """
    axes = plot_axes(ax)
    dashes = ((6, 2), (3, 1.5), (1.5, 1))
    for number, (name, values) in enumerate(baselines.items()):
        draw_curve(axes, name, values, color=_GREY, linestyle=(0, dashes[number % 3]), zorder=1)
    for number, (name, values) in enumerate(curves.items()):
        colour = CURVE_COLOURS[number % len(CURVE_COLOURS)]
        draw_curve(axes, name, values, color=colour, linestyle="-", zorder=2)
        draw_band(axes, values, seed, color=colour, alpha=0.15)
    count = max(map(len, curves.values()))
    axes.set(xlim=(0, 1), xlabel=share_label(metric), title=title)
    axes.set_ylabel(f"score, mean of {count} samples" if count > 1 else "score")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(title="area under the curve", fontsize=8, title_fontsize=8)
    return axes


def interval_plot(
    ax: Axes | None, intervals: Mapping[str, tuple[float, float, float]], *, title: str, label: str
) -> Axes:
    """Draw named means, each with its interval: name -> (mean, low, high), NaN where there is no interval."""
    axes = plot_axes(ax)
    for x, (mean, low, high) in enumerate(intervals.values()):
        colour = _BLUE if x == 0 else _GREY
        axes.plot([x, x], [low, high], color=colour, linewidth=1.6)
        axes.plot([x], [mean], marker="o", color=colour)
    axes.set_xticks(range(len(intervals)), list(intervals))
    axes.set_xlim(-0.6, len(intervals) - 0.4)
    axes.set(ylabel=label, title=title)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    return axes


def spread_plot(ax: Axes | None, layers: Sequence[str], means: Sequence[float], deviations: Sequence[float]) -> Axes:
    """Draw the mean of each layer's values, with one standard deviation above and below it."""
    width = min(24.0, max(_SIZE[0], 1.5 + 0.13 * len(layers)))
    axes = plot_axes(ax, (width, 5.0))
    axes.errorbar(range(len(layers)), means, deviations, fmt="o", color=_BLUE, ecolor="#99b3d6", markersize=4)
    axes.axhline(0, color=_GREY, linewidth=0.6)
    axes.set_ylabel("mean of the values, ± standard deviation")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    name_layers(axes, layers, set(), _inches(axes))
    return axes


def gradient_plot(ax: Axes | None, rows: Sequence[GradientRow], *, log: bool) -> Axes:
    """Draw the gradient norm of each parameter. Norms that the axis cannot show are marked along its lower edge.

    Raises:
        InputError: When there are no rows.
        TorchpeekError: When matplotlib is not installed.
    """
    if not rows:
        raise InputError("there is no parameter, so there is nothing to plot")
    layers = dict.fromkeys(row.layer for row in rows)
    axes = plot_axes(ax, (min(24.0, max(_SIZE[0], 1.5 + 0.13 * len(layers))), 5.0))
    draw_gradient_norms(axes, rows, log=log, width=_inches(axes))
    return axes


def training_plot(ax: Axes | None, rows: Sequence[StepRow], column: FlowColumn) -> Axes:
    """Draw one number of each block, step by step: a line is a block.

    Raises:
        InputError: When there are no rows.
        OptionError: When there is no such column.
        TorchpeekError: When matplotlib is not installed.
    """
    if column not in COLUMN_LABELS:
        raise OptionError(f"column is {column!r}; allowed: {', '.join(map(repr, COLUMN_LABELS))}")
    if not rows:
        raise InputError("no step was watched, so there is nothing to plot")
    axes = plot_axes(ax, (9.0, 4.0))
    lines = draw_blocks(axes, rows, column, block_colours(rows))
    axes.set_title(block_counts(rows, lines), fontsize=10, loc="left")
    name_blocks(axes, lines)
    return axes


def _inches(axes: Axes) -> float:
    """The width of the figure that the axes would fill."""
    return float(axes.get_window_extent().width / axes.figure.dpi) + 1.5

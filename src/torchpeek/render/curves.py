"""Plots of deletion and insertion curves, a panel for each metric."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import torch
from torch import Tensor

from torchpeek.argument_types import Allowed, Seed
from torchpeek.bootstrap import bootstrap_interval
from torchpeek.errors import InputError
from torchpeek.keywords import checked_keywords
from torchpeek.render.plots import figure_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves: TypeAlias = Mapping[str, Tensor]
"""Name -> (N, steps + 1): the curve of each of N pictures, at shares from 0 to 1."""

Panels: TypeAlias = Annotated[
    Mapping[str, Curves], Allowed("a dict from a metric to a dict from a method to curves, tensors (N, steps + 1)")
]
"""The curves of each metric."""

CURVE_COLOURS = [
    "#3366aa",
    "#dd7711",
    "#2a9d5c",
    "#cc2233",
    "#8855bb",
    "#8c5a3c",
    "#d657a5",
    "#11a3b5",
    "#9a9a11",
    "#14315c",
]
_STYLES = ("-", "-.", ":", (0, (8, 1, 1, 1, 1, 1)))
# Baselines: three greys and four dashes, each in turn, make twelve styles. The first three share neither.
_GREYS, _DASHES = ("#222222", "#8a8a8a", "#555555"), ((6, 2), (3, 1.5), (1.5, 1), (6, 1, 1, 1))
_SHARES = {
    "deletion": "share of the picture removed, what matters most first",
    "insertion": "share of the picture put back, what matters most first",
}
_BETTER = {"deletion": "lower is better", "insertion": "higher is better"}
_SHORT, _LONG = 25, 60  # longest name, in letters, of two in a row of the legend, and of one


@checked_keywords
def curves(
    panels: Panels,
    *,
    baselines: Panels | None = None,
    score: str = "probability",
    title: str = "",
    seed: Seed = 0,
) -> Figure:
    """Plot the mean curve of each method over N pictures, a panel for each metric.

    A method has the same colour in every panel. The legend gives the area under each curve. With several pictures, a
    band shows the 95 % confidence interval of the mean at each step, by bootstrap. A picture whose curve has NaN is
    left out of that curve. Needs the extra `plot`.

    Args:
        panels: Metric -> method -> curves (N, steps + 1), such as
            `{"deletion": {"gradcam": m["deletion"].curve[:, 0]}}`.
        baselines: Metric -> baseline -> curves, drawn dashed.
        score: Name of the score, for the label of the axis.
        title: Title of the figure.
        seed: Seed of the bootstrap.

    Returns:
        A matplotlib Figure.

    Raises:
        InputError: When there is nothing to draw, or a curve has another shape.
        TorchpeekError: When matplotlib is not installed.

    Example:
        >>> curves = {"deletion": {"gradcam": torch.rand(3, 11), "layercam": torch.rand(3, 11)}}
        >>> figure = tp.render.curves(curves, title="three pictures")
        >>> len(figure.axes)
        1
    """
    figure_of = figure_class()
    dashed = baselines or {}
    _check(panels, dashed)
    names = list(dict.fromkeys(name for methods in panels.values() for name in methods))
    styles: list[dict[str, Any]] = [
        {"color": colour, "linestyle": dashes} for dashes, colour in product(_STYLES, CURVE_COLOURS)
    ]
    baseline_styles: list[dict[str, Any]] = [
        {"color": _GREYS[number % 3], "linestyle": (0, _DASHES[number % 4])} for number in range(12)
    ]
    pictures = max(len(values) for methods in panels.values() for values in methods.values())
    lines = [[*methods, *dashed.get(panel, {})] for panel, methods in panels.items()]
    longest = max(map(len, lines))
    columns = 2 if longest > 8 and all(len(name) <= _SHORT for each in lines for name in each) else 1
    figure = figure_of(figsize=(5.4 * len(panels), 4.2 + 0.2 * -(-longest // columns)), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (panel, methods) in zip(grid, panels.items(), strict=True):
        for number, (name, values) in enumerate(dashed.get(panel, {}).items()):
            draw_curve(axes, f"{name}, baseline", values, **baseline_styles[number % len(baseline_styles)], zorder=3)
        for name, values in methods.items():
            style = styles[names.index(name) % len(styles)]
            draw_curve(axes, name, values, **style, zorder=2)
            draw_band(axes, values, seed, color=style["color"], alpha=min(0.14, 0.3 / len(methods)))
        axes.set_title(f"{panel}: {_BETTER[panel]}" if panel in _BETTER else panel, fontsize=10, loc="left")
        axes.set_xlabel(share_label(panel), fontsize=9)
        axes.set_xlim(0, 1)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.tick_params(labelsize=8, labelleft=True)
        _name_lines(axes, len(methods), columns, banded=pictures > 1)
    grid[0].set_ylabel(f"{score}, {f'mean of {pictures} pictures' if pictures > 1 else '1 picture'}", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def _check(panels: Mapping[str, Curves], baselines: Mapping[str, Curves]) -> None:
    if not panels or not all(panels.values()):
        raise InputError("panels has nothing to draw; give metric -> method -> curves (N, steps + 1)")
    if unknown := [panel for panel in baselines if panel not in panels]:
        raise InputError(f"baselines has {unknown[0]!r}, which is not a panel; allowed: {', '.join(map(repr, panels))}")
    for panel, methods in [*panels.items(), *baselines.items()]:
        for name, values in methods.items():
            if values.ndim != 2 or not len(values) or values.shape[1] < 2:
                raise InputError(
                    f"the curves {name!r} of {panel!r} are {tuple(values.shape)}; allowed: a tensor (N, steps + 1)"
                )


def _known(values: Tensor) -> Tensor:
    """Return the curves without NaN, (n, steps + 1), also if n is 0."""
    wide = values.detach().double().cpu()
    return wide[~wide.isnan().any(1)]


def _shares(values: Tensor) -> list[float]:
    shares: list[float] = torch.linspace(0, 1, values.shape[1], dtype=torch.float64).tolist()
    return shares


def share_label(metric: str) -> str:
    """Return the label of the axis along which a metric's curve goes."""
    return _SHARES.get(metric, "share of the picture")


def draw_curve(axes: Axes, name: str, values: Tensor, *, color: str, linestyle: Any, zorder: int) -> None:
    """Draw the mean of curves (N, steps + 1), named with the area under it."""
    mean = _known(values).mean(0)
    area = float(torch.trapezoid(mean, dx=1 / (len(mean) - 1)))
    label = f"{area:.3f}  {name if len(name) <= _LONG else f'{name[: _LONG - 1]}…'}"
    style: dict[str, Any] = {"color": color, "linestyle": linestyle, "linewidth": 1.4, "zorder": zorder}
    axes.plot(_shares(values), mean.tolist(), label=label, **style)


def draw_band(axes: Axes, values: Tensor, seed: int, *, color: str, alpha: float) -> None:
    """Draw the 95 % confidence interval of the mean curve, if there are at least two."""
    known = _known(values)
    if len(known) < 2:  # one picture has no interval
        return
    low, high = bootstrap_interval(known, seed=seed)
    axes.fill_between(_shares(values), low.tolist(), high.tolist(), color=color, alpha=alpha, linewidth=0, zorder=1)


def _name_lines(axes: Axes, methods: int, columns: int, *, banded: bool) -> None:
    """Add the legend: the methods first, then the baselines, which are drawn first."""
    lines = axes.lines[-methods:] + axes.lines[:-methods]
    axes.legend(
        handles=lines,
        title=f"area under the mean curve{'; bands: 95 % interval of the mean' if banded else ''}",
        title_fontsize=8,
        fontsize=8,
        ncols=columns,
        loc="upper left",
        bbox_to_anchor=(0, -0.16),
        frameon=False,
        alignment="left",
        borderaxespad=0,
        borderpad=0,
    )

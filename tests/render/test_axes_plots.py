"""Plots on the caller's own axes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import torchpeek as tp
from torchpeek.errors import InputError
from torchpeek.render.axes_plots import gradient_plot, plot_axes


@dataclass
class Row:
    layer: str
    parameter: str
    gradient_norm: float | None
    weight_norm: float = 1.0
    gradient_mean_abs: float | None = None
    gradient_max_abs: float | None = None
    numel: int = 1


class TestGradients:
    def test_norms_and_what_the_axis_cannot_show(self) -> None:
        rows = [
            Row("a", "weight", 1e-3),
            Row("a", "bias", 0.0),
            Row("b", "weight", None),
            Row("c", "weight", 10.0),
            Row("c", "bias", math.nan),
        ]
        ax = Figure().subplots()
        assert gradient_plot(ax, rows, log=True) is ax
        lines = {line.get_label(): line for line in ax.lines}
        assert np.allclose(lines["weight"].get_ydata(), [1e-3, np.nan, 10.0], equal_nan=True)
        found = {name: list(lines[name].get_xdata()) for name in ("zero", "no gradient", "NaN or infinite")}
        assert found == {"zero": [0], "no gradient": [1], "NaN or infinite": [2]}
        heights = [lines[name].get_ydata()[0] for name in found]
        assert len(set(heights)) == 3
        assert all(0 <= height < 0.2 for height in heights)  # shares of the axes' height
        low, high = ax.get_ylim()
        assert 1e-4 < low < 1e-3 < 10 < high < 100
        assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]

    def test_of_gradient_flow(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        flow = tp.gradient_flow(model, torch.rand(2, 3, 8, 8), torch.tensor([1, 3]))
        ax = flow.plot(Figure().subplots(), log=False)
        assert ax.get_yscale() == "linear"
        assert [line.get_ydata()[0] for line in ax.lines] == [row.gradient_norm for row in flow]

    def test_no_rows(self) -> None:
        with pytest.raises(InputError, match="nothing to plot"):
            gradient_plot(None, [], log=True)


def test_statistics_draw_mean_and_deviation() -> None:
    table = tp.statistics(nn.Sequential(nn.Identity()), [torch.tensor([[0.0, 2.0], [4.0, 6.0]])])
    ax = table.plot(Figure().subplots())
    [bars] = ax.containers
    assert list(bars.lines[0].get_ydata()) == [3.0]
    summary = table["0"].output.summary()
    [(_, low), (_, high)] = bars.lines[2][0].get_segments()[0]
    assert (low, high) == pytest.approx((3 - summary.std, 3 + summary.std))


def test_new_axes_are_pyplots() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    axes = plot_axes(None)
    assert len(pyplot.get_fignums()) == len(before) + 1
    assert pyplot.gca() is axes
    pyplot.close(axes.figure)


def test_what_is_no_axes() -> None:
    with pytest.raises(InputError, match=r"ax is a Figure; allowed: matplotlib's Axes, such as plt.gca\(\), or None"):
        plot_axes(Figure())  # type: ignore[arg-type]

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
from torchpeek.anatomy import TrainingFlow
from torchpeek.errors import InputError, OptionError
from torchpeek.render.axes_plots import gradient_plot, plot_axes
from torchpeek.render.training import FlowColumn


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


class TestTraining:
    def flow(self, layers: int = 2, steps: int = 3) -> TrainingFlow:
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(layers)])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tp.watch(model, every=1) as flow:
            for _ in range(steps):
                optimizer.zero_grad()
                model(torch.ones(2, 3)).square().mean().backward()
                optimizer.step()
        return flow

    @pytest.mark.parametrize(
        ("column", "label"),
        [
            ("gradient_norm", "gradient norm"),
            ("weight_norm", "weight norm"),
            ("update_norm", "update norm"),
            ("update_ratio", "update / weights"),
        ],
    )
    def test_each_column(self, column: FlowColumn, label: str) -> None:
        flow = self.flow()
        ax = flow.plot(Figure().subplots(), column=column)
        assert (ax.get_ylabel(), ax.get_xlabel(), ax.get_yscale()) == (label, "step", "log")
        lines = {line.get_gid(): line for line in ax.lines if line.get_gid() in ("0", "1")}
        for layer, line in lines.items():
            assert list(line.get_xdata()) == [0, 1, 2]
            assert list(line.get_ydata()) == [getattr(row, column) for row in flow if row.layer == layer]
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1"]
        assert len(ax.lines) == 2 + (column == "update_ratio")  # the line at a usual ratio

    def test_is_the_figure_of_render(self) -> None:
        flow = self.flow()
        above, below = tp.render.training_flow(flow).axes
        for theirs, column in ((above, "gradient_norm"), (below, "update_ratio")):
            ours = flow.plot(Figure().subplots(), column=column)  # type: ignore[arg-type]
            assert [list(line.get_ydata()) for line in ours.lines] == [list(line.get_ydata()) for line in theirs.lines]
            assert [line.get_color() for line in ours.lines] == [line.get_color() for line in theirs.lines]

    def test_two_on_the_same_axes(self) -> None:
        flow, ax = self.flow(), Figure().subplots()
        ax.set_xticks([0.5])
        flow.plot(flow.plot(ax))
        assert len(ax.lines) == 4
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1"]

    def test_one_step_has_whole_numbers_beside_it(self) -> None:
        assert self.flow(steps=1).plot(Figure().subplots()).get_xlim() == (-1, 1)

    def test_refusals(self) -> None:
        with pytest.raises(InputError, match="no step was watched"):
            TrainingFlow(every=1).plot()
        with pytest.raises(OptionError, match="column is 'loss'; allowed: 'gradient_norm', 'weight_norm'"):
            self.flow().plot(column="loss")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="ax is a Figure"):
            self.flow().plot(Figure())  # type: ignore[arg-type]


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

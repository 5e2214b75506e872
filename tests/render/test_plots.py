"""Plots of gradient flow and histograms: what is drawn is what was measured."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from torchpeek.errors import InputError, TorchpeekError
from torchpeek.render import gradient_flow, histograms


@dataclass
class Row:
    """What anatomy's gradient_flow() has a sequence of."""

    layer: str
    parameter: str
    gradient_norm: float | None
    weight_norm: float = 1.0
    gradient_mean_abs: float = 0.1
    gradient_max_abs: float = 0.2
    numel: int = 10


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch):
    """Draws a figure in full; matplotlib's global state cannot even be imported meanwhile."""
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)

    def draw(figure):
        figure.canvas.draw()
        return figure

    return draw


def lines_of(axes) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


class TestGradientFlow:
    def test_draws_the_numbers(self, drawn) -> None:
        rows = [
            Row("conv1", "weight", 0.5),
            Row("conv1", "bias", 0.1),
            Row("bn", "weight", 2.0),
            Row("conv2", "weight", 30.0),
            Row("token", "position", 0.01),
        ]
        figure = drawn(gradient_flow(rows))
        (axes,) = figure.axes
        assert lines_of(axes) == {
            "weight": ([0, 2 - 1, 2], [0.5, 2.0, 30.0]),
            "bias": ([0], [0.1]),
            "other": ([3], [0.01]),
        }
        assert axes.get_yscale() == "log"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["conv1", "bn", "conv2", "token"]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["weight", "bias", "other"]
        assert len({line.get_marker() for line in axes.lines}) == 3
        assert axes.get_title(loc="left") == "5 parameters in 4 layers"

    def test_what_the_axis_cannot_show_is_marked(self, drawn) -> None:
        norms = [1.0, 0.0, float("nan"), float("inf"), None, 2.0]
        figure = drawn(gradient_flow([Row(f"layer{n}", "weight", norm) for n, norm in enumerate(norms)]))
        axes, strip = figure.axes
        x, y = lines_of(axes)["weight"]
        assert x == list(range(6))
        np.testing.assert_array_equal(y, [1.0] + [np.nan] * 4 + [2.0])  # the line is broken, not drawn through
        reasons = [label.get_text() for label in strip.get_yticklabels()]
        assert reasons == ["zero", "NaN or infinite", "no gradient"]
        x, y = lines_of(strip)["weight"]
        assert [(at, reasons[round(place)]) for at, place in zip(x, y, strict=True)] == [
            (1, "zero"),
            (2, "NaN or infinite"),
            (3, "NaN or infinite"),
            (4, "no gradient"),
        ]
        red = [label.get_text() for label in strip.get_xticklabels() if label.get_color() != "black"]
        assert red == ["layer1", "layer2", "layer3", "layer4"]
        assert axes.get_title(loc="left") == ("6 parameters in 6 layers, zero: 1, NaN or infinite: 2, no gradient: 1")

    @pytest.mark.parametrize("log", [True, False])
    def test_nothing_but_zeros(self, drawn, log: bool) -> None:
        figure = drawn(gradient_flow([Row("a", "weight", 0.0), Row("b", "bias", None)], log=log))
        axes, strip = figure.axes
        assert set(lines_of(strip)) == {"weight", "bias"}
        assert lines_of(axes) == ({} if log else {"weight": ([0], [0.0])})
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["weight", "bias"]

    def test_a_linear_axis_shows_zero(self, drawn) -> None:
        figure = drawn(gradient_flow([Row("a", "weight", 0.0), Row("b", "weight", 3.0)], log=False))
        assert figure.axes[0].get_yscale() == "linear"
        assert lines_of(figure.axes[0])["weight"] == ([0, 1], [0.0, 3.0])

    @pytest.mark.parametrize("layers", [1, 5, 160, 700])
    def test_names_do_not_overlap(self, drawn, layers: int) -> None:
        rows = [Row(f"features.{n}", "weight", 0.0 if n == 101 else 1.0) for n in range(layers)]
        figure = drawn(gradient_flow(rows))
        assert 7 <= figure.get_size_inches()[0] <= 24
        labels = [label for label in figure.axes[-1].get_xticklabels() if label.get_text()]
        boxes = sorted((label.get_window_extent().x0, label.get_window_extent().x1) for label in labels)
        assert all(right <= left for (_, right), (left, _) in itertools.pairwise(boxes))
        names = [label.get_text() for label in labels]
        assert len(names) == layers or layers == 700
        assert ("features.101" in names) == (layers > 101)

    def test_no_rows(self) -> None:
        pytest.importorskip("matplotlib")
        with pytest.raises(InputError, match="rows is empty"):
            gradient_flow([])


class TestHistograms:
    def test_draws_densities_over_uneven_bins(self, drawn) -> None:
        counts, edges = np.array([2, 2, 4]), torch.tensor([-1.0, 0.0, 2.0, 6.0])
        figure = drawn(histograms({"conv1": (counts, edges)}))
        (axes,) = figure.axes
        assert axes.get_title() == "conv1"
        values, drawn_edges, _ = axes.patches[0].get_data()
        np.testing.assert_allclose(values, [2 / 8, 1 / 8, 1 / 8])
        np.testing.assert_allclose(drawn_edges, [-1, 0, 2, 6])
        (zero,) = axes.lines
        assert list(zero.get_xdata()) == [0, 0]

    def test_empty_ends_are_left_out(self, drawn) -> None:
        figure = drawn(histograms({"a": ([0, 1, 0, 3, 0, 0], [-1e6, 1, 2, 3, 4, 5, 1e6])}))
        values, edges, _ = figure.axes[0].patches[0].get_data()
        np.testing.assert_allclose(edges, [1, 2, 3, 4])
        np.testing.assert_allclose(values, [0.25, 0, 0.75])

    def test_fine_bins_are_drawn_together_and_areas_stay(self, drawn) -> None:
        edges = np.concatenate([-np.geomspace(10, 1e-6, 200), np.geomspace(1e-6, 10, 200)])
        counts, _ = np.histogram(np.random.default_rng(0).normal(size=10_000), edges)
        figure = drawn(histograms({"a": (torch.tensor(counts), edges)}))
        values, merged, _ = figure.axes[0].patches[0].get_data()
        assert set(merged) <= set(edges)
        assert (np.diff(merged)[:-1] >= np.ptp(merged) / 200 * 0.999).all()
        np.testing.assert_allclose((values * np.diff(merged)).sum(), 1)
        for value, low, high in zip(values, merged, merged[1:], strict=False):
            inside = counts[(edges[:-1] >= low) & (edges[1:] <= high)].sum()
            np.testing.assert_allclose(value, inside / 10_000 / (high - low))

    def test_a_tower_is_cut_off_and_its_share_written(self, drawn) -> None:
        figure = drawn(histograms({"relu": ([600, 100, 200, 100], [0, 1, 2, 3, 4])}))
        (axes,) = figure.axes
        assert [text.get_text() for text in axes.texts] == []  # three times as high is no tower
        figure = drawn(histograms({"relu": ([700, 100, 100, 100], [0, 1, 2, 3, 4])}))
        (axes,) = figure.axes
        assert [text.get_text() for text in axes.texts] == ["70% in 0 to 1"]
        assert 0.1 < axes.get_ylim()[1] < 0.2

    def test_zero_outside_is_pointed_at(self, drawn) -> None:
        figure = drawn(histograms({"right": ([1, 1], [1, 2, 3]), "left": ([1, 1], [-3, -2, -1])}))
        assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["← 0"], ["0 →"]]
        assert not any(axes.lines for axes in figure.axes)

    @pytest.mark.parametrize("layers", [1, 2, 7, 60])
    def test_one_plot_for_each_layer_in_order(self, drawn, layers: int) -> None:
        names = [f"layer{n}" for n in range(layers)]
        figure = drawn(histograms({name: ([1, 2], [-1, 0, n + 1]) for n, name in enumerate(names)}))
        assert [axes.get_title() for axes in figure.axes] == names
        width, height = figure.get_size_inches()
        assert width <= 12
        assert height <= 20

    def test_no_values_at_all(self, drawn) -> None:
        figure = drawn(histograms({"a": ([0, 0], [0, 1, 2])}))
        assert figure.axes[0].texts[0].get_text() == "no values"

    def test_bad_input(self) -> None:
        pytest.importorskip("matplotlib")
        with pytest.raises(InputError, match="distributions is empty"):
            histograms({})
        with pytest.raises(InputError, match=r"distributions is .*; allowed: a dict from a name to \(counts, edges\)"):
            histograms({"a": np.zeros(3)})  # type: ignore[dict-item]
        with pytest.raises(InputError, match=r"counts of shape \(2,\) and edges of shape \(2,\)"):
            histograms({"a": ([1, 2], [0, 1])})
        for edges in ([0, 0, 1], [1, 0, 2], [0, 1, float("inf")]):
            with pytest.raises(InputError, match="edges of 'a' are not finite and rising"):
                histograms({"a": ([1, 2], edges)})
        for counts in ([1, -1], [1, float("nan")]):
            with pytest.raises(InputError, match="counts of 'a'"):
                histograms({"a": (counts, [0, 1, 2])})


class Hidden:
    """An import finder for which matplotlib is not installed."""

    def find_spec(self, name: str, path=None, target=None) -> None:
        if name == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    for plot in (lambda: gradient_flow([Row("a", "weight", 1.0)]), lambda: histograms({"a": ([1], [0, 1])})):
        with pytest.raises(TorchpeekError, match=r"matplotlib is not installed; next: pip install 'torchpeek\[plot\]'"):
            plot()


def test_no_figure_is_registered() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    gradient_flow([Row("a", "weight", 1.0)])
    histograms({"a": ([1], [0, 1])})
    assert pyplot.get_fignums() == before

"""The figure of deletion and insertion curves: the lines, bands and labels that are drawn."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import torchpeek as tp
from torchpeek.errors import InputError, TorchpeekError
from torchpeek.render import curves


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch):
    """Draws a figure in full; matplotlib's global state cannot even be imported meanwhile."""
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)

    def draw(figure: Any) -> Any:
        figure.canvas.draw()
        return figure

    return draw


def given(pictures: int = 5, steps: int = 4) -> dict[str, dict[str, Tensor]]:
    """Two metrics, in one of which the second method comes first."""
    torch.manual_seed(0)
    names = {"deletion": ("gradcam", "layercam"), "insertion": ("layercam", "gradcam")}
    return {metric: {name: torch.rand(pictures, steps + 1) for name in each} for metric, each in names.items()}


def lines_of(axes: Any) -> dict[str, Any]:
    """By name, without the area."""
    return {line.get_label().split("  ", 1)[1]: line for line in axes.lines}


def area(values: Tensor) -> float:
    mean = values.double().mean(0).numpy()
    return float(((mean[1:] + mean[:-1]) / 2).mean())


def test_draws_the_means(drawn) -> None:
    panels, baselines = given(), {metric: {"random": torch.rand(5, 5)} for metric in ("deletion", "insertion")}
    figure = drawn(curves(panels, baselines=baselines))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "deletion: lower is better",
        "insertion: higher is better",
    ]
    for axes, (metric, methods) in zip(figure.axes, panels.items(), strict=True):
        lines = lines_of(axes)
        assert set(lines) == {*methods, "random, baseline"}
        for name, values in {**methods, "random, baseline": baselines[metric]["random"]}.items():
            assert list(lines[name].get_xdata()) == [0, 0.25, 0.5, 0.75, 1]
            assert list(lines[name].get_ydata()) == pytest.approx(values.double().mean(0).tolist())
            assert lines[name].get_label().split()[0] == f"{area(values):.3f}"
        legend = [text.get_text().split("  ", 1)[1] for text in axes.get_legend().get_texts()]
        assert legend == [*methods, "random, baseline"]
    assert "mean of 5 pictures" in figure.axes[0].get_ylabel()


def test_the_area_is_the_metric(drawn, net) -> None:
    """That of the mean curve is the mean of the pictures' areas, which is what deletion is."""
    x = torch.rand(3, 3, 8, 6, dtype=torch.float64)
    found = tp.evaluate(net, x, tp.explain(net, x), metrics={"deletion": {"steps": 5}})["deletion"]
    figure = drawn(curves({"deletion": {"gradcam": found.curve[:, 0]}}))
    (line,) = figure.axes[0].lines
    assert line.get_label() == f"{float(found.values.mean()):.3f}  gradcam"


def test_baselines_are_dashed_and_methods_are_not(drawn) -> None:
    panels = given()
    dashes = {name: torch.rand(5, 5) for name in ("random", "centre")}
    (axes, _) = drawn(curves(panels, baselines={"deletion": dashes})).axes
    lines = lines_of(axes)
    assert {lines[name].is_dashed() for name in ("random, baseline", "centre, baseline")} == {True}
    assert {lines[name].is_dashed() for name in panels["deletion"]} == {False}
    assert len({(line.get_color(), str(line.get_linestyle())) for line in axes.lines}) == 4


def test_a_method_looks_alike_in_every_panel_and_like_no_other(drawn) -> None:
    names = list(tp.METHODS)
    panels = {"deletion": {name: torch.rand(1, 3) for name in names}}
    panels["insertion"] = {name: torch.rand(1, 3) for name in reversed(names)}
    looks = [
        {name: (line.get_color(), line.get_linestyle()) for name, line in lines_of(axes).items()}
        for axes in drawn(curves(panels)).axes
    ]
    assert looks[0] == looks[1]
    assert len(set(looks[0].values())) == len(names)


def test_the_band_is_the_bootstrap_of_each_step(drawn) -> None:
    values = torch.rand(12, 4)
    (axes,) = drawn(curves({"deletion": {"gradcam": values}}, seed=7)).axes
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for step in range(4):
        interval = tp.metrics.bootstrap(values[:, step], seed=7)
        at = corners[np.isclose(corners[:, 0], step / 3), 1]
        assert (at.min(), at.max()) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert "95 %" in axes.get_legend().get_title().get_text()


def test_one_picture_has_no_band(drawn) -> None:
    for axes in drawn(curves(given(pictures=1))).axes:
        assert not axes.collections
        assert "95 %" not in axes.get_legend().get_title().get_text()
    assert axes.figure.axes[0].get_ylabel() == "probability, 1 picture"


def test_a_picture_with_nan_is_left_out(drawn) -> None:
    values = torch.tensor([[0.0, 1.0], [1.0, 3.0], [5.0, float("nan")]])
    (axes,) = drawn(curves({"deletion": {"gradcam": values}})).axes
    assert list(axes.lines[0].get_ydata()) == [0.5, 2.0]


def test_words(drawn) -> None:
    figure = drawn(curves({"aopc": {"gradcam": torch.rand(2, 3)}}, score="cosine", title="a net (random weights)"))
    assert figure.get_suptitle() == "a net (random weights)"
    assert figure.axes[0].get_ylabel() == "cosine, mean of 2 pictures"
    assert figure.axes[0].get_title(loc="left") == "aopc"


@pytest.mark.parametrize("methods", [2, 14, 28])
def test_nothing_lies_over_anything_else(drawn, methods) -> None:
    """However many methods there are, and however long their names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names = [f"{'a long name of ' * (n % 3)}method {n}" for n in range(methods)]
    panels = {metric: {name: torch.rand(2, 5) for name in names} for metric in ("deletion", "insertion")}
    figure = drawn(
        curves(panels, baselines={"deletion": {"random (grid of transformer-attribution)": torch.rand(2, 5)}})
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    left, right = (axes.get_legend().get_window_extent(renderer) for axes in figure.axes)
    assert left.x1 < right.x0
    for axes, legend in zip(figure.axes, (left, right), strict=True):
        box = axes.get_window_extent(renderer)
        assert axes.xaxis.label.get_window_extent(renderer).y0 > legend.y1
        assert box.width > 0.35 * figure.bbox.width
        assert box.height > 300


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ({}, "panels has nothing to draw"),
        ({"deletion": {}}, "panels has nothing to draw"),
        ({"deletion": {"gradcam": torch.rand(5)}}, r"the curves 'gradcam' of 'deletion' are \(5,\); allowed: a tensor"),
        ({"deletion": {"gradcam": torch.rand(5, 1)}}, r"are \(5, 1\); allowed"),
        ({"deletion": {"gradcam": torch.rand(0, 3)}}, r"are \(0, 3\); allowed"),
        ({"deletion": {"gradcam": [0.1, 0.2]}}, r"allowed: a dict from a metric to a dict from a method to curves"),
    ],
)
def test_what_cannot_be_drawn(panels, message) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match=message):
        curves(panels)
    if panels and panels["deletion"]:
        with pytest.raises(InputError, match=message):
            curves({"deletion": {"cam": torch.rand(1, 2)}}, baselines=panels)


def test_baselines_of_another_panel() -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(
        InputError, match=r"baselines has 'deletions', which is not a panel; allowed: 'deletion', 'insertion'"
    ):
        curves(given(), baselines={"deletions": {"random": torch.rand(1, 2)}})


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)

    class Hidden:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == "matplotlib":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    with pytest.raises(TorchpeekError, match=r"matplotlib is not installed; next: pip install 'torchpeek\[plot\]'"):
        curves(given())


def test_no_figure_is_registered() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    curves(given())
    assert pyplot.get_fignums() == before

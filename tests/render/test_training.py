"""The plot of a training: what is drawn is what was watched."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import pytest

from torchpeek.errors import InputError
from torchpeek.render import training_flow


@dataclass
class Row:
    """What `tp.watch` yields a sequence of."""

    step: int
    layer: str
    gradient_norm: float | None
    update_ratio: float | None


@pytest.fixture(autouse=True)
def _without_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)


def points(axes, layer: str) -> list[tuple[int, float]]:  # type: ignore[no-untyped-def]
    (line,) = (line for line in axes.lines if line.get_gid() == layer)
    return list(zip(map(int, line.get_xdata()), map(float, line.get_ydata()), strict=True))


def test_draws_the_numbers() -> None:
    rows = [
        Row(0, "conv", 2.0, 1e-3),
        Row(0, "", 1.0, None),
        Row(0, "frozen", None, None),
        Row(10, "conv", 4.0, 1e-2),
        Row(10, "", 0.5, 1e-4),
        Row(10, "frozen", None, None),
    ]
    figure = training_flow(rows, title="a net")
    figure.canvas.draw()
    above, below = figure.axes
    assert points(above, "conv") == [(0, 2.0), (10, 4.0)]
    assert points(below, "conv") == [(0, 1e-3), (10, 1e-2)]
    assert points(above, "") == [(0, 1.0), (10, 0.5)]
    assert above.get_title(loc="left") == "a net\n3 blocks, 2 steps, without values: 1"
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["conv", "(model)"]


def test_what_a_logarithmic_axis_cannot_show_is_a_gap() -> None:
    norms = [1.0, 0.0, math.inf, math.nan, 2.0]
    figure = training_flow([Row(step, "a", norm, None) for step, norm in enumerate(norms)])
    figure.canvas.draw()
    drawn = [value for _, value in points(figure.axes[0], "a")]
    assert [math.isnan(value) for value in drawn] == [False, True, True, True, False]


def test_many_blocks_are_named_from_the_first_to_the_last() -> None:
    figure = training_flow([Row(0, f"layer{n}", 1.0 + n, None) for n in range(60)])
    figure.canvas.draw()
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert (len(names), names[0], names[-1]) == (14, "layer0", "layer59")
    assert figure.axes[0].get_legend().get_title().get_text() == "14 of 60 blocks"
    assert len(figure.axes[0].lines) == 60


def test_nothing_to_draw() -> None:
    with pytest.raises(InputError, match="rows is empty"):
        training_flow([])
    training_flow([Row(0, "a", None, None)]).canvas.draw()

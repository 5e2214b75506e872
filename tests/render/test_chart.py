"""Charts: points, ticks and areas against a hand-computed case, and the text for those who cannot see them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from torchpeek.render.chart import Chart, ChartLine

NAN = math.nan


def chart(*values: list[float]) -> Chart:
    return Chart([ChartLine(f"m{n}", each, n) for n, each in enumerate(values)], "share", "p")


def positions(shown: Chart, number: int = 0) -> list[tuple[float, float]]:
    """The points of a line, in the numbers of the axes: the left end is 44, the right end 390, and so on."""
    ticks = shown.ticks
    (low, low_text), (high, high_text) = ticks[0], ticks[-1]
    scale = (float(high_text) - float(low_text)) / (high - low)
    points = [each.split(",") for part in shown.points(shown.lines[number]) for each in part.split()]
    return [((float(x) - 44) / 346, float(low_text) + (float(y) - low) * scale) for x, y in points]


@pytest.mark.parametrize(
    "values", [[0.9, 0.4, 0.1], [-3.0, 12.5, 7.0], [1e-6, 3e-6, 2e-6], [250.0, 1e4], [0.0, 0.0], [-2.0, -1.0]]
)
def test_a_point_is_where_the_axes_say(values: list[float]) -> None:
    size = max(map(abs, values)) or 1.0
    found = positions(chart(values))
    assert [x for x, _ in found] == pytest.approx([n / (len(values) - 1) for n in range(len(values))], abs=1e-3)
    assert [y for _, y in found] == pytest.approx(values, abs=0.01 * size)


def test_the_ticks_include_zero_and_every_value() -> None:
    for values in ([0.2, 0.7], [-1.0, 0.5], [3.0, 80.0], [-0.004, -0.001], [1.0, 1.0]):
        shown = chart(values)
        numbers = [float(text) for _, text in shown.ticks]
        assert min(numbers) <= min([0.0, *values])
        assert max(numbers) >= max([0.0, *values])
        assert 0.0 in numbers
        assert 4 <= len(numbers) <= 12
        steps = {round(b - a, 9) for a, b in pairwise(numbers)}
        assert len(steps) == 1


def test_nan_leaves_a_gap() -> None:
    assert [
        len(part.split()) for part in chart([1.0, 0.5, NAN, 0.2]).points(ChartLine("m", [1.0, 0.5, NAN, 0.2], 0))
    ] == [
        2,
        1,
    ]
    unknown = chart([NAN, NAN])
    assert unknown.points(unknown.lines[0]) == []
    assert unknown.ticks


def test_the_area_is_that_of_the_trapezes() -> None:
    assert ChartLine("m", [1.0, 0.5, 0.0], 0).area == pytest.approx(0.5)
    assert ChartLine("m", [0.2, 0.4, 0.9, 0.9], 0).area == pytest.approx((0.3 + 0.65 + 0.9) / 3)
    assert math.isnan(ChartLine("m", [0.2, NAN], 0).area)


def test_no_two_of_many_lines_look_alike() -> None:
    lines = [ChartLine(str(n), [0.0, 1.0], n) for n in range(28)]
    lines += [ChartLine(str(n), [0.0, 1.0], n, baseline=True) for n in range(4)]
    assert len({(line.colour, line.dashes) for line in lines}) == len(lines)


def test_what_it_shows_is_said_in_words() -> None:
    assert chart([0.9, 0.1]).text == "p over the share: m0 from 0.9 to 0.1"

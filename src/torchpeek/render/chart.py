"""Line charts for HTML pages: the values of several lines as points of an SVG, with the ticks of both axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torchpeek.render.curves import CURVE_COLOURS

_LEFT, _TOP, _RIGHT, _BOTTOM = 44, 10, 390, 210  # the corners of the plot in the chart's own pixels
_DASHES = ("", "8 3 2 3", "2 3", "9 2 2 2 2 2")  # of the first ten methods, of the next ten, ...
_BASELINES = (("#222222", "6 3"), ("#8a8a8a", "3 2"), ("#555555", "2 2"), ("#222222", "6 2 2 2"))
_FEWEST_TICKS = 4


@dataclass(frozen=True)
class ChartLine:
    """One line of a chart.

    Args:
        name: What the legend calls it.
        values: The values at equal distances, from the left end of the axis to the right one. NaN leaves a gap.
        number: The number of the method, which decides the colour; or of the baseline.
        baseline: Whether it is a baseline, which is grey and dashed.
    """

    name: str
    values: Sequence[float]
    number: int
    baseline: bool = False

    @property
    def colour(self) -> str:
        """The colour of the line."""
        if self.baseline:
            return _BASELINES[self.number % len(_BASELINES)][0]
        return CURVE_COLOURS[self.number % len(CURVE_COLOURS)]

    @property
    def dashes(self) -> str:
        """The dashes of the line, as SVG has them; empty for a solid line."""
        if self.baseline:
            return _BASELINES[self.number % len(_BASELINES)][1]
        return _DASHES[self.number // len(CURVE_COLOURS) % len(_DASHES)]

    @property
    def area(self) -> float:
        """The area under the line, over an axis from 0 to 1. NaN where a value is."""
        pairs = zip(self.values, self.values[1:], strict=False)
        return sum((left + right) / 2 for left, right in pairs) / max(1, len(self.values) - 1)


@dataclass(frozen=True)
class Chart:
    """Lines over an axis from 0 to 1.

    Args:
        lines: The lines. There is at least one.
        across: The label of the horizontal axis.
        up: The label of the vertical axis.
    """

    lines: Sequence[ChartLine]
    across: str
    up: str

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The vertical position of each tick, from the lowest, and its number."""
        step, low, high = self._scale
        count = round((high - low) / step)
        return [(self._height(low + n * step), f"{round(low + n * step, 12):g}") for n in range(count + 1)]

    def points(self, line: ChartLine) -> list[str]:
        """Return the points of each unbroken part of a line, as an SVG polyline has them."""
        parts: list[list[str]] = [[]]
        for n, value in enumerate(line.values):
            if math.isfinite(value):
                across = _LEFT + (_RIGHT - _LEFT) * n / max(1, len(line.values) - 1)
                parts[-1].append(f"{across:.1f},{self._height(value):.1f}")
            elif parts[-1]:
                parts.append([])
        return [" ".join(part) for part in parts if part]

    @property
    def text(self) -> str:
        """What the chart shows, for those who cannot see it."""
        lines = (f"{line.name} from {line.values[0]:.3g} to {line.values[-1]:.3g}" for line in self.lines)
        return f"{self.up} over the {self.across}: {'; '.join(lines)}"

    def _height(self, value: float) -> float:
        _, low, high = self._scale
        return _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)

    @property
    def _scale(self) -> tuple[float, float, float]:
        """The step of the ticks, the lowest tick, and the highest."""
        values = [value for line in self.lines for value in line.values if math.isfinite(value)]
        low, high = min([0.0, *values]), max([0.0, *values])
        size = (high - low) or 1.0
        power = 10.0 ** math.floor(math.log10(size / _FEWEST_TICKS))
        step = power * max(factor for factor in (1, 2, 5) if size / (power * factor) >= _FEWEST_TICKS - 1e-9)
        lowest, highest = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        return step, lowest, highest if highest > lowest else lowest + step * _FEWEST_TICKS

"""Where the heat lies, against a slow replica in float64 that is written from the definitions."""

from __future__ import annotations

import math

import pytest
import torch

import torchpeek as tp
from torchpeek.runs.heat_location import BORDER, heat_location, inside


def by_hand(grid: torch.Tensor, geometry: tp.Geometry) -> dict[str, float]:
    """Loops over cells, of 50 x 50 points each for the border."""
    height, width = grid.shape
    heat = [[max(0.0, float(grid[i, j])) for j in range(width)] for i in range(height)]
    total = sum(map(sum, heat))
    (pixels_x, pixels_y), (left, top, right, bottom) = geometry.size, geometry.box

    def place(i: int, j: int) -> tuple[float, float]:
        x = left + (j + 0.5) / width * (right - left)
        y = top + (i + 0.5) / height * (bottom - top)
        return x / pixels_x, y / pixels_y

    cells = [(i, j) for i in range(height) for j in range(width)]
    x = sum(heat[i][j] * place(i, j)[0] for i, j in cells) / total
    y = sum(heat[i][j] * place(i, j)[1] for i, j in cells) / total
    variance = sum(heat[i][j] * ((place(i, j)[0] - x) ** 2 + (place(i, j)[1] - y) ** 2) for i, j in cells) / total
    inner = 0.0
    points = [(n + 0.5) / 50 for n in range(50)]
    for i, j in cells:
        within_x = sum(BORDER <= (j + point) / width < 1 - BORDER for point in points) / 50
        within_y = sum(BORDER <= (i + point) / height < 1 - BORDER for point in points) / 50
        inner += heat[i][j] * within_x * within_y
    peak = max(cells, key=lambda cell: heat[cell[0]][cell[1]])
    shares = [heat[i][j] / total for i, j in cells if heat[i][j] > 0]
    return {
        "centre_x": x,
        "centre_y": y,
        "spread": math.sqrt(variance),
        "border": 1 - inner / total,
        "peak_x": place(*peak)[0],
        "peak_y": place(*peak)[1],
        "entropy": -sum(share * math.log(share) for share in shares) / math.log(len(cells)),
    }


@pytest.mark.parametrize("size", [(7, 7), (5, 8), (1, 6), (10, 10)])
def test_against_the_replica(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 2, *size, generator=generator)
    geometries = [
        tp.Geometry((640, 480), (80.0, 0.0, 560.0, 480.0)),
        tp.Geometry((100, 300), (-10.0, 20.0, 110.0, 140.0)),  # padded
        tp.Geometry.whole((32, 32)),
    ]
    found = heat_location(values, geometries).columns()
    for n, geometry in enumerate(geometries):
        for k in range(2):
            for name, number in by_hand(values[n, k], geometry).items():
                assert float(found[name][n, k]) == pytest.approx(number, abs=2e-3 if name == "border" else 1e-9), name


def test_known_maps() -> None:
    even, point = torch.ones(1, 1, 10, 10), torch.zeros(1, 1, 10, 10)
    point[0, 0, 2, 7] = 3
    whole = [tp.Geometry.whole((100, 100))]
    one = {name: float(value) for name, value in heat_location(even, whole).columns().items()}
    assert one["centre_x"] == one["centre_y"] == pytest.approx(0.5)
    assert one["entropy"] == pytest.approx(1)
    assert one["border"] == pytest.approx(1 - 0.8**2)
    assert one["spread"] == pytest.approx(math.sqrt(2 * (1 - 0.01) / 12))
    other = {name: float(value) for name, value in heat_location(point, whole).columns().items()}
    assert (other["centre_x"], other["centre_y"]) == (other["peak_x"], other["peak_y"]) == pytest.approx((0.75, 0.25))
    assert [other[name] for name in ("spread", "border", "entropy")] == pytest.approx([0, 0, 0], abs=1e-12)
    none = heat_location(-even, whole).columns()
    assert all(value.isnan().all() for value in none.values())


def test_the_share_inside_is_that_of_the_metric() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, 1, 7, 7, generator=generator)
    region = torch.zeros(1, 1, 28, 28, dtype=torch.bool)
    region[..., 4:20, 7:15] = True
    upsampled = torch.nn.functional.interpolate(values.double(), (28, 28), mode="bilinear").clamp(min=0)
    expected = float((upsampled * region).sum() / upsampled.sum())
    assert float(inside(values, region)) == pytest.approx(expected, abs=1e-6)
    assert float(inside(-values.abs(), region)) == 0
    assert inside(values, region & False).isnan().all()

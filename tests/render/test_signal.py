"""A signal with its heat below it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import torchpeek as tp
from torchpeek.errors import InputError, OptionError
from torchpeek.render import COLORMAPS, signal

LEFT, RIGHT = 64, 952  # pixels of the curves
LINE = [30, 60, 100]


def heatmap_of(values: Tensor, **provenance: str) -> tp.Heatmap:
    question = tp.targets.Classes([0]).bind(torch.zeros(1, 2))
    about = tp.Provenance("gradcam", "layer", **provenance)
    return tp.Heatmap(values[None, None], torch.zeros(1, 1), question, about)


def heat_row(image) -> np.ndarray:
    """The pixels of the strip of heat: the first row below the one channel."""
    return np.asarray(image)[8 + 90 + 8 + 14, LEFT:RIGHT]


def curve_rows(image, channels: int = 1) -> np.ndarray:
    return (np.asarray(image)[: 8 + 90 * channels] == LINE).all(-1)


class TestHeat:
    def test_its_colours_are_those_of_the_interpolated_values(self) -> None:
        values = torch.tensor([0.0, 4.0, 1.0, 2.0])
        row = heat_row(signal(torch.rand(1, 50), heatmap_of(values)))
        width = RIGHT - LEFT
        for x in (0, 100, 300, 333, 500, 700, width - 1):
            position = min(max((x + 0.5) / width * 4 - 0.5, 0), 3)
            left = min(int(position), 2)
            value = values[left] * (1 - position + left) + values[left + 1] * (position - left)
            expected = COLORMAPS["viridis"][round(float(value) / 4 * 255)].astype(int)
            assert np.abs(row[x] - expected).max() <= 3
        assert (row[int(width * 3 / 8)] == COLORMAPS["viridis"][255]).all()

    def test_signed(self) -> None:
        row = heat_row(signal(torch.rand(1, 50), heatmap_of(torch.tensor([-2.0, 2.0])), signed=True))
        assert (row[0] == COLORMAPS["diverging"][0]).all()
        assert (row[-1] == COLORMAPS["diverging"][255]).all()

    def test_an_axis_of_length_one_is_no_matter(self) -> None:
        values, eeg = torch.rand(7), torch.rand(1, 4, 1, 50)
        plain = signal(eeg[:, :, 0], heatmap_of(values))
        assert (np.asarray(signal(eeg, heatmap_of(values[None]))) == np.asarray(plain)).all()
        assert (np.asarray(signal(eeg[0], heatmap_of(values[None]))) == np.asarray(plain)).all()


class TestCurves:
    def test_a_ramp_goes_from_the_lower_left_to_the_upper_right(self) -> None:
        drawn = curve_rows(signal(torch.linspace(-3, 5, 100), heatmap_of(torch.rand(4))))
        rows, columns = np.nonzero(drawn)
        slope = (rows - rows.max()) / (rows.min() - rows.max())
        across = (columns - columns.min()) / (columns.max() - columns.min())
        np.testing.assert_allclose(slope, across, atol=0.02)
        assert (rows.min(), rows.max()) == (12, 94)
        assert LEFT <= columns.min() < LEFT + 8
        assert RIGHT - 8 < columns.max() <= RIGHT

    def test_a_single_peak_among_a_million_samples_is_drawn(self) -> None:
        values = torch.zeros(1_000_000)
        values[432_101] = 1
        rows, columns = np.nonzero(curve_rows(signal(values, heatmap_of(torch.rand(4)))))
        assert rows.min() <= 13
        assert abs(columns[rows.argmin()] - (LEFT + 0.432101 * (RIGHT - LEFT))) <= 2

    def test_channels_share_one_range(self) -> None:
        values = torch.stack([torch.linspace(0, 1, 50), torch.linspace(0, 10, 50)])
        drawn = curve_rows(signal(values, heatmap_of(torch.rand(4))), channels=2)
        small, large = (np.nonzero(drawn[8 + 90 * n : 8 + 90 * (n + 1)])[0] for n in range(2))
        assert np.ptp(large) == 82
        assert 7 <= np.ptp(small) <= 9

    def test_nan_is_a_gap(self) -> None:
        values = torch.rand(50)
        values[20:30] = float("nan")
        columns = np.nonzero(curve_rows(signal(values, heatmap_of(torch.rand(4)))))[1]
        width = RIGHT - LEFT
        assert not ((columns > LEFT + 0.4 * width) & (columns < LEFT + 0.6 * width)).any()

    def test_as_many_channels_as_most(self) -> None:
        many = signal(torch.rand(20, 50), heatmap_of(torch.rand(4)), most=3)
        few = signal(torch.rand(3, 50), heatmap_of(torch.rand(4)))
        assert many.height == few.height + 16  # room for a line that says so

    def test_a_constant(self) -> None:
        rows, _ = np.nonzero(curve_rows(signal(torch.ones(50), heatmap_of(torch.rand(4)))))
        assert np.ptp(rows) == 0


def test_bad_input() -> None:
    heat = heatmap_of(torch.rand(4))
    with pytest.raises(InputError, match=r"values is a tensor of shape \(2, 3, 50\).*one sample \(C, T\).*give x\[n\]"):
        signal(torch.rand(2, 3, 50), heat)
    with pytest.raises(InputError, match=r"values is \[1.0, 2.0\]; allowed: the tensor of one sample, \(C, T\)"):
        signal([1.0, 2.0], heat)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rows and columns"):
        signal(torch.rand(3, 5, 50), heatmap_of(torch.rand(1, 4)))
    with pytest.raises(InputError, match=r"one map with one axis.*tp\.render\.montage"):
        signal(torch.rand(3, 50), heatmap_of(torch.rand(4, 4)))
    with pytest.raises(OptionError, match="most is 0; allowed: a whole number, 1 or more"):
        signal(torch.rand(3, 50), heat, most=0)
    with pytest.raises(OptionError, match="width is 200; allowed: a whole number, 256 to 10,000"):
        signal(torch.rand(3, 50), heat, width=200)
    with pytest.raises(OptionError, match="no colormap"):
        signal(torch.rand(3, 50), heat, colormap="virids")

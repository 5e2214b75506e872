"""The colour bar below a picture: its colours, its numbers, and its words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import torchpeek as tp
from torchpeek.render import COLORMAPS, overlay
from torchpeek.render.scale import scale_of


def heatmap_of(*values: float) -> tp.Heatmap:
    question = tp.targets.Classes([0]).bind(torch.zeros(1, 2))
    return tp.Heatmap(torch.tensor([[[values]]]), torch.zeros(1, 1), question, tp.Provenance("gradcam", "layer"))


@pytest.mark.parametrize(
    ("values", "options", "numbers"),
    [
        ((0.0, 3.5), {}, ("0", "1.75", "3.5")),
        ((-1.0, 3.5), {}, ("0 or less", "1.75", "3.5")),
        ((-1.0, 3.5), {"signed": True}, ("-3.5", "0", "3.5")),
        ((-7.0, 3.5), {"signed": True}, ("-7", "0", "7")),
        ((-7.0, 3.5), {"colormap": "diverging", "limit": 5.0}, ("-5 or less", "0", "5")),
        ((0.0, 3.5), {"limit": 2.0}, ("0", "1", "2 or more")),
        ((0.0, 3.5), {"limit": 4.0}, ("0", "2", "4")),
        ((0.0, 0.0), {}, ("0", "", "")),
        ((0.0, 1.23456e-7), {}, ("0", "6.17e-08", "1.23e-07")),
        ((-2.0, -1.0), {}, ("0 or less", "", "")),
    ],
)
def test_numbers(values, options, numbers) -> None:
    arguments = {"colormap": "viridis", "limit": None, "signed": False} | options
    assert scale_of(heatmap_of(*values), **arguments).numbers == numbers


def test_spikes_of_a_fine_map_do_not_hide_the_rest() -> None:
    """The scale ends at the value that 1 % of the positions exceed; signed, at their largest magnitudes."""
    values = [*(i / 2000 for i in range(1981)), *(50.0 + i for i in range(19))]  # 0 ... 0.99, and 19 of 2000 spikes
    arguments = {"colormap": "viridis", "limit": None, "signed": False}
    assert scale_of(heatmap_of(*values), **arguments).limit == pytest.approx(1979 / 2000)
    assert scale_of(heatmap_of(*values), **arguments).numbers[2] == "0.989 or more"
    negative = heatmap_of(*(-value for value in values))
    assert scale_of(negative, **arguments | {"signed": True}).limit == pytest.approx(1979 / 2000)
    assert scale_of(negative, **arguments).limit == 0
    assert scale_of(heatmap_of(*values), **arguments | {"limit": 68.0}).limit == 68
    assert scale_of(heatmap_of(*values[:980], *values[-9:]), **arguments).limit == 68  # 989 positions: not fine


def test_a_fine_map_without_spikes_has_its_largest_value_as_the_end() -> None:
    values = [i / 2000 for i in range(2001)]
    assert scale_of(heatmap_of(*values), colormap="viridis", limit=None, signed=False).limit == 1
    single = [0.0] * 1999 + [4.0]  # nothing but one position: no other value to end at
    assert scale_of(heatmap_of(*single), colormap="viridis", limit=None, signed=False).limit == 4


@pytest.mark.parametrize(("colormap", "signed"), [("viridis", False), ("jet", False), ("viridis", True)])
def test_the_bar_is_the_colormap_from_end_to_end(colormap, signed) -> None:
    photo = Image.new("RGB", (600, 400), (100, 100, 100))
    plain = overlay(photo, heatmap_of(-1.0, 2.0), colormap=colormap, signed=signed)
    made = overlay(photo, heatmap_of(-1.0, 2.0), colormap=colormap, signed=signed, colorbar=True)
    pixels = np.asarray(made)
    assert made.width == 600
    assert (pixels[:400] == np.asarray(plain)).all()
    table = COLORMAPS["diverging" if signed else colormap]
    (rows,) = np.nonzero((pixels[400:, 0] == table[0]).all(-1) & (pixels[400:, -1] == table[255]).all(-1))
    assert len(rows) >= 10
    middle = pixels[400 + rows[0], 300].astype(int)
    assert np.abs(middle - table[128]).max() <= 3
    below = pixels[400 + rows[-1] + 1 :]
    for part in (below[:, :200], below[:, 200:400], below[:, 400:]):  # a number at each end, and in the middle
        assert (part < 100).any()


def test_the_numbers_do_not_touch_on_a_narrow_picture() -> None:
    tall = Image.new("RGB", (20, 900), (100, 100, 100))
    made = overlay(tall, heatmap_of(-0.123, 0.456), colorbar=True)
    assert made.width == 160
    assert (np.asarray(made)[:900, 20:] == 255).all()


def test_words_below_the_bar() -> None:
    photo = Image.new("RGB", (600, 400), (100, 100, 100))
    plain = overlay(photo, heatmap_of(-1.0, 2.0), colorbar=True)
    assert overlay(photo, heatmap_of(-3.0, 2.0), colorbar=True).height > plain.height + 10
    assert overlay(photo, heatmap_of(-3.0, 2.0), colorbar=True, signed=True).height == plain.height

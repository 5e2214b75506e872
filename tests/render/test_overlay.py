"""Heatmaps laid over pictures, and the picture times the heatmap."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import InputError, Notice, OptionError
from torchpeek.render import COLORMAPS, extract, overlay
from torchpeek.render.scale import scale_of

overlay_module = importlib.import_module("torchpeek.render.overlay")  # the function has the same name

BOX = tp.Geometry((400, 200), (100.0, 0.0, 300.0, 200.0))
GREY = (100, 100, 100)


def heatmap_of(values, weights: str = "") -> tp.Heatmap:
    values = torch.tensor(values, dtype=torch.float32)[None, None]
    question = tp.targets.Classes([0]).bind(torch.zeros(1, 2))
    return tp.Heatmap(values, torch.zeros(1, 1), question, tp.Provenance("gradcam", "layer", weights=weights))


def picture(colour=GREY) -> tp.Picture:
    return tp.Picture(Image.new("RGB", (400, 200), colour), torch.zeros(1, 3, 8, 8), BOX)


def noise(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


class TestEvenMix:
    def test_leaves_what_was_cropped(self) -> None:
        made = np.asarray(overlay(picture(), heatmap_of([[0.0, 1.0], [1.0, 1.0]]), fade=False, edge=False))
        assert made.shape == (200, 400, 3)
        assert (made[:, :100] == 100).all()
        assert (made[:, 300:] == 100).all()
        assert (made[:, 100:300] != 100).any(-1).all()

    def test_mixes_the_picture_and_the_colour(self) -> None:
        made = np.asarray(overlay(picture(), heatmap_of([[0.0, 2.0]]), alpha=0.25, fade=False))
        low, high = COLORMAPS["viridis"][[0, 255]].astype(float)
        np.testing.assert_allclose(made[10, 100], 75 + 0.25 * low, atol=1)
        np.testing.assert_allclose(made[10, 299], 75 + 0.25 * high, atol=1)

    def test_alpha_0_is_the_picture_and_1_the_heat(self) -> None:
        for fade in (True, False):
            plain = np.asarray(overlay(picture(), heatmap_of([[0.0, 2.0]]), alpha=0, fade=fade))
            assert (plain == 100).all()
        heat = np.asarray(overlay(picture(), heatmap_of([[1.0, 1.0]]), alpha=1))
        assert (heat[:, 100:300] == COLORMAPS["viridis"][255]).all()

    def test_does_not_square_nor_wrap(self) -> None:
        """A peer squares an 8-bit map, which wraps around: 255 becomes 1."""
        made = np.asarray(overlay(picture(), heatmap_of([[0.0, 127.0, 255.0]] * 3), alpha=1, fade=False))
        value = 127 + 0.0075 * 128  # pixel 200 is half a pixel, 1.5 / 200 of a cell, from the middle of the middle one
        np.testing.assert_allclose(made[10, 200], COLORMAPS["viridis"][round(value)], atol=2)

    def test_a_common_limit(self) -> None:
        weak = np.asarray(overlay(picture(), heatmap_of([[1.0, 1.0]]), alpha=1, limit=2.0, fade=False))
        assert (weak[:, 100:300] == COLORMAPS["viridis"][128]).all()

    def test_zeros_everywhere(self) -> None:
        for colormap, index in [("viridis", 0), ("diverging", 128)]:
            heat = heatmap_of([[0.0, 0.0]])
            made = np.asarray(overlay(picture(), heat, alpha=1, colormap=colormap, fade=False))
            assert (made[:, 100:300] == COLORMAPS[colormap][index]).all()


class TestFading:
    def test_the_photograph_is_bit_equal_where_the_map_is_zero_or_negative(self) -> None:
        photo = noise(400, 300)
        values = np.zeros((3, 4), np.float32)
        values[1, 1], values[2, 3] = 3, -1
        made = np.asarray(overlay(photo, heatmap_of(values.tolist())))
        same = (made == np.asarray(photo)).all(-1)
        # The heat of a cell reaches to the middles of its neighbours: cells are 100 pixels wide and high.
        assert same[:50].all()
        assert same[250:].all()
        assert same[:, :50].all()
        assert same[:, 250:].all()
        assert not same[140:160, 140:160].any()

    def test_each_pixel_by_its_definition(self) -> None:
        """alpha times the value over the largest value, of the value's colour; against plain float64 arithmetic."""
        photo, values = noise(300, 240), np.array([[0.1, 2.0, 0.5], [1.0, -3.0, 4.0]])
        made = np.asarray(overlay(photo, heatmap_of(values.tolist()), alpha=0.8, colormap="inferno")).astype(float)
        for x, y in [(0, 0), (50, 60), (100, 100), (149, 119), (250, 180), (299, 239), (37, 201), (280, 10)]:
            column = min(max((x + 0.5) / 100 - 0.5, 0), 2)
            row = min(max((y + 0.5) / 120 - 0.5, 0), 1)
            left, up = min(int(column), 1), 0
            across, down = column - left, row - up
            upper = values[up, left] * (1 - across) + values[up, left + 1] * across
            lower = values[up + 1, left] * (1 - across) + values[up + 1, left + 1] * across
            unit = max(upper * (1 - down) + lower * down, 0) / 4.0
            colour = COLORMAPS["inferno"][round(unit * 255)].astype(float)
            expected = 0.8 * unit * colour + (1 - 0.8 * unit) * np.asarray(photo)[y, x]
            np.testing.assert_allclose(made[y, x], expected, atol=2)

    def test_the_colour_at_the_maximum(self) -> None:
        made = np.asarray(overlay(picture(), heatmap_of([[0.0, 5.0]]), alpha=1))
        assert (made[:, 299] == COLORMAPS["viridis"][255]).all()
        assert (made[:, 100] == 100).all()

    def test_bands_of_rows_are_no_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        heat = heatmap_of(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).tolist())
        whole = np.asarray(overlay(noise(300, 250), heat, signed=True))
        monkeypatch.setattr(overlay_module, "_BAND", 1000)
        assert (np.asarray(overlay(noise(300, 250), heat, signed=True)) == whole).all()


class TestEdge:
    def test_a_white_line_right_outside_of_what_the_model_saw_and_a_black_one_beyond(self) -> None:
        geometry = tp.Geometry((300, 240), (50.0, 30.0, 250.0, 210.0))
        seen = tp.Picture(Image.new("RGB", (300, 240), GREY), torch.zeros(1, 3, 8, 8), geometry)
        made = np.asarray(overlay(seen, heatmap_of([[0.0, 0.0]])))
        assert (made[30:210, 50:250] == 100).all()
        for distance, value in ((1, 255), (2, 0), (3, 100)):
            assert (made[30:210, 50 - distance] == value).all()
            assert (made[30:210, 249 + distance] == value).all()
            assert (made[30 - distance, 50:250] == value).all()
            assert (made[209 + distance, 50:250] == value).all()

    def test_only_where_something_was_cropped(self) -> None:
        made = np.asarray(overlay(picture(), heatmap_of([[0.0, 0.0]])))
        assert (made[:, 100:300] == 100).all()
        assert (made[:, 99] == 255).all()
        assert (made[:, 98] == 0).all()
        whole = np.asarray(overlay(Image.new("RGB", (300, 240), GREY), heatmap_of([[0.0, 0.0]])))
        assert (whole == 100).all()
        padded = tp.Picture(
            Image.new("RGB", (300, 240), GREY), torch.zeros(1, 3, 8, 8), tp.Geometry((300, 240), (0, -30, 300, 270))
        )
        assert (np.asarray(overlay(padded, heatmap_of([[0.0, 0.0]]))) == 100).all()

    def test_none_on_request(self) -> None:
        assert (np.asarray(overlay(picture(), heatmap_of([[0.0, 0.0]]), edge=False)) == 100).all()


class TestSmallPictures:
    @pytest.mark.parametrize(
        ("size", "factor"),
        [((28, 28), 8), ((1, 1), 224), ((150, 100), 2), ((223, 10), 2), ((224, 10), 1), ((9, 500), 1)],
    )
    def test_are_drawn_enlarged(self, size, factor) -> None:
        photo = noise(*size)
        made = overlay(photo, heatmap_of([[0.0, 0.0]]))
        assert made.size == (size[0] * factor, size[1] * factor)
        assert (np.asarray(made) == np.asarray(photo).repeat(factor, 0).repeat(factor, 1)).all()
        assert extract(photo, heatmap_of([[1.0, 1.0]])).size == made.size
        assert overlay(photo, heatmap_of([[0.0, 0.0]]), enlarge=False).size == size
        assert extract(photo, heatmap_of([[1.0, 1.0]]), enlarge=False).size == size

    def test_with_what_was_cropped(self) -> None:
        small = tp.Picture(
            Image.new("RGB", (40, 20), GREY), torch.zeros(1, 3, 8, 8), tp.Geometry((40, 20), (10, 0, 30, 20))
        )
        made = np.asarray(overlay(small, heatmap_of([[1.0, 1.0]]), alpha=1))
        assert made.shape == (120, 240, 3)
        assert (made[:, 60:180] == COLORMAPS["viridis"][255]).all()
        assert (made[:, 59] == 255).all()
        assert (made[:, :58] == 100).all()


class TestSigned:
    def test_negative_values_are_as_zero_but_in_diverging(self) -> None:
        signed = heatmap_of([[-2.0, 3.0]])
        made = np.asarray(overlay(picture(), signed, alpha=1))
        assert (made[:, 100] == 100).all()
        both = np.asarray(overlay(picture(), signed, alpha=1, colormap="diverging", fade=False))
        assert (both[:, 100] == COLORMAPS["diverging"][42]).all()  # (1 - 2 / 3) / 2 * 255
        assert (both[:, 299] == COLORMAPS["diverging"][255]).all()

    def test_is_symmetric(self) -> None:
        made = np.asarray(overlay(picture(), heatmap_of([[-2.0, 2.0]]), signed=True, alpha=0.5)).astype(float)
        blue, red = COLORMAPS["diverging"][[0, 255]].astype(float)
        np.testing.assert_allclose(made[:, 100], np.broadcast_to(50 + blue / 2, (200, 3)), atol=1)
        np.testing.assert_allclose(made[:, 299], np.broadcast_to(50 + red / 2, (200, 3)), atol=1)
        values = np.linspace(-4, 4, 33, dtype=np.float32)
        scale = scale_of(heatmap_of([[-4.0, 1.0]]), colormap="viridis", limit=None, signed=True)
        assert scale.limit == 4
        np.testing.assert_allclose(scale.unit(values) + scale.unit(-values), 1, atol=1e-6)
        strengths = scale.strengths()
        assert (strengths == strengths[::-1]).all()
        assert strengths[[0, 127, 128, 255]].tolist() == [1, 0, 0, 1]
        np.testing.assert_allclose(strengths, np.abs(np.arange(256) / 127.5 - 1), atol=0.005)

    def test_is_the_colormap_diverging(self) -> None:
        heat = heatmap_of([[-2.0, 3.0, 1.0]])
        signed, named = overlay(picture(), heat, signed=True), overlay(picture(), heat, colormap="diverging")
        assert (np.asarray(signed) == np.asarray(named)).all()

    def test_zero_is_the_photograph(self) -> None:
        made = np.asarray(overlay(picture(), heatmap_of([[-1.0, 0.0, 0.0, 0.0, 1.0]]), signed=True, edge=False))
        assert (made[:, 180:220] == 100).all()
        assert (made[:, 100] != 100).any()
        assert (made[:, 299] != 100).any()

    def test_what_positive_values_hide_is_said(self) -> None:
        with pytest.warns(Notice, match="no positive value: read it signed"):
            made = overlay(picture(), heatmap_of([[-2.0, -1.0]]), edge=False)
        assert (np.asarray(made) == 100).all()
        with pytest.warns(Notice, match=r"mostly negative values: read it signed \(signed=True"):
            overlay(picture(), heatmap_of([[-2.0, 1.0]]))
        with pytest.warns(Notice, match="no positive value"):
            extract(picture(), heatmap_of([[-2.0, -1.0]]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            overlay(picture(), heatmap_of([[-2.0, -1.0]]), signed=True)
            overlay(picture(), heatmap_of([[-1.0, 2.0]]))
            overlay(picture(), heatmap_of([[-2.0, 1.0]]), colorbar=True)  # below the bar

    def test_no_other_colormap_is_signed(self) -> None:
        with pytest.raises(OptionError, match="'jet' shows positive values only"):
            overlay(picture(), heatmap_of([[1.0]]), signed=True, colormap="jet")


class TestTensors:
    def test_a_tensor_is_drawn_from_its_lowest_to_its_highest_value(self) -> None:
        tensor = torch.linspace(-2, 3, 3 * 240 * 300).reshape(1, 3, 240, 300)
        made = np.asarray(overlay(tensor, heatmap_of([[0.0, 0.0]])))
        expected = ((tensor[0] + 2) / 5 * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.abs(made.astype(int) - expected).max() <= 1
        assert (np.asarray(overlay(tensor[0], heatmap_of([[0.0, 0.0]]))) == made).all()
        last = np.asarray(overlay(tensor[0].permute(1, 2, 0), heatmap_of([[0.0, 0.0]])))
        assert (last == made).all()

    @pytest.mark.parametrize("shape", [(300, 240), (1, 300, 240), (1, 1, 300, 240), (5, 300, 240)])
    def test_other_numbers_of_channels_are_grey(self, shape) -> None:
        tensor = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        made = np.asarray(overlay(tensor, heatmap_of([[0.0, 0.0]])))
        grey = tensor.reshape(-1, 300, 240).mean(0)
        expected = ((grey - grey.min()) / (grey.max() - grey.min()) * 255).round().numpy()
        assert (made[..., 0] == made[..., 2]).all()
        assert np.abs(made[..., 0].astype(int) - expected).max() <= 1

    def test_a_batch_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"\(2, 3, 8, 8\).*allowed: one sample \(C, H, W\).*give x\[n\]"):
            overlay(torch.zeros(2, 3, 8, 8), heatmap_of([[0.0, 0.0]]))


def test_random_weights_are_written_on_the_picture() -> None:
    large = Image.new("RGB", (300, 200), GREY)
    stamped = np.asarray(overlay(large, heatmap_of([[0.0, 1.0]], weights="random"), alpha=0))
    assert (stamped[-5:, :5] == 0).all()
    assert (stamped[-16:, :120] > 200).any()
    assert (stamped[:150] == 100).all()


def test_a_plain_image() -> None:
    made = overlay(Image.new("L", (30, 30), 100), heatmap_of([[1.0, 2.0]]))
    assert (np.asarray(made) != 100).any(-1).all()


def test_bad_input() -> None:
    several = tp.explain(PooledNet(), torch.randn(2, 3, 5, 5))
    with pytest.raises(InputError, match=r"heatmap\[n, k\]"):
        overlay(picture(), several)
    with pytest.raises(InputError, match=r"a Picture \(LoadedModel.*tensor of one sample"):
        overlay("cat.jpg", several[0])  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="closest: 'viridis'"):
        overlay(picture(), several[0], colormap="virids")
    with pytest.raises(OptionError, match="alpha is 2"):
        overlay(picture(), several[0], alpha=2)
    for limit in (-1, float("nan")):
        with pytest.raises(OptionError, match="limit is"):
            overlay(picture(), several[0], limit=limit)
    signal = tp.Heatmap(several.values.flatten(2), several.scores, several.question, several.provenance)
    with pytest.raises(InputError, match=r"tp\.render\.signal"):
        overlay(picture(), signal[0])
    with pytest.raises(InputError, match="three axes"):
        overlay(picture(), several[0], index=3)


def test_extract_is_the_picture_times_the_heat() -> None:
    made = np.asarray(extract(picture((200, 100, 50)), heatmap_of([[-5.0, 0.0, 4.0]] * 3))).astype(int)
    assert (made[:, :100] == 0).all()  # the model saw nothing of it
    assert (made[:, 100:133] == 0).all()
    assert (made[:, 267:300] == [200, 100, 50]).all()
    assert 90 <= made[10, 233, 0] <= 140

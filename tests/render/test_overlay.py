"""Heatmaps laid over pictures, and the picture times the heatmap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import InputError, OptionError
from torchpeek.render import COLORMAPS, extract, overlay

BOX = tp.Geometry((40, 20), (10.0, 0.0, 30.0, 20.0))


def heatmap_of(values, weights: str = "") -> tp.Heatmap:
    values = torch.tensor(values, dtype=torch.float32)[None, None]
    question = tp.targets.Classes([0]).bind(torch.zeros(1, 2))
    return tp.Heatmap(values, torch.zeros(1, 1), question, tp.Provenance("gradcam", "layer", weights=weights))


def picture(colour=(100, 100, 100)) -> tp.Picture:
    return tp.Picture(Image.new("RGB", (40, 20), colour), torch.zeros(1, 3, 8, 8), BOX)


class TestOverlay:
    def test_is_of_the_pictures_own_size_and_leaves_what_was_cropped(self) -> None:
        made = np.asarray(overlay(picture(), heatmap_of([[0.0, 1.0], [1.0, 1.0]])))
        assert made.shape == (20, 40, 3)
        assert (made[:, :10] == 100).all()
        assert (made[:, 30:] == 100).all()
        assert (made[:, 10:30] != 100).any(-1).all()

    def test_mixes_the_picture_and_the_colour(self) -> None:
        made = np.asarray(overlay(picture(), heatmap_of([[0.0, 2.0]]), alpha=0.25))
        low, high = COLORMAPS["viridis"][[0, 255]].astype(float)
        np.testing.assert_allclose(made[10, 10], 75 + 0.25 * low, atol=1)
        np.testing.assert_allclose(made[10, 29], 75 + 0.25 * high, atol=1)

    def test_alpha_0_is_the_picture_and_1_the_heat(self) -> None:
        plain = np.asarray(overlay(picture(), heatmap_of([[0.0, 2.0]]), alpha=0))
        assert (plain == 100).all()
        heat = np.asarray(overlay(picture(), heatmap_of([[1.0, 1.0]]), alpha=1))
        assert (heat[:, 10:30] == COLORMAPS["viridis"][255]).all()

    def test_does_not_square_nor_wrap(self) -> None:
        """A peer squares an 8-bit map, which wraps around: 255 becomes 1."""
        made = np.asarray(overlay(picture(), heatmap_of([[0.0, 127.0, 255.0]] * 3), alpha=1, colormap="inferno"))
        value = 127 + 0.075 * 128  # pixel 20 is 1.5 / 20 of a cell from the middle of the middle one
        np.testing.assert_allclose(made[10, 20], COLORMAPS["inferno"][round(value)], atol=2)

    def test_negative_values_are_as_zero_but_in_diverging(self) -> None:
        signed = heatmap_of([[-2.0, 1.0]])
        made = np.asarray(overlay(picture(), signed, alpha=1))
        assert (made[:, 10] == COLORMAPS["viridis"][0]).all()
        both = np.asarray(overlay(picture(), signed, alpha=1, colormap="diverging"))
        assert (both[:, 10] == COLORMAPS["diverging"][0]).all()
        assert (both[:, 29] == COLORMAPS["diverging"][191]).all()

    def test_a_common_limit(self) -> None:
        weak = np.asarray(overlay(picture(), heatmap_of([[1.0, 1.0]]), alpha=1, limit=2.0))
        assert (weak[:, 10:30] == COLORMAPS["viridis"][128]).all()

    def test_fade_leaves_what_did_not_matter(self) -> None:
        made = np.asarray(overlay(picture(), heatmap_of([[0.0, 1.0]]), alpha=1, fade=True))
        assert (made[:, 10] == 100).all()
        assert (made[:, 29] == COLORMAPS["viridis"][255]).all()

    def test_zeros_everywhere(self) -> None:
        for colormap, index in [("viridis", 0), ("diverging", 128)]:
            made = np.asarray(overlay(picture(), heatmap_of([[0.0, 0.0]]), alpha=1, colormap=colormap))
            assert (made[:, 10:30] == COLORMAPS[colormap][index]).all()

    def test_random_weights_are_written_on_the_picture(self) -> None:
        large = Image.new("RGB", (300, 200), (100, 100, 100))
        stamped = np.asarray(overlay(large, heatmap_of([[0.0, 1.0]], weights="random"), alpha=0))
        assert (stamped[-5:, :5] == 0).all()
        assert (stamped[-16:, :120] > 200).any()
        assert (stamped[:150] == 100).all()

    def test_a_plain_image(self) -> None:
        made = overlay(Image.new("L", (30, 30), 100), heatmap_of([[0.0, 1.0]]))
        assert (np.asarray(made) != 100).any(-1).all()

    def test_bad_input(self) -> None:
        several = tp.explain(PooledNet(), torch.randn(2, 3, 5, 5))
        with pytest.raises(InputError, match=r"heatmap\[n, k\]"):
            overlay(picture(), several)
        with pytest.raises(InputError, match="Picture"):
            overlay(torch.zeros(3, 5, 5), several[0])  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="closest: 'viridis'"):
            overlay(picture(), several[0], colormap="virids")
        with pytest.raises(OptionError, match="alpha is 2"):
            overlay(picture(), several[0], alpha=2)


def test_extract_is_the_picture_times_the_heat() -> None:
    made = np.asarray(extract(picture((200, 100, 50)), heatmap_of([[-5.0, 0.0, 4.0]] * 3))).astype(int)
    assert (made[:, :10] == 0).all()  # the model saw nothing of it
    assert (made[:, 10:14] == 0).all()
    assert (made[:, 28:30] == [200, 100, 50]).all()
    assert 90 <= made[10, 23, 0] <= 140

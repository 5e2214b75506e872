"""Preprocessing against torchvision and timm, and where each pixel comes from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import torchpeek as tp
from images import noise
from networks import PooledNet
from torchpeek.errors import InputError, PictureError
from torchpeek.models import Preprocess

torchvision = pytest.importorskip("torchvision")


SIZES = [(640, 427), (427, 640), (300, 300), (224, 224), (100, 80), (231, 257), (1001, 333), (225, 224)]


class TestPreprocess:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("name", ["mobilenet_v2", "inception_v3", "efficientnet_b1", "vit_h_14", "fcn_resnet50"])
    def test_is_torchvisions_own(self, name: str, size: tuple[int, int]) -> None:
        """Pixel for pixel: bilinear and bicubic, larger and smaller than the crop."""
        from torchpeek.models.torchvision_models import torchvision_preprocess

        entry = next(iter(torchvision.models.get_model_weights(name)))
        image = noise(size)
        tensor, _ = torchvision_preprocess(name, entry)(image)
        torch.testing.assert_close(tensor[0], entry.transforms()(image), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("crop", [("center", 0.9), ("squash", 1.0), ("squash", 0.95)])
    def test_is_timms_own(self, crop: tuple[str, float], size: tuple[int, int]) -> None:
        timm = pytest.importorskip("timm")
        from torchpeek.models.timm_models import timm_preprocess

        config = {
            "input_size": (3, 192, 192),
            "interpolation": "bicubic",
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.3, 0.4),
            "crop_pct": crop[1],
            "crop_mode": crop[0],
        }
        image = noise(size)
        tensor, _ = timm_preprocess("x", config)(image)
        theirs = timm.data.create_transform(**config, is_training=False)(image)
        torch.testing.assert_close(tensor[0], theirs, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("size", SIZES)
    def test_the_geometry_is_where_the_pixels_come_from(self, size: tuple[int, int]) -> None:
        """A picture whose red is x and whose green is y says for each input pixel where it was."""
        width, height = size
        x = torch.linspace(0, 255, width).repeat(height, 1)
        y = torch.linspace(0, 255, height)[:, None].repeat(1, width)
        image = Image.fromarray(torch.stack([x, y, torch.zeros_like(x)], -1).round().byte().numpy())
        tensor, geometry = Preprocess(mean=(0, 0, 0), std=(1, 1, 1))(image)
        left, top, right, bottom = geometry.box
        for row, column in [(112, 112), (60, 150), (180, 40)]:
            at = (left + (column + 0.5) / 224 * (right - left), top + (row + 0.5) / 224 * (bottom - top))
            red, green = (tensor[0, :2, row, column] * 255).tolist()
            if 1 < at[0] < width - 1 and 1 < at[1] < height - 1:
                assert red / 255 * (width - 1) + 0.5 == pytest.approx(at[0], abs=width / 150 + 1)
                assert green / 255 * (height - 1) + 0.5 == pytest.approx(at[1], abs=height / 150 + 1)

    def test_grey(self) -> None:
        tensor, _ = Preprocess(mean=(0.5,), std=(0.5,))(noise((50, 40)))
        assert tensor.shape == (1, 1, 224, 224)
        with pytest.raises(InputError, match=r"1 \(grey\) or 3"):
            Preprocess(mean=(0.5, 0.5), std=(0.5, 0.5))

    @settings(max_examples=60, deadline=None)
    @given(width=st.integers(8, 400), height=st.integers(8, 400), resize=st.integers(16, 96), crop=st.integers(8, 120))
    def test_any_size_is_as_in_torchvision(self, width: int, height: int, resize: int, crop: int) -> None:
        from torchvision.transforms._presets import ImageClassification

        image = noise((width, height))
        ours, geometry = Preprocess(resize=resize, crop=(crop, crop))(image)
        theirs = ImageClassification(crop_size=crop, resize_size=resize)(image)
        torch.testing.assert_close(ours[0], theirs, atol=1e-6, rtol=0)
        left, top, right, bottom = geometry.box
        assert left < right
        assert top < bottom
        assert (left + right) / 2 == pytest.approx(width / 2, abs=width / resize + 1)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"interpolation": "cubic"},
            {"crop": 224},
            {"resize": 0},
            {"resize": (3, 0)},
            {"crop": (1, 2, 3)},
            {"pad": 300},
            {"longest": 0},
            {"longest": 300, "resize": (200, 200)},
            {"rounding": "up"},
        ],
    )
    def test_what_it_cannot_be(self, wrong) -> None:
        with pytest.raises(InputError, match="allowed"):
            Preprocess(**wrong)

    def test_a_line_of_pixels_is_refused(self) -> None:
        """Its shorter side would be resized to 256, and so it as a whole to a gigapixel."""
        with pytest.raises(PictureError, match="too long for its width"):
            Preprocess()(Image.new("RGB", (20_000, 1)))

    def test_whole_picture_as_it_is(self) -> None:
        tensor, geometry = Preprocess(resize=None, crop=None)(noise((50, 40)))
        assert tensor.shape == (1, 3, 40, 50)
        assert geometry == tp.Geometry.whole((50, 40))

    @pytest.mark.parametrize("size", SIZES)
    def test_a_longest_side(self, size: tuple[int, int]) -> None:
        """No side is longer than allowed, the shape is kept to a pixel, and one of the two limits is met."""
        tensor, geometry = Preprocess(resize=60, longest=80, crop=None)(noise(size))
        height, width = tensor.shape[2:]
        assert max(height, width) <= 80
        assert min(height, width) == 60 or 79 <= max(height, width) <= 80
        assert width / height == pytest.approx(size[0] / size[1], abs=1.5 * max(size) / min(size) / min(height, width))
        assert geometry.box == pytest.approx(tp.Geometry.whole(size).box)

    def test_padding(self) -> None:
        """Zeros, on the right and at the bottom; the geometry reaches as far beyond the picture."""
        image = noise((50, 40))
        tensor, geometry = Preprocess(resize=20, crop=None, pad=(30, 50))(image)
        inner, _ = Preprocess(resize=20, crop=None)(image)
        assert torch.equal(tensor[:, :, :20, :25], inner)
        assert tensor[:, :, 20:].count_nonzero() == tensor[:, :, :, 25:].count_nonzero() == 0
        assert geometry.box == (0, 0, 100, 60)
        with pytest.raises(PictureError, match="does not fit into 24 x 30"):
            Preprocess(resize=20, crop=None, pad=(30, 24))(image)

    def test_blue_first(self) -> None:
        image = noise((50, 40))
        plain = {"resize": None, "crop": None}
        mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
        flipped, _ = Preprocess(**plain, mean=mean, std=std, bgr=True)(image)
        straight, _ = Preprocess(**plain, mean=mean[::-1], std=std[::-1])(image)
        assert torch.equal(flipped, straight.flip(1))

    @pytest.mark.parametrize(("have", "want", "left"), [(9, 4, 2), (10, 4, 3), (11, 4, 3), (4, 9, -3), (4, 8, -2)])
    def test_half_a_pixel_goes_to_the_top_left_if_rounded_down(self, have: int, want: int, left: int) -> None:
        _, geometry = Preprocess(resize=None, crop=(want, want), rounding="down")(noise((have, have)))
        assert geometry.box == (left, left, left + want, left + want)

    def test_says_what_it_does(self) -> None:
        assert str(Preprocess(resize=(10, 20), crop=None)).startswith("resize to 10 x 20 (bilinear, antialiased); mean")
        said = str(Preprocess(resize=10, longest=20, crop=None, pad=(20, 20), bgr=True))
        for words in ("10, shorter side, the longer at most 20", "blue first; pad to 20 x 20"):
            assert words in said


def test_a_preprocessing_of_the_users_own() -> None:
    loaded = tp.LoadedModel(PooledNet(), lambda image: torch.zeros(3, 8, 8))
    picture = loaded.read(noise((20, 10)))
    assert picture.tensor.shape == (1, 3, 8, 8)
    assert picture.geometry == tp.Geometry.whole((20, 10))
    assert "whole picture" in picture.notes[-1]

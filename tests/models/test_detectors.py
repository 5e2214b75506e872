"""The geometry of pictures that a detector of torchvision resizes inside."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import torchpeek as tp
from images import noise
from torchpeek.models import Preprocess

torchvision = pytest.importorskip("torchvision")


class TestDetectors:
    @settings(max_examples=25, deadline=None)
    @given(
        width=st.integers(20, 300),
        height=st.integers(20, 300),
        least=st.integers(30, 90),
        most=st.integers(90, 120),
        multiple=st.sampled_from([1, 16, 32]),
        fixed=st.sampled_from([None, (64, 48)]),
    )
    def test_the_box_is_what_the_layers_see(
        self, width: int, height: int, least: int, most: int, multiple: int, fixed: tuple[int, int] | None
    ) -> None:
        """Of torchvision's own transform: the sizes that it makes, and where a ramp of colours lands in it."""
        from torchvision.models.detection.transform import GeneralizedRCNNTransform

        net = nn.Module()
        net.transform = GeneralizedRCNNTransform(
            [7, least], most, [0, 0, 0], [1, 1, 1], size_divisible=multiple, fixed_size=fixed
        ).eval()
        x = torch.linspace(0, 255, width).repeat(height, 1)
        y = torch.linspace(0, 255, height)[:, None].repeat(1, width)
        image = Image.fromarray(torch.stack([x, y, x], -1).round().byte().numpy())
        picture = tp.LoadedModel(net).read(image)
        torch.testing.assert_close(picture.tensor[0], torchvision.transforms.functional.to_tensor(image))

        inside, _ = net.transform(picture.tensor)
        (seen_height, seen_width), (padded_height, padded_width) = inside.image_sizes[0], inside.tensors.shape[2:]
        left, top, right, bottom = picture.geometry.box
        assert (left, top) == (0, 0)
        assert right == pytest.approx(width * padded_width / seen_width)
        assert bottom == pytest.approx(height * padded_height / seen_height)
        row, column = seen_height // 2, seen_width // 3
        red, green = inside.tensors[0, :2, row, column].tolist()
        assert red * (width - 1) + 0.5 == pytest.approx((column + 0.5) / padded_width * right, abs=width / 100 + 1)
        assert green * (height - 1) + 0.5 == pytest.approx((row + 0.5) / padded_height * bottom, abs=height / 100 + 1)

    @pytest.mark.parametrize(
        ("name", "classes", "box"),
        [
            # 451 x 300, of which the shorter side gets 320, the longer at most 640; in multiples of 32
            ("fasterrcnn_mobilenet_v3_large_320_fpn", 91, (451 * 512 / 481, 300)),
            ("ssdlite320_mobilenet_v3_large", 91, (451, 300)),  # squashed to 320 x 320
        ],
    )
    def test_of_torchvision(self, name: str, classes: int, box: tuple[float, float]) -> None:
        loaded = tp.load_model(f"torchvision:{name}", "random")
        assert len(loaded.class_names) == classes
        picture = loaded.read(noise((451, 300)))
        assert picture.tensor.shape == (1, 3, 300, 451)
        assert 0 <= picture.tensor.min() < picture.tensor.max() <= 1
        assert picture.geometry.box[2:] == pytest.approx(box)
        assert "inside: resize to 3" in str(loaded.preprocess)

    def test_a_users_own(self, in_folder) -> None:
        """Where nothing is said, the detector's own; also of a callable, without a notice."""
        (in_folder / "mine_detects.py").write_text(
            "from torchvision.models import get_model\n"
            "name = 'fasterrcnn_mobilenet_v3_large_320_fpn'\n"
            "make = lambda: get_model(name, weights=None, weights_backbone=None, num_classes=3)\n"
        )
        loaded = tp.load_model("mine_detects:make")
        assert loaded.read(noise((30, 20))).tensor.shape == (1, 3, 20, 30)
        mine = tp.LoadedModel(loaded.module, Preprocess(crop=(32, 32)))
        assert mine.read(noise((30, 20))).tensor.shape == (1, 3, 32, 32)

    def test_sizes_that_are_set_later(self) -> None:
        loaded = tp.load_model("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", "random")
        loaded.module.transform.min_size = (64,)
        assert "64, shorter side" in str(loaded.preprocess)
        # 96 x 64 in multiples of 32: nothing to pad
        assert loaded.read(noise((300, 200))).geometry == tp.Geometry.whole((300, 200))

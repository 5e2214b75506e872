"""Heatmaps of detectors that take lists of pictures and resize them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchpeek as tp
from networks.model_calls import drawn
from torchpeek.errors import InputError, TargetError
from torchpeek.render.overlay import placed

Box, Pixels = tp.targets.Box, tp.targets.Pixels


SIZES = [(60, 80), (90, 50), (60, 80)]


# ---- detectors: they scale and pad their pictures themselves ----


class Bright(nn.Module):
    """A detector of brightness: one box around it all, as sure as the brightest cells of a stride of 8 are bright."""

    def __init__(self, divisible: int = 32, least: int = 64, most: int = 96) -> None:
        super().__init__()
        detection = pytest.importorskip("torchvision.models.detection.transform")
        self.transform = detection.GeneralizedRCNNTransform(least, most, [0.0] * 3, [1.0] * 3, size_divisible=divisible)
        self.conv = nn.Conv2d(3, 2, 8, stride=8)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 192)
            self.conv.bias.zero_()

    def forward(self, pictures: list[Tensor]) -> list[dict[str, Tensor]]:
        scaled, _ = self.transform(pictures)
        seen = self.conv(scaled.tensors)  # (N, 2, h, w), as padded
        scores = torch.sigmoid(seen.square().mean((1, 2, 3)))
        boxes = [[0.0, 0.0, picture.shape[2], picture.shape[1]] for picture in pictures]
        return [
            {"boxes": torch.tensor([box]), "scores": score[None], "labels": torch.tensor([1])}
            for box, score in zip(boxes, scores, strict=True)
        ]


class TestDetectors:
    @pytest.mark.parametrize(("width", "height"), [(200, 150), (130, 210), (97, 64), (333, 90)])
    @pytest.mark.parametrize("divisible", [8, 32])
    def test_heat_lies_where_the_object_is(self, width: int, height: int, divisible: int) -> None:
        """Anywhere in the original picture, whatever was padded: the centre of the heat is that of the object."""
        model = Bright(divisible).eval()
        loaded = tp.LoadedModel(model)
        for across, down in [(0.2, 0.25), (0.75, 0.7), (0.5, 0.8)]:
            pixels = np.zeros((height, width, 3), np.uint8)
            top, left, side = int(down * height), int(across * width), max(6, min(width, height) // 8)
            pixels[top : top + side, left : left + side] = 255
            picture = loaded.read(Image.fromarray(pixels))
            heatmap = tp.explain(loaded, picture, layer="conv", target=Box())
            heat = np.nan_to_num(placed(heatmap.positive().values[0, 0], picture.geometry))
            assert heat.shape == (height, width)
            share = heat / heat.sum()
            centre = [float(share.sum(axis) @ (np.arange(heat.shape[1 - axis]) + 0.5)) for axis in (0, 1)]
            cell = 8 * width / model.transform([torch.zeros(3, height, width)])[0].image_sizes[0][1]
            assert abs(centre[0] - (left + side / 2)) < 0.6 * cell
            assert abs(centre[1] - (top + side / 2)) < 0.6 * cell

    def test_a_list_of_pictures_of_different_sizes(self) -> None:
        model = Bright().eval()
        pictures = [torch.rand(3, *size, generator=torch.Generator().manual_seed(n)) for n, size in enumerate(SIZES)]
        found = tp.explain(model, pictures, layer="conv", target=Box())
        for picture, heatmap in zip(pictures, found, strict=True):
            alone = tp.explain(model, picture, layer="conv", target=Box())
            torch.testing.assert_close(heatmap.values, alone.values)
            scaled = model.transform([picture])[0].tensors
            assert tuple(heatmap.values.shape[2:]) == tuple(size // 8 for size in scaled.shape[2:])
            # By hand: d sigmoid(m) / d a = s (1 - s) 2 a / count, m the mean square.
            a = model.conv(scaled).detach()  # (1, 2, h, w)
            score = torch.sigmoid(a.square().mean())
            gradient = score * (1 - score) * 2 * a / a.numel()
            torch.testing.assert_close(heatmap.values, (gradient.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True))

    def test_a_batch_of_one_size_is_each_by_itself(self) -> None:
        model, batch = Bright().eval(), torch.rand(2, 3, 60, 80)
        together = tp.explain(model, batch, method="scorecam", layer="conv", target=Box())
        for n in range(2):
            alone = tp.explain(model, batch[n], method="scorecam", layer="conv", target=Box())
            torch.testing.assert_close(together.values[n], alone.values[0], rtol=1e-4, atol=1e-6)

    def test_no_class_is_predicted_of_a_detector(self) -> None:
        """Its boxes are (Q, 4), which is no batch of class scores."""
        for given in (torch.rand(3, 60, 80), torch.rand(2, 3, 60, 80)):
            with pytest.raises(TargetError, match="Box for a detector"):
                tp.explain(Bright().eval(), given, layer="conv")

    def test_other_arguments(self) -> None:
        with pytest.raises(InputError, match=r"Bright takes a list of pictures .*several of one size \(N, C, H, W\)"):
            tp.explain(Bright(), tp.Arguments(([torch.rand(3, 60, 80)],)), target=Box())

    def test_a_function_of_what_it_returns(self) -> None:
        model, batch = Bright().eval(), torch.rand(2, 3, 60, 80)
        target = tp.targets.Computed(lambda output, rows: torch.stack([each["scores"].sum() for each in output]))
        got = tp.explain(model, batch, layer="conv", target=target)
        torch.testing.assert_close(got.values, tp.explain(model, batch, layer="conv", target=Box()).values)

    def test_detr_with_a_mask_of_the_pixels(self) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        backbone = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
        )
        halves = {
            f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 16))
        }
        config = transformers.DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone_config=backbone,
            d_model=16,
            num_queries=4,
            num_labels=3,
            **halves,
        )
        model = transformers.DetrForObjectDetection(config).eval()
        x, mask = drawn(2, 3, 64, 64).float(), torch.ones(2, 64, 64, dtype=torch.long)
        mask[1, :, 48:] = 0
        layer = "model.input_projection"
        given = {"pixel_values": x, "pixel_mask": mask}
        for method in ("gradcam", "scorecam"):
            together = tp.explain(model, given, method=method, layer=layer, target=Box())
            for n in range(2):
                one = {"pixel_values": x[n : n + 1], "pixel_mask": mask[n : n + 1]}
                alone = tp.explain(model, one, method=method, layer=layer, target=Box())
                largest = float(alone.values.abs().max())
                torch.testing.assert_close(together.values[n], alone.values[0], rtol=0, atol=1e-3 * largest)
        blind = tp.explain(model, x[1:], layer=layer, target=Box())
        assert not torch.allclose(blind.scores, together.scores[1:])  # the mask went with its sample

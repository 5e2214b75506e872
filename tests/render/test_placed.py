"""Heatmaps placed on the original picture: the heat lies on the object, whatever the preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import torchpeek as tp
from torchpeek.render import placed


class BrightNet(nn.Module):
    """Looks for brightness: a 7 x 7 grid of how bright each 32 x 32 patch is, above a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.AvgPool2d(32)
        self.act = nn.ReLU()
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0], [0.0]]))

    def forward(self, x):
        return self.head(self.act(self.patches(x.mean(1, keepdim=True)) - 0.05).mean((2, 3)))


class TestPlaced:
    @pytest.mark.parametrize("corner", [(250, 120), (170, 60), (420, 330), (300, 200)])
    @pytest.mark.parametrize("preprocess", ["resize and crop", "squash", "pad"])
    @pytest.mark.parametrize("orientation", [1, 6, 8])
    def test_the_heat_is_on_the_bright_square(self, tmp_path: Path, corner, preprocess: str, orientation: int) -> None:
        """A 640 x 427 picture that EXIF turns upright; the square is found within one cell of the grid."""
        upright = Image.new("RGB", (640, 427), (10, 10, 10))
        upright.paste("white", (*corner, corner[0] + 50, corner[1] + 50))
        turn = {1: None, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        (upright if turn is None else upright.transpose(turn)).save(tmp_path / "a.png", exif=exif)
        way = {
            "resize and crop": tp.Preprocess(mean=(0, 0, 0), std=(1, 1, 1)),
            "squash": tp.Preprocess(resize=(224, 224), crop=None, mean=(0, 0, 0), std=(1, 1, 1)),
            "pad": tp.Preprocess(resize=140, crop=(224, 224), mean=(0, 0, 0), std=(1, 1, 1)),
        }[preprocess]
        loaded = tp.LoadedModel(BrightNet(), way)
        picture = loaded.read(tmp_path / "a.png")
        assert picture.image.size == (640, 427)
        heatmap = tp.explain(loaded, picture, target=0, layer="act")
        heat = placed(heatmap.values[0, 0], picture.geometry)
        assert heat.shape == (427, 640)
        left, top, right, bottom = picture.geometry.box
        y, x = np.unravel_index(np.nanargmax(heat), heat.shape)
        cell = ((right - left) / 7, (bottom - top) / 7)
        assert abs(x - (corner[0] + 25)) <= cell[0]
        assert abs(y - (corner[1] + 25)) <= cell[1]

    def test_outside_of_what_the_model_saw_there_is_no_value(self) -> None:
        plane = placed(torch.ones(2, 2), tp.Geometry((10, 6), (2.0, 0.0, 8.0, 6.0)))
        assert np.isnan(plane[:, [0, 1, 8, 9]]).all()
        assert (plane[:, 2:8] == 1).all()

    def test_agrees_with_interpolation_where_nothing_is_cropped(self) -> None:
        values = torch.randn(1, 1, 7, 5)
        expected = torch.nn.functional.interpolate(values, size=(61, 43), mode="bilinear", align_corners=False)[0, 0]
        got = placed(values[0, 0], tp.Geometry.whole((43, 61)))
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)

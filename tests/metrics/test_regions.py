"""Boxes, masks and mosaics: where the object is, and metrics that ask for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import InputError
from torchpeek.metrics import mosaic, regions_of


class TestRegions:
    def test_boxes_of_a_picture_are_in_its_own_pixels(self, photograph: Path) -> None:
        """Half as large and cropped: the box is where the crop shows it."""
        preprocess = tp.Preprocess(resize=None, crop=(100, 80), mean=(0.5,) * 3, std=(0.5,) * 3)
        loaded = tp.LoadedModel(PooledNet().eval(), preprocess, None)
        image = Image.new("RGB", (200, 150))
        picture = loaded.read(image)
        left, top, right, bottom = picture.geometry.box
        assert (right - left, bottom - top) == (80, 100)
        found = regions_of(
            None, [[left + 10, top + 20, left + 30, top + 50]], picture.tensor.shape, 1, picture.geometry
        )
        expected = torch.zeros(1, 1, 100, 80, dtype=torch.bool)
        expected[..., 20:50, 10:30] = True
        assert torch.equal(found, expected)
        mask = torch.zeros(150, 200, dtype=torch.bool)
        mask[int(top) + 20 : int(top) + 50, int(left) + 10 : int(left) + 30] = True
        assert torch.equal(regions_of(mask, None, picture.tensor.shape, 1, picture.geometry), expected)

    def test_several_boxes_and_masks_by_score(self) -> None:
        shape = torch.Size((2, 3, 4, 6))
        found = regions_of(None, [[[0, 0, 2, 1], [5, 3, 6, 4]], [1, 1, 2, 2]], shape, 1, None)
        assert found[0].sum() == 3
        assert found[1, 0].nonzero().tolist() == [[1, 1]]
        masks = torch.rand(2, 3, 4, 6) > 0.5
        assert torch.equal(regions_of(masks, None, shape, 3, None), masks)

    @pytest.mark.parametrize(
        ("masks", "boxes", "said"),
        [
            (torch.ones(2, 4, 5, dtype=torch.bool), None, "the size of the input, 4 x 6"),
            (torch.ones(2, 4, 6), None, "torch.bool"),
            (torch.ones(3, 4, 6, dtype=torch.bool), None, "N = 2"),
            (None, [[3, 0, 2, 1], [0, 0, 1, 1]], "sample 0"),
            (None, [[0, 0, 1, 1]], "batch of 2"),
            (torch.ones(2, 4, 6, dtype=torch.bool), [[0, 0, 1, 1]] * 2, "one of them"),
        ],
    )
    def test_what_does_not_fit(self, masks: Any, boxes: Any, said: str) -> None:
        with pytest.raises(InputError, match=said):
            regions_of(masks, boxes, torch.Size((2, 3, 4, 6)), 1, None)

    def test_an_empty_region_is_no_number(self) -> None:
        """Nothing was there to be found: neither hit nor miss, and left out of the mean."""
        model, x = PooledNet().eval(), torch.randn(2, 3, 6, 6)
        heatmap = tp.explain(model, x, target=1)
        masks = torch.zeros(2, 6, 6, dtype=torch.bool)
        masks[0, 2:4, 2:4] = True
        for name in ("pointing-game", "energy-pointing-game", "relevance-rank-accuracy", "iou"):
            found = tp.evaluate(model, x, heatmap, metrics=[name], masks=masks)[name]
            assert found.values.isnan().flatten().tolist() == [False, True]
            assert found.interval().samples == 1

    def test_a_mosaic(self) -> None:
        pictures = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 5, 6)
        cells = mosaic(pictures)
        assert cells.inputs.shape == (1, 3, 10, 12)
        for cell in range(4):
            assert set(cells.inputs[0, 0][cells.regions[0, cell]].tolist()) == {float(cell)}
            assert cells.regions[0, cell].sum() == 30
        assert (cells.inputs[0, 0, 0, 0], cells.inputs[0, 0, 0, -1], cells.inputs[0, 0, -1, 0]) == (0, 1, 2)
        with pytest.raises(InputError, match=r"\(4, C, H, W\)"):
            mosaic(pictures[:3])

    def test_the_grid_pointing_game(self) -> None:
        """Energy in the own cell: a quarter of a heatmap that is the same everywhere."""
        model = PooledNet().eval()
        cells = mosaic(torch.randn(4, 3, 6, 6))
        heatmap = tp.explain(model, cells.inputs, target=[[0, 1, 2, 3]])
        flat = replace(heatmap, values=torch.ones_like(heatmap.values))
        found = tp.evaluate(model, cells.inputs, flat, metrics=["grid-pointing-game"], masks=cells.regions)
        torch.testing.assert_close(found["grid-pointing-game"].values, torch.full((1, 4), 0.25))

"""LoadedModel.read with max_size: what the model sees, where heatmaps, boxes and masks lie, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torchpeek as tp
from cli_models import any_size, pooled
from images import noise
from torchpeek.errors import InputError


@pytest.fixture
def halved(tmp_path: Path) -> tuple[Path, Path]:
    """A picture, and the same picture in half its size, as it is reduced."""
    whole = noise((96, 64))
    whole.save(tmp_path / "whole.png")
    tp.LoadedModel(torch.nn.Identity()).read(whole, max_size=48).image.save(tmp_path / "half.png")
    return tmp_path / "whole.png", tmp_path / "half.png"


@pytest.mark.parametrize("model", [pooled, any_size])
def test_the_preprocessing_sees_the_reduced_picture(halved, model) -> None:
    loaded = model()
    reduced, plain = loaded.read(halved[0], max_size=48), loaded.read(halved[1])
    assert torch.equal(reduced.tensor, plain.tensor)
    assert reduced.geometry == plain.geometry
    assert reduced.image.tobytes() == plain.image.tobytes()
    assert torch.equal(tp.explain(loaded, reduced).values, tp.explain(loaded, plain).values)


def test_a_file_and_an_image_are_reduced_alike(halved) -> None:
    loaded = pooled()
    with Image.open(halved[0]) as image:
        assert torch.equal(loaded.read(image, max_size=48).tensor, loaded.read(halved[0], max_size=48).tensor)
        assert image.size == (96, 64)


def test_a_smaller_picture_is_bit_equal(halved) -> None:
    loaded = pooled()
    limited, plain = loaded.read(halved[0], max_size=96), loaded.read(halved[0])
    assert torch.equal(limited.tensor, plain.tensor)
    assert limited.image.tobytes() == plain.image.tobytes()
    assert (limited.notes, limited.original_size, limited.reduction) == ((), None, "")
    assert limited.original_geometry == limited.geometry


def test_what_is_said_of_it(halved) -> None:
    loaded = pooled()
    picture = loaded.read(halved[0], max_size=48)
    assert picture.notes == ("reduced from 96 x 64 to 48 x 32",)
    assert picture.original_size == (96, 64)
    said = f"reduced from 96 x 64 to 48 x 32; {loaded.preprocess}"
    assert tp.explain(loaded, picture).provenance.preprocess == said
    plain = loaded.read(halved[1])
    listed = tp.explain(loaded, [picture, plain])
    assert [each.provenance.preprocess for each in listed] == [said, str(loaded.preprocess)]
    assert tp.explain(loaded.module, picture).provenance.preprocess == "reduced from 96 x 64 to 48 x 32"
    assert tp.trace(loaded, picture).origin.preprocess == said


def test_the_original_geometry_is_the_one_of_the_whole_picture(halved) -> None:
    """The middle square of the picture, in either size."""
    picture = pooled().read(halved[0], max_size=48)
    assert picture.original_geometry == pooled().read(halved[0]).geometry
    assert picture.original_geometry.box == (16.0, 0.0, 80.0, 64.0)
    assert picture.geometry.box == (8.0, 0.0, 40.0, 32.0)


def test_an_overlay_lies_on_the_reduced_picture(halved) -> None:
    loaded = pooled()
    reduced, plain = loaded.read(halved[0], max_size=48), loaded.read(halved[1])
    heatmap = tp.explain(loaded, plain)[0, 0]
    assert tp.render.overlay(reduced, heatmap).tobytes() == tp.render.overlay(plain, heatmap).tobytes()


@pytest.mark.parametrize("metric", ["iou", "energy-pointing-game"])
def test_boxes_and_masks_are_in_pixels_of_the_original_picture(halved, metric: str) -> None:
    loaded = pooled()
    reduced, plain = loaded.read(halved[0], max_size=48), loaded.read(halved[1])
    heatmap = tp.explain(loaded, plain)
    mask = torch.zeros(1, 32, 48, dtype=torch.bool)
    mask[:, 5:20, 10:30] = True
    expected = tp.evaluate(loaded, plain, heatmap, metrics=[metric], masks=mask)[metric].values
    large = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    for region in ({"masks": large}, {"boxes": [[20.0, 10.0, 60.0, 40.0]]}):
        found = tp.evaluate(loaded, reduced, heatmap, metrics=[metric], **region)[metric].values
        assert torch.equal(found, expected)
        assert metric == "iou" or 0 < float(expected) < 1
    with pytest.raises(InputError, match="the size of the original picture, 64 x 96"):
        tp.evaluate(loaded, reduced, heatmap, metrics=[metric], masks=mask)


def test_an_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise((96, 64)).save(tmp_path / "a.jpg", exif=exif)
    picture = pooled().read(tmp_path / "a.jpg", max_size=48)
    assert (picture.image.size, picture.original_size) == ((32, 48), (64, 96))
    assert picture.notes == ("reduced from 64 x 96 to 32 x 48", "turned upright (EXIF orientation 6)")
    whole = pooled().read(tmp_path / "a.jpg").image.resize((32, 48), Image.Resampling.BOX)
    assert np.abs(np.asarray(whole).astype(int) - np.asarray(picture.image)).mean() < 6


@pytest.mark.parametrize("max_size", [0, -1, 1.5, "100", True])
def test_what_is_refused(halved, max_size) -> None:
    with pytest.raises(InputError, match=r"max_size is .*; allowed: a number of pixels, 1 or more"):
        pooled().read(halved[0], max_size=max_size)

"""The composed data set: masks are exact, places are off the centre, and the same seed gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from composed_pictures import compose, cut_outs, drawn_shape
from paths import IMAGES


def test_the_mask_is_where_the_object_is(tmp_path: Path) -> None:
    for photographs in ((), (IMAGES / "chelsea.png",)):
        folder = tmp_path / str(len(photographs))
        for picture in compose(folder, 6, size=(240, 180), photographs=photographs, files=()):
            image = np.asarray(Image.open(folder / "pictures" / picture.key).convert("RGB")).astype(int)
            mask = np.asarray(Image.open(folder / "masks" / picture.mask)) > 0
            assert image.shape == (*mask.shape, 3) == (180, 240, 3)
            inner = mask & np.roll(mask, 6, 0) & np.roll(mask, -6, 0) & np.roll(mask, 6, 1) & np.roll(mask, -6, 1)
            colours = image[inner]
            assert (
                np.abs(colours - np.median(colours, 0)).max(1) < 40
            ).mean() > 0.99  # of one colour, as JPEG keeps it
            outside = image[~mask]
            assert outside.std(0).min() > 10
            rows, columns = np.nonzero(mask)
            assert picture.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_objects_are_off_the_centre(tmp_path: Path) -> None:
    for picture in compose(tmp_path, 30, size=(240, 180), files=()):
        left, top, right, bottom = picture.box
        away = abs((left + right) / 2 - 120), abs((top + bottom) / 2 - 90)
        assert away[0] > 240 / 8 - 4 or away[1] > 180 / 8 - 4


def test_a_picture_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    few, many = compose(tmp_path / "a", 3, seed=5), compose(tmp_path / "b", 5, seed=5)
    assert many[:3] == few
    for picture in few:
        for name in (f"pictures/{picture.key}", f"masks/{picture.mask}"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert compose(tmp_path / "c", 3, seed=6) != few


def test_cut_outs_of_a_package_are_used_where_there_is_one(tmp_path: Path) -> None:
    drawn_shape("ring").save(tmp_path / "ring-of-a-package.webp", lossless=True)
    (picture,) = compose(tmp_path, 1, files=[tmp_path / "ring-of-a-package.webp"])
    mask = np.asarray(Image.open(tmp_path / "masks" / picture.mask)) > 0
    left, top, right, bottom = picture.box
    assert picture.label == "ring-of-a-package"
    assert not mask[(top + bottom) // 2, (left + right) // 2]  # its hole
    assert len(cut_outs()) <= 200

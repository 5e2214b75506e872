"""Boxes and masks that are read from files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from torchpeek.errors import FormatError, PictureError
from torchpeek.store import find_masks, read_boxes, read_mask


class TestBoxes:
    def test_read(self, tmp_path: Path) -> None:
        (tmp_path / "boxes.json").write_text(json.dumps({"ü.png": [[1, 2.5, 3, 4], [0, 0, 1, 1]], "b.png": []}))
        assert read_boxes(tmp_path / "boxes.json") == {
            "ü.png": [(1.0, 2.5, 3.0, 4.0), (0.0, 0.0, 1.0, 1.0)],
            "b.png": [],
        }

    @pytest.mark.parametrize(
        "box",
        [
            [1, 2, 3],
            [1, 2, "3", 4],
            [1, 2, True, 4],
            [3, 2, 3, 4],
            [1, 4, 3, 4],
            [1, 2, math.inf, 4],
            [0, 0, 10**400, 5],
            {},
            3,
        ],
    )
    def test_what_is_none(self, tmp_path: Path, box: Any) -> None:
        (tmp_path / "boxes.json").write_text(json.dumps({"a.png": [[1, 2, 3, 4], box]}))
        with pytest.raises(FormatError, match=r"the boxes of 'a.png' are .*; allowed: a list of \[left, top, right"):
            read_boxes(tmp_path / "boxes.json")

    def test_a_picture_that_is_there_twice(self, tmp_path: Path) -> None:
        (tmp_path / "boxes.json").write_text('{"a.png": [[1, 2, 3, 4]], "b.png": [], "a.png": []}')
        with pytest.raises(FormatError, match=r"'a.png' is there twice"):
            read_boxes(tmp_path / "boxes.json")

    def test_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "boxes.json").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(FormatError, match="not JSON"):
            read_boxes(tmp_path / "boxes.json")


class TestMasks:
    WHERE = np.array([[0, 0, 1], [1, 0, 0]], dtype=bool)

    def palette(self) -> Image.Image:
        """Whose index 0 is white, and whose index 1 is black."""
        image = Image.fromarray((~self.WHERE).astype(np.uint8), "P")
        image.putpalette([255, 255, 255, 0, 0, 0])
        return image

    @pytest.mark.parametrize(
        "made",
        [
            lambda where: Image.fromarray(where.astype(np.uint8) * 255),
            lambda where: Image.fromarray(where.astype(np.uint8)),  # labels, dark but not black
            lambda where: Image.fromarray(where.astype(np.uint16)),  # labels of 16 bits
            lambda where: Image.fromarray(where),
            lambda where: Image.fromarray(np.stack([where * 0, where * 0, where * 1], 2).astype(np.uint8)),
            lambda where: Image.fromarray((where * 255).astype(np.uint8)).convert("RGBA"),
            lambda where: Image.fromarray((where * 255).astype(np.uint8)).convert("LA"),
            lambda where: TestMasks().palette(),
        ],
    )
    def test_where_it_is_not_black(self, tmp_path: Path, made: Any) -> None:
        made(self.WHERE).save(tmp_path / "mask.png")
        found = read_mask(tmp_path / "mask.png")
        assert found.dtype == bool
        assert np.array_equal(found, self.WHERE)

    def test_upright(self, tmp_path: Path) -> None:
        image = Image.fromarray(self.WHERE.astype(np.uint8) * 255)
        exif = image.getexif()
        exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
        image.save(tmp_path / "mask.png", exif=exif)
        assert np.array_equal(read_mask(tmp_path / "mask.png"), np.rot90(self.WHERE, -1))

    def test_transparent(self, tmp_path: Path) -> None:
        image = Image.fromarray(self.WHERE.astype(np.uint8) * 255).convert("LA")
        image.putalpha(Image.fromarray(self.WHERE.astype(np.uint8) * 255))
        image.save(tmp_path / "mask.png")
        with pytest.raises(PictureError, match=r"mask.png: as a mask it must not be transparent"):
            read_mask(tmp_path / "mask.png")

    def test_no_picture(self, tmp_path: Path) -> None:
        (tmp_path / "mask.png").write_bytes(b"broken")
        with pytest.raises(PictureError, match=r"mask.png: not a picture"):
            read_mask(tmp_path / "mask.png")

    def test_found_by_stem(self, tmp_path: Path) -> None:
        for name in ("a.png", "a.bmp", "b.c.png", "notes.txt"):
            Image.new("L", (2, 2)).save(tmp_path / name, "png")
        found = find_masks(tmp_path)
        assert {stem: [file.name for file in each] for stem, each in found.items()} == {
            "a": ["a.bmp", "a.png"],
            "b.c": ["b.c.png"],
        }

"""The sheet of one picture by several methods."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import torchpeek as tp
from torchpeek.errors import InputError, OptionError
from torchpeek.render import mosaic


def test_mosaic() -> None:
    tiles = [Image.new("RGB", (100, 50 + 10 * n), (n * 20, 0, 0)) for n in range(5)]
    sheet = mosaic(tiles, [f"tile {n}" for n in range(5)], columns=2, width=100, gap=4)
    assert sheet.width == 4 + 2 * 104
    pixels = np.asarray(sheet)
    for n in range(5):
        assert (pixels == [n * 20, 0, 0]).all(-1).any(), "every tile is there"
    with pytest.raises(InputError, match="captions"):
        mosaic(tiles, ["one"])
    with pytest.raises(OptionError, match="columns is 0"):
        mosaic(tiles, ["one"] * 5, columns=0)


RED, GREEN, BLUE, ROSE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 128)


def places(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int]:
    """The left column and the top row of what has that colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(-1))
    return int(columns.min()), int(rows.min())


def plain(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (300, 300), colour)


class TestOriginal:
    def test_is_the_first_of_the_grid(self) -> None:
        sheet = mosaic([plain(GREEN), plain(BLUE), plain(ROSE)], ["g", "b", "r"], original=plain(RED), prediction="p")
        top = {colour: places(sheet, colour) for colour in (RED, GREEN, BLUE, ROSE)}
        assert top[RED] == (8, 8 + 24)
        assert top[GREEN] == (8 + 328, 8 + 24)
        assert top[BLUE] == (8, 8 + 24 + 320 + 8 + 24)
        assert top[ROSE] == (8 + 328, top[BLUE][1])

    def test_has_a_column_of_its_own_beside_columns_that_are_named(self) -> None:
        picture = tp.Picture(plain(RED), torch.zeros(1, 3, 8, 8), tp.Geometry.whole((300, 300)))
        tiles = [plain(GREEN), plain(BLUE), plain(ROSE), plain((1, 2, 3))]
        sheet = mosaic(tiles, ["a"] * 4, original=picture, prediction="tabby", columns=2)
        assert sheet.width == 8 + 3 * 328
        assert places(sheet, RED) == (8, 32)
        assert places(sheet, GREEN)[0] == places(sheet, ROSE)[0] == 8 + 328
        assert places(sheet, BLUE)[0] == places(sheet, (1, 2, 3))[0] == 8 + 2 * 328
        assert (np.asarray(sheet)[360:, :336] == 255).all()  # below it

    def test_its_caption_is_the_prediction(self) -> None:
        with_words = mosaic([plain(GREEN)], ["g"], original=plain(RED), prediction="tabby 82 %")
        without = mosaic([plain(GREEN)], ["g"], original=plain(RED))
        assert (np.asarray(with_words)[:32, :336] < 100).any()
        assert (np.asarray(without)[:32, :336] == 255).all()


def test_pictures_of_a_row_begin_at_one_line() -> None:
    long = "a caption of so many words that it takes two lines, or even three of them, at this width of the sheet"
    sheet = mosaic([plain(RED), plain(GREEN).resize((300, 100))], ["short", long], columns=2)
    assert places(sheet, RED)[1] == places(sheet, GREEN)[1]


def test_a_small_picture_is_not_blurred() -> None:
    checks = Image.fromarray((np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8))
    sheet = np.asarray(mosaic([checks], [""], width=224))[8 + 24 : 8 + 24 + 224, 8 : 8 + 224, 0]
    assert (sheet == np.asarray(checks).repeat(14, 0).repeat(14, 1)).all()

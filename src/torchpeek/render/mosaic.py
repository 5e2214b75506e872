"""Mosaic: pictures side by side, each with its caption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from PIL import Image

from torchpeek.argument_types import PositiveInt, Side, Whole
from torchpeek.errors import InputError, shown
from torchpeek.keywords import checked_keywords
from torchpeek.picture import Picture
from torchpeek.render.canvas import enlarged
from torchpeek.render.text import caption


@checked_keywords
def mosaic(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    original: Picture | Image.Image | None = None,
    prediction: str = "",
    columns: PositiveInt | None = None,
    width: Side = 320,
    gap: Annotated[int, Whole(0, 10_000)] = 8,
) -> Image.Image:
    """Put pictures on a white sheet, each with its caption above.

    The height of a picture follows from its shape, up to three times the width. A row is as high as its highest one.
    Of pictures whose longer side is below 224 pixels, each pixel is drawn as a square.

    Args:
        pictures: PIL images.
        captions: A caption for each picture.
        original: The photograph, which comes first.
        prediction: The caption of the original, such as "predicted: tiger cat 82.3 %".
        columns: Number of pictures in a row, beside the original, which then has a column of its own. None is about
            the square root of their number, with the original as the first of them.
        width: Width of each picture, in pixels.
        gap: Distance between pictures, in pixels.

    Returns:
        A PIL image in RGB.

    Raises:
        InputError: When there are no pictures, or not as many captions.
        OptionError: When `columns` is below 1.

    Example:
        >>> from PIL import Image
        >>> sheet = tp.render.mosaic([Image.new("RGB", (64, 64))] * 4, ["a", "b", "c", "d"], width=100)
        >>> sheet.width
        224
    """
    if original is not None and not isinstance(original, (Picture, Image.Image)):
        raise InputError(f"original is {shown(original)}; allowed: a Picture or a PIL image")
    for number, picture in enumerate(pictures):
        if not isinstance(picture, Image.Image):
            raise InputError(f"pictures[{number}] is {shown(picture)}; allowed: PIL images")
    if not len(pictures) or len(pictures) != len(captions):
        raise InputError(
            f"got {len(pictures)} pictures and {len(captions)} captions; give at least one, and as many of both"
        )
    tiles = [_tile(picture, words, width) for picture, words in zip(pictures, captions, strict=True)]
    if original is None:
        return _sheet(_rows(tiles, columns), width, gap)
    photo = _tile(original.image if isinstance(original, Picture) else original, prediction, width)
    if columns is None:
        return _sheet(_rows([photo, *tiles], None), width, gap)
    first, *rest = _rows(tiles, columns)
    rows = [[photo, *first], *([None, *row] for row in rest)]
    return _sheet(rows, width, gap)


@dataclass(frozen=True, eq=False)
class _Tile:
    """A caption, and the picture below it."""

    words: Image.Image
    picture: Image.Image


def _rows(tiles: Sequence[_Tile], columns: int | None) -> list[list[_Tile | None]]:
    across = columns or math.ceil(math.sqrt(len(tiles)))
    return [list(tiles[start : start + across]) for start in range(0, len(tiles), across)]


def _sheet(rows: Sequence[Sequence[_Tile | None]], width: int, gap: int) -> Image.Image:
    """Draw rows of tiles. The captions of a row are of one height, so that its pictures begin at one line."""
    above = [max(tile.words.height for tile in row if tile) for row in rows]
    below = [max(tile.picture.height for tile in row if tile) for row in rows]
    size = (gap + (width + gap) * max(map(len, rows)), gap + sum(above) + sum(below) + gap * len(rows))
    sheet = Image.new("RGB", size, "white")
    top = gap
    for row, words, picture in zip(rows, above, below, strict=True):
        for column, tile in enumerate(row):
            if tile is not None:
                left = gap + (width + gap) * column
                sheet.paste(tile.words, (left, top + words - tile.words.height))
                sheet.paste(tile.picture, (left, top + words))
        top += words + picture + gap
    return sheet


def _tile(picture: Image.Image, words: str, width: int) -> _Tile:
    large = enlarged(picture if picture.mode == "RGB" else picture.convert("RGB"))
    scale = min(width / large.width, 3 * width / large.height)
    size = (max(1, round(large.width * scale)), max(1, round(large.height * scale)))
    return _Tile(caption(words, width), large.resize(size, Image.Resampling.LANCZOS))

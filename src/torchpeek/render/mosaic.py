"""Mosaic: pictures side by side, each with its caption."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from torchpeek.errors import InputError
from torchpeek.render.text import caption


def mosaic(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    width: int = 320,
    gap: int = 8,
) -> Image.Image:
    """Put pictures on a white sheet, each with its caption above.

    The height of a picture follows from its shape, up to three times the width. A row is as high as its highest one.

    Args:
        pictures: PIL images.
        captions: A caption for each picture.
        columns: Number of pictures in a row. None is about the square root of their number.
        width: Width of each picture, in pixels.
        gap: Distance between pictures, in pixels.

    Returns:
        A PIL image in RGB.

    Raises:
        InputError: When there are no pictures, or not as many captions.

    Example:
        >>> from PIL import Image
        >>> sheet = tp.render.mosaic([Image.new("RGB", (64, 64))] * 4, ["a", "b", "c", "d"], width=100)
        >>> sheet.width
        224
    """
    if not pictures or len(pictures) != len(captions):
        raise InputError(
            f"got {len(pictures)} pictures and {len(captions)} captions; give at least one, and as many of both"
        )
    per_row = columns or math.ceil(math.sqrt(len(pictures)))
    tiles = [_tile(picture, words, width) for picture, words in zip(pictures, captions, strict=True)]
    rows = [tiles[start : start + per_row] for start in range(0, len(tiles), per_row)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new(
        "RGB", (gap + (width + gap) * min(per_row, len(tiles)), gap + sum(heights) + gap * len(rows)), "white"
    )
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (gap + (width + gap) * column, top + height - tile.height))
        top += height + gap
    return sheet


def _tile(picture: Image.Image, words: str, width: int) -> Image.Image:
    scale = min(width / picture.width, 3 * width / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    scaled = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    words_above = caption(words, width)
    tile = Image.new("RGB", (width, words_above.height + scaled.height), "white")
    tile.paste(words_above, (0, 0))
    tile.paste(scaled, (0, words_above.height))
    return tile

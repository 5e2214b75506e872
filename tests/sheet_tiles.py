"""The tiles of a sheet that was drawn, read back from its pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from torchpeek.render.tiles import FRAME

GAP = 3


def tiles_of(
    sheet: Image.Image, height: int, width: int, rows: int, columns: int, room: int = 0, *, count: int | None = None
) -> np.ndarray:
    """The tiles (rows, columns, height, width, 3) of a sheet with one grid at its foot, without their frames.

    `room` is what stands above each tile, a label or a number. The last row may hold fewer, so that there are `count`.
    """
    pixels = np.asarray(sheet)
    step = room + height + 2 + GAP
    top = len(pixels) - rows * step + room
    found = np.empty((rows, columns, height, width, 3), np.uint8)
    for row in range(rows):
        for column in range(columns if count is None else min(columns, count - row * columns)):
            y, x = top + row * step, GAP + column * (width + 2 + GAP)
            framed = pixels[y : y + height + 2, x : x + width + 2]
            for edge in (framed[0], framed[-1], framed[:, 0], framed[:, -1]):
                assert (edge == FRAME).all()
            found[row, column] = framed[1:-1, 1:-1]
    return found


def squares(tile: np.ndarray, up: int) -> np.ndarray:
    """The colour of each value, (h, w, 3), and a check that each is a square of one colour."""
    colours = tile[::up, ::up]
    assert np.array_equal(tile, colours.repeat(up, 0).repeat(up, 1))
    return colours

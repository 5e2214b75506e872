"""The sheet of one picture by several methods."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from torchpeek.errors import InputError
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

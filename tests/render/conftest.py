"""The words that are drawn on pictures."""

from __future__ import annotations

import pytest
from PIL import Image

from torchpeek.render import text as text_of_render
from torchpeek.render import tiles as tiles_of_render


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that was written on the picture, as handed to caption()."""
    written: list[str] = []

    def noted(line: str, width: int, size: int = 14) -> Image.Image:
        written.append(line)
        return text_of_render.caption(line, width, size)

    monkeypatch.setattr(tiles_of_render, "caption", noted)
    return written


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """All numbers of tiles that were drawn."""
    drawn: list[int] = []
    strip = tiles_of_render._number_strip

    def noted(number: int) -> Image.Image:
        drawn.append(number)
        return strip(number)

    monkeypatch.setattr(tiles_of_render, "_number_strip", noted)
    return drawn

"""Picture: reduced images, and how it shows itself."""

from __future__ import annotations

import torch
from PIL import Image

import torchpeek as tp
from images import noise


def picture(size: tuple[int, int], box: tuple[float, float, float, float], name: str = "cat.png") -> tp.Picture:
    return tp.Picture(noise(size), torch.zeros(1, 3, 8, 8), tp.Geometry(size, box), name)


class TestReduced:
    def test_the_box_is_in_pixels_of_the_smaller_image(self) -> None:
        small = picture((640, 480), (80.0, 0.0, 560.0, 480.0)).reduced(160)
        assert small.image.size == (160, 120)
        assert small.geometry == tp.Geometry((160, 120), (20.0, 0.0, 140.0, 120.0))
        assert small.original_size == (640, 480)
        assert small.original_geometry.box == (80.0, 0.0, 560.0, 480.0)

    def test_twice_is_of_the_first(self) -> None:
        twice = picture((640, 480), (80.0, 0.0, 560.0, 480.0)).reduced(320).reduced(160)
        assert twice.original_size == (640, 480)
        assert twice.original_geometry.box == (80.0, 0.0, 560.0, 480.0)

    def test_a_small_one_stays(self) -> None:
        one = picture((64, 48), (0.0, 0.0, 64.0, 48.0))
        assert one.reduced(64) is one


class TestHtml:
    def test_what_it_is(self) -> None:
        html = picture((640, 480), (80.0, 0.0, 560.0, 480.0))._repr_html_()
        assert "640 x 480, tensor (1, 3, 8, 8) float32" in html
        assert "the line marks what the model sees" in html
        assert "the line marks" not in picture((64, 48), (0.0, 0.0, 64.0, 48.0))._repr_html_()
        assert len(html) < 100_000

    def test_it_leaves_the_image_as_it_is(self) -> None:
        one = picture((64, 48), (8.0, 8.0, 40.0, 40.0))
        before = one.image.tobytes()
        one._repr_html_()
        assert one.image.tobytes() == before

    def test_the_name_is_escaped(self) -> None:
        html = picture((64, 48), (0.0, 0.0, 64.0, 48.0), "<script>.png")._repr_html_()
        assert "<script" not in html

    def test_a_grey_image_is_shown_too(self) -> None:
        grey = tp.Picture(Image.new("L", (64, 48)), torch.zeros(1, 1, 8, 8), tp.Geometry((64, 48), (8, 8, 40, 40)))
        assert "data:image/jpeg" in grey._repr_html_()

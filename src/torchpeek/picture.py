"""Picture: an image, its tensor, and the way back from the one to the other."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Which part of the original image a model's input shows.

    `box` (left, top, right, bottom) is the rectangle of the original, in its pixels, that fills the input. It reaches
    beyond the image where the input was padded, and a resize that squashes needs nothing more: axes scale on their own.
    """

    size: tuple[int, int]  # (width, height) of the original image
    box: tuple[float, float, float, float]

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Geometry:
        """The input shows the whole image."""
        return cls(size, (0.0, 0.0, float(size[0]), float(size[1])))


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, the tensor that a model is given of it, and how the one lies in the other."""

    image: Image.Image  # RGB, upright
    tensor: Tensor  # (1, C, H, W)
    geometry: Geometry
    name: str = ""
    notes: tuple[str, ...] = ()  # what reading it took: "turned upright (EXIF orientation 6)"

    def __repr__(self) -> str:
        width, height = self.image.size
        return f"Picture({self.name!r}, {width} x {height}, tensor {tuple(self.tensor.shape)})"

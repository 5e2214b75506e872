"""Picture: an image, its tensor, and how positions in the tensor map back to the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """The rectangle of the original image that a model's input shows.

    The two axes scale independently, so a resize that changes the aspect ratio needs no further field.

    Args:
        size: (width, height) of the original image, in pixels.
        box: (left, top, right, bottom) of the rectangle that fills the input, in pixels of the original image. It
            reaches beyond the image where the input is padded.

    Example:
        >>> centre_crop = tp.Geometry(size=(640, 480), box=(80.0, 0.0, 560.0, 480.0))
        >>> centre_crop.box[2] - centre_crop.box[0]
        480.0
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Geometry:
        """Return the geometry of an input that shows the whole image.

        Args:
            size: (width, height) of the image, in pixels.

        Returns:
            The Geometry.

        Example:
            >>> whole = tp.Geometry.whole((640, 480))
            >>> whole.box
            (0.0, 0.0, 640.0, 480.0)
        """
        return cls(size, (0.0, 0.0, float(size[0]), float(size[1])))

    @property
    def inside(self) -> tuple[int, int, int, int]:
        """The pixels of the image that the input shows: left, top, right and bottom, the last two exclusive.

        A pixel counts if its middle lies within the box.
        """
        left, top, right, bottom = self.box
        width, height = self.size
        first = (max(0, math.floor(left + 0.5)), max(0, math.floor(top + 0.5)))
        return *first, min(width, math.ceil(right - 0.5)), min(height, math.ceil(bottom - 0.5))


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, the tensor that a model takes of it, and which part of the image the tensor shows.

    `LoadedModel.read` makes one of a file or a PIL image.

    Args:
        image: PIL image, RGB and upright.
        tensor: (1, C, H, W), the model's input.
        geometry: Which part of the image the input shows.
        name: Name of the file.
        notes: How the file was converted when it was read: "turned upright (EXIF orientation 6)".

    Example:
        >>> from PIL import Image
        >>> tp.Picture(Image.new("RGB", (64, 48)), torch.zeros(1, 3, 24, 32), tp.Geometry.whole((64, 48)), "cat.png")
        Picture('cat.png', 64 x 48, tensor (1, 3, 24, 32))
    """

    image: Image.Image
    tensor: Tensor
    geometry: Geometry
    name: str = ""
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        width, height = self.image.size
        return f"Picture({self.name!r}, {width} x {height}, tensor {tuple(self.tensor.shape)})"

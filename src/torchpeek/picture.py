"""Picture: an image, its tensor, and how positions in the tensor map back to the image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

from PIL import Image, ImageDraw
from torch import Tensor

from torchpeek.argument_types import Allowed, PixelCount
from torchpeek.html import figure, fitted, image_tag, notebook_html
from torchpeek.keywords import checked_class


@checked_class
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

    size: Annotated[tuple[int, int], Allowed("(width, height)")]
    box: Annotated[tuple[float, float, float, float], Allowed("(left, top, right, bottom)")]

    @classmethod
    def whole(cls, size: Annotated[tuple[int, int], Allowed("(width, height)")]) -> Geometry:
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


@checked_class
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
        original_size: (width, height) of the upright picture before it was reduced, in pixels; None if it was not.

    Example:
        >>> from PIL import Image
        >>> tp.Picture(Image.new("RGB", (64, 48)), torch.zeros(1, 3, 24, 32), tp.Geometry.whole((64, 48)), "cat.png")
        Picture('cat.png', 64 x 48, tensor (1, 3, 24, 32))
    """

    image: Annotated[Image.Image, Allowed("a PIL image")]
    tensor: Tensor
    geometry: Geometry
    name: str = ""
    notes: tuple[str, ...] = ()
    original_size: tuple[int, int] | None = None

    @property
    def original_geometry(self) -> Geometry:
        """The geometry in pixels of the original picture, before it was reduced. Masks and boxes are in these pixels.

        Example:
            >>> from PIL import Image
            >>> small, whole = Image.new("RGB", (64, 48)), tp.Geometry.whole((64, 48))
            >>> tp.Picture(small, torch.zeros(1, 3, 24, 32), whole, original_size=(640, 480)).original_geometry.box
            (0.0, 0.0, 640.0, 480.0)
        """
        if self.original_size is None:
            return self.geometry
        across, down = (have / now for have, now in zip(self.original_size, self.geometry.size, strict=True))
        left, top, right, bottom = self.geometry.box
        return Geometry(self.original_size, (left * across, top * down, right * across, bottom * down))

    @property
    def reduction(self) -> str:
        """How the picture was reduced when it was read: "reduced from 640 x 480 to 64 x 48"; empty if it was not.

        Example:
            >>> from PIL import Image
            >>> small, whole = Image.new("RGB", (64, 48)), tp.Geometry.whole((64, 48))
            >>> tp.Picture(small, torch.zeros(1, 3, 24, 32), whole, original_size=(640, 480)).reduction
            'reduced from 640 x 480 to 64 x 48'
        """
        if self.original_size is None:
            return ""
        (width, height), now = self.original_size, self.image.size
        return f"reduced from {width} x {height} to {now[0]} x {now[1]}"

    def preprocessing(self, of_model: str) -> str:
        """Return the preprocessing in words: that of the model, after the reduction if there was one.

        Args:
            of_model: The preprocessing of the model, `str(loaded.preprocess)`.

        Returns:
            The words for `Provenance.preprocess`.

        Example:
            >>> from PIL import Image
            >>> small, whole = Image.new("RGB", (64, 48)), tp.Geometry.whole((64, 48))
            >>> picture = tp.Picture(small, torch.zeros(1, 3, 48, 64), whole, original_size=(640, 480))
            >>> picture.preprocessing("mean 0; std 1")
            'reduced from 640 x 480 to 64 x 48; mean 0; std 1'
        """
        return "; ".join(filter(None, (self.reduction, of_model)))

    def reduced(self, max_size: PixelCount) -> Picture:
        """Reduce the image, but not the tensor, in its proportions.

        Args:
            max_size: Largest width and height, in pixels.

        Returns:
            A Picture with the same tensor, whose geometry is in pixels of the smaller image; the same Picture if it is
            no larger.

        Raises:
            OptionError: When `max_size` is no number of pixels.

        Example:
            >>> from PIL import Image
            >>> photo = Image.new("RGB", (640, 480))
            >>> picture = tp.Picture(photo, torch.zeros(1, 3, 24, 32), tp.Geometry.whole(photo.size), "cat.png")
            >>> picture.reduced(64)
            Picture('cat.png', 64 x 48, tensor (1, 3, 24, 32))
        """
        image = fitted(self.image, max_size)
        if image is self.image:
            return self
        across, down = (now / before for now, before in zip(image.size, self.geometry.size, strict=True))
        left, top, right, bottom = self.geometry.box
        geometry = Geometry(image.size, (left * across, top * down, right * across, bottom * down))
        return replace(self, image=image, geometry=geometry, original_size=self.original_size or self.image.size)

    @notebook_html
    def _repr_html_(self) -> str:
        small, shape = self.reduced(_SHOWN), tuple(self.tensor.shape)
        image, inside = small.image.copy(), small.geometry.inside
        draw_outline(image, inside)
        part = inside != (0, 0, *image.size)
        return figure(
            image_tag(image, self.name),
            self.name,
            f"{self.image.width} x {self.image.height}, tensor {shape} {str(self.tensor.dtype).removeprefix('torch.')}",
            "the line marks what the model sees" if part else "",
            "; ".join(self.notes),
            width=_SHOWN,
        )

    def __repr__(self) -> str:
        width, height = self.image.size
        return f"Picture({self.name!r}, {width} x {height}, tensor {tuple(self.tensor.shape)})"


_SHOWN = 400  # longest side in a notebook, in pixels


def draw_outline(image: Image.Image, inside: tuple[int, int, int, int]) -> None:
    """Draw a line around what the model saw: white, and black outside of it, which is visible on any picture."""
    draw, thick = ImageDraw.Draw(image), max(1, round(max(image.size) / 1000))
    left, top, right, bottom = inside
    for distance, colour in ((2 * thick, "black"), (thick, "white")):
        corners = (left - distance, top - distance, right - 1 + distance, bottom - 1 + distance)
        draw.rectangle(corners, outline=colour, width=thick)

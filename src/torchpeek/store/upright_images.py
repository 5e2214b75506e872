"""Images of any mode, size and orientation, as upright RGB images or masks, in little memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from torchpeek.errors import PictureError
from torchpeek.store.picture_formats import is_format_read, refusal

Numbers: TypeAlias = npt.NDArray[Any]

_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation. From 5 on, width and height change places."""

_RESIZABLE = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")
"""The modes whose numbers can be averaged as they are. A palette's numbers, say, are no amounts of a colour."""


class UprightImage(NamedTuple):
    """An upright RGB image of a file or of another image."""

    image: Image.Image
    conversions: tuple[str, ...]  # how it was converted; not whether it was reduced, which the sizes say
    original_size: tuple[int, int]  # (width, height) in upright position, before it was reduced


def upright_rgb(
    image: Image.Image, max_size: int | None = None, original_size: tuple[int, int] | None = None
) -> UprightImage:
    """Return an image in RGB, turned as its EXIF orientation says, with neither side longer than `max_size`.

    Of an animation it is the first frame. Transparent parts become white. 16 bits and floating point become 8 bits.
    `original_size` is the size of the file, where its decoder has already reduced it.
    """
    if getattr(image, "tile", None) and image.format is not None and not is_format_read(image.format):
        raise PictureError(refusal(image.format))  # it was opened, and would be decoded here
    conversions: list[str] = []
    if (frames := _frames(image)) != 1:
        conversions.append(f"first of {frames} frames")
        image.seek(0)
    image.load()  # a truncated file fails here, not later
    size = original_size or image.size
    orientation = image.getexif().get(_ORIENTATION, 1)
    if image.mode in _RESIZABLE and "transparency" not in image.info:  # that is one colour, which must not be mixed
        image = _resized(image, reduced_size(size, max_size))  # first, so that no other copy is as large as the file
    if orientation in _TURNS:
        size = size if orientation < 5 else size[::-1]
        conversions.append(f"turned upright (EXIF orientation {orientation})")
    if image.mode.startswith(("I", "F")):
        conversions.append(f"brought to 8 bits from mode {image.mode}")
    elif image.has_transparency_data:
        conversions.append("transparency laid on white")
    elif image.mode not in ("RGB", "L", "P"):
        conversions.append(f"converted from {image.mode}")
    rgb = _turned_rgb(image, _TURNS.get(orientation))
    return UprightImage(_resized(rgb, reduced_size(size, max_size)), tuple(conversions), size)


def _turned_rgb(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    """A copy in RGB, turned. Beside it and the image, no more than a strip of rows is in memory in another form."""
    plain = not image.mode.startswith(("I", "F")) and not image.has_transparency_data
    if plain and (turn is None or image.mode == "RGB"):
        return image.convert("RGB") if turn is None else image.transpose(turn)
    convert = _rgb_conversion(image)
    if image.height <= (rows := _rows(image)):
        whole = convert(image)
        return whole if turn is None else whole.transpose(turn)
    swapped = turn is not None and turn not in _TURNED_IN_PLACE
    result = Image.new("RGB", image.size[::-1] if swapped else image.size)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = convert(image.crop((0, top, image.width, bottom)))
        if turn is not None:
            strip = strip.transpose(turn)
        start = image.height - bottom if turn in _FROM_THE_END else top
        result.paste(strip, (start, 0) if swapped else (0, start))
        info = strip.info
    result.info = dict(info)
    return result


def _rgb_conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """How the image, or any strip of it, becomes RGB."""
    if image.mode.startswith(("I", "F")):
        scaled = _eight_bits(image)
        return lambda strip: scaled(strip).convert("RGB")
    if image.has_transparency_data:
        return lambda strip: Image.alpha_composite(
            Image.new("RGBA", strip.size, "white"), strip.convert("RGBA")
        ).convert("RGB")
    return lambda strip: strip.convert("RGB")


_TURNED_IN_PLACE = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM)
"""The turns after which rows are rows still."""

_FROM_THE_END = (
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
)
"""The turns after which the first rows are the last rows, or the last columns."""

_PIXELS_OF_A_STRIP = 2**20


def _rows(image: Image.Image) -> int:
    """The number of rows of a strip."""
    return max(1, _PIXELS_OF_A_STRIP // max(1, image.width))


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in strips of rows, each with its first row, so that copies of it in other forms are small."""
    rows = _rows(image)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _frames(image: Image.Image) -> int | str:
    """The number of frames. "many" where counting them would take longer than reading the picture."""
    if image.format == "TIFF":  # Pillow's own count takes a time that grows with the square of the number
        return _counted(image, _MOST_FRAMES)
    if image.format == "GIF" and _size_of_file(image) > _LARGEST_COUNTED:
        return "many"
    return int(getattr(image, "n_frames", 1))


_MOST_FRAMES = 1000
_LARGEST_COUNTED = 2**24  # bytes, of which four seconds are needed if each frame is as small as possible


def _counted(image: Image.Image, most: int) -> int | str:
    for number in range(1, most):
        try:
            image.seek(number)
        except EOFError:
            return number
    return "many"


def _size_of_file(image: Image.Image) -> int:
    file = getattr(image, "fp", None)
    if file is None:  # the image was read before
        return 0
    position = file.tell()
    size: int = file.seek(0, io.SEEK_END)
    file.seek(position)
    return size


def reduced_size(size: tuple[int, int], max_size: int | None) -> tuple[int, int]:
    """Return the size in the same proportions whose longer side is `max_size`; the size itself if it fits."""
    if max_size is None or max(size) <= max_size:
        return size
    return (max(1, round(size[0] * max_size / max(size))), max(1, round(size[1] * max_size / max(size))))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the image in that size; the same image if it has that size."""
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def not_black(image: Image.Image) -> Numbers:
    """Return the mask (H, W), bool, upright: where the image is not black. See `read_mask`."""
    image.load()  # a truncated file fails here, not later
    transparent = image.has_transparency_data
    # Black is not zero in these modes, or alpha would count.
    as_rgb = image.mode in ("P", "PA", "LA", "RGBA", "CMYK", "YCbCr")
    mask = np.empty((image.height, image.width), bool)
    for top, strip in _strips(image):
        if transparent and np.asarray(strip.convert("RGBA"))[..., 3].min(initial=255) < 255:
            raise PictureError("as a mask it must not be transparent; save it without an alpha channel")
        values = np.asarray(strip.convert("RGB") if as_rgb else strip)
        mask[top : top + strip.height] = values != 0 if values.ndim == 2 else (values != 0).any(2)
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation not in _TURNS:
        return mask
    return np.asarray(Image.fromarray(mask.view(np.uint8)).transpose(_TURNS[orientation])).view(bool)


def _eight_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """How numbers of 16 or 32 bits, or of floating point, become 8 bits. The whole image decides about the scale."""
    ends = [(values.min(), values.max()) for _, strip in _strips(image) if (values := np.asarray(strip)).size]
    lowest = float(np.min([low for low, _ in ends])) if ends else 0.0  # NaN if there is any
    highest = float(np.max([high for _, high in ends])) if ends else 0.0
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and lowest >= 0 and highest <= 65535)

    def scaled(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip, dtype=np.float64)
        if sixteen_bits:
            values = values / 257  # 65535 -> 255
        elif highest > lowest:
            values = (values - lowest) / (highest - lowest) * 255  # there is no standard range
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8), "L")

    return scaled

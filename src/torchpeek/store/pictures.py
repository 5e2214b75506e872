"""Picture files: found, read upright as RGB or as a mask, and written as PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from glob import glob, has_magic
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from torchpeek.errors import PictureError

Numbers: TypeAlias = npt.NDArray[Any]
Read = TypeVar("Read")

_ORIENTATION = 0x0112  # EXIF tag


def read_image(path: str | PathLike[str]) -> tuple[Image.Image, tuple[str, ...]]:
    """Read a file as an upright RGB image, with notes on the conversion. The PictureError names the file."""
    return _read(path, upright_rgb)


def read_mask(path: str | PathLike[str]) -> Numbers:
    """Read a file as a mask (H, W), bool, upright: where the picture is not black. The PictureError names the file.

    With a palette its colours count; with numbers of any depth, whether they are zero.
    """
    return _read(path, _not_black)


def _read(path: str | PathLike[str], convert: Callable[[Image.Image], Read]) -> Read:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.load()  # a truncated file fails here, not later
                return convert(opened)
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{path}: not a picture, or in a format that Pillow cannot read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(
            f"{path}: unpacks to more than {Image.MAX_IMAGE_PIXELS} pixels, which is refused as a decompression bomb. "
            "Next: scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except Exception as error:  # decoders may raise anything for a damaged file
        if isinstance(error, OSError) and error.errno is not None:
            raise PictureError(f"{path}: cannot be opened ({(error.strerror or str(error)).lower()})") from error
        raise PictureError(f"{path}: damaged or truncated ({error})") from error


def upright_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Return an image in RGB, turned as its EXIF orientation says, with notes on the conversion.

    Of an animation it is the first frame. Transparent parts become white. 16 bits and floating point become 8 bits.
    """
    notes: list[str] = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"first of {image.n_frames} frames")  # type: ignore[attr-defined]  # of multi-frame formats only
        image.seek(0)
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation != 1:
        image = ImageOps.exif_transpose(image)
        notes.append(f"turned upright (EXIF orientation {orientation})")
    if image.mode.startswith(("I", "F")):
        notes.append(f"brought to 8 bits from mode {image.mode}")
        return _eight_bits(image).convert("RGB"), tuple(notes)
    if image.has_transparency_data:
        notes.append("transparency laid on white")
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), clear).convert("RGB"), tuple(notes)
    if image.mode not in ("RGB", "L", "P"):
        notes.append(f"converted from {image.mode}")
    return image.convert("RGB"), tuple(notes)


def find_pictures(paths: Iterable[str]) -> list[Path]:
    """Return the files that paths name: files, folders (their pictures, not those of subfolders) and globs, each once.

    A file that is named directly stays in the list, whatever it is, so that an error can name it. Raises PictureError
    for a folder without pictures and for a glob that matches nothing.
    """
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files: dict[Path, None] = {}
    for each in paths:
        path = Path(each)
        if path.is_dir():
            members = sorted(child for child in path.iterdir() if child.suffix.lower() in known and child.is_file())
            if not members:
                raise PictureError(
                    f"{each}: no pictures in this folder; allowed: files that Pillow reads, such as .jpg and .png"
                )
        elif has_magic(each) and not path.exists():
            members = sorted(child for child in map(Path, glob(each, recursive=True)) if child.is_file())
            if not members:
                raise PictureError(f"{each}: matches no file")
        else:
            members = [path]
        files |= dict.fromkeys(members)
    return list(files)


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # three times faster than the default 6, and 15 % larger
    return buffer.getvalue()


def figure_bytes(figure: Any) -> bytes:
    """Return a matplotlib figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    return buffer.getvalue()


def _not_black(image: Image.Image) -> Numbers:
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min(initial=255) < 255:
        raise PictureError("as a mask it must not be transparent; save it without an alpha channel")
    image = ImageOps.exif_transpose(image)
    if image.mode in (
        "P",
        "PA",
        "LA",
        "RGBA",
        "CMYK",
        "YCbCr",
    ):  # black is not zero in these modes, or alpha would count
        image = image.convert("RGB")
    values = np.asarray(image)
    mask: Numbers = values != 0 if values.ndim == 2 else (values != 0).any(2)
    return mask


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I;16") or (
        image.mode == "I" and values.min(initial=0) >= 0 and values.max(initial=0) <= 65535
    ):
        values = values / 257  # 65535 -> 255
    elif values.size and values.max() > values.min():
        values = (values - values.min()) / (values.max() - values.min()) * 255  # there is no standard range
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8), "L")

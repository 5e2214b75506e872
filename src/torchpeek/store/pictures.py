"""Picture files: found, read upright as RGB or as a mask, and written as PNG."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from glob import glob, has_magic
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from torchpeek.errors import PictureError, listed_names

Numbers: TypeAlias = npt.NDArray[Any]
Read = TypeVar("Read")

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


_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
"""What a HEIC or AVIF file says that it is, in its bytes 8 to 12."""

_OTHER_SUFFIXES = {
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".svg"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),  # raw pictures of cameras
}
"""Suffixes of pictures that Pillow reads with another package, or not at all. Such files are named, and not ignored."""


class UprightImage(NamedTuple):
    """An upright RGB image of a file or of another image."""

    image: Image.Image
    conversions: tuple[str, ...]  # how it was converted; not whether it was reduced, which the sizes say
    original_size: tuple[int, int]  # (width, height) in upright position, before it was reduced


def read_image(path: str | PathLike[str] | BinaryIO, max_size: int | None = None) -> UprightImage:
    """Read a file as an upright RGB image, neither side longer than `max_size`. The PictureError names the file.

    A JPEG file is reduced while it is decoded, so that the whole of it is never in memory.
    """

    def convert(opened: Image.Image) -> UprightImage:
        size = opened.size
        if (reduced := reduced_size(size, max_size)) != size:
            opened.draft(None, (2 * reduced[0], 2 * reduced[1]))  # twice as large, because the decoder's filter is poor
        return upright_rgb(opened, max_size, size)

    return _read(path, convert)


def read_mask(path: str | PathLike[str]) -> Numbers:
    """Read a file as a mask (H, W), bool, upright: where the picture is not black. The PictureError names the file.

    With a palette its colours count; with numbers of any depth, whether they are zero.
    """
    return _read(path, _not_black)


def is_picture(file: BinaryIO) -> bool:
    """Whether a file, opened in binary mode, begins like a picture that can be read."""
    try:
        with _opened(file):
            return True
    except Exception:  # decoders may raise anything for what is no picture
        return False


def _opened(path: str | PathLike[str] | BinaryIO) -> Image.Image:
    """The picture, not decoded yet. The packages that read HEIC and AVIF are imported when such a file is met."""
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        if not (_is_heif(_first_bytes(path)) and _plugins()):
            raise
        return Image.open(path)


@cache
def _plugins() -> bool:
    """Register what is installed of the packages that teach Pillow to read HEIC and AVIF. Whether there is any."""
    found = False
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        if hasattr(pillow_heif, "register_avif_opener"):  # in old versions
            pillow_heif.register_avif_opener()
        found = True
    with suppress(ImportError):
        import pillow_avif  # noqa: F401  # registers itself

        found = True
    return found


def _first_bytes(path: str | PathLike[str] | BinaryIO) -> bytes:
    if isinstance(path, (str, PathLike)):
        with open(path, "rb") as file:
            return file.read(16)
    path.seek(0)
    data = path.read(16)
    path.seek(0)
    return data


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def _why_unidentified(path: str | PathLike[str] | BinaryIO) -> str:
    data = _first_bytes(path)
    if not data:
        return "not a picture, because the file is empty"
    if _is_heif(data):
        if data[8:11] == b"avi":
            return "AVIF, which this Pillow cannot read. Next: pip install --upgrade pillow, or pillow-avif-plugin"
        return "HEIC, which Pillow reads with pillow-heif. Next: pip install 'torchpeek[heif]'"
    return "not a picture, or in a format that Pillow cannot read"


def _name_of(path: str | PathLike[str] | BinaryIO) -> str:
    return str(path) if isinstance(path, (str, PathLike)) else str(getattr(path, "name", "picture"))


def _read(path: str | PathLike[str] | BinaryIO, convert: Callable[[Image.Image], Read]) -> Read:
    name = _name_of(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _opened(path) as opened:
                return convert(opened)
    except PictureError as error:
        raise PictureError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name}: {_why_unidentified(path)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(
            f"{name}: unpacks to more than {Image.MAX_IMAGE_PIXELS} pixels, which is refused as a decompression bomb. "
            "A maximum size does not lift this limit, because it counts what the file says. Next: scale it down with "
            "another program, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except Exception as error:  # decoders may raise anything for a damaged file
        if isinstance(path, (str, PathLike)) and os.path.islink(path) and not os.path.exists(path):
            raise PictureError(f"{name}: a broken link, to {os.readlink(path)}") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise PictureError(f"{name}: cannot be opened ({(error.strerror or str(error)).lower()})") from error
        raise PictureError(f"{name}: damaged or truncated ({error})") from error


def upright_rgb(
    image: Image.Image, max_size: int | None = None, original_size: tuple[int, int] | None = None
) -> UprightImage:
    """Return an image in RGB, turned as its EXIF orientation says, with neither side longer than `max_size`.

    Of an animation it is the first frame. Transparent parts become white. 16 bits and floating point become 8 bits.
    `original_size` is the size of the file, where its decoder has already reduced it.
    """
    image.load()  # a truncated file fails here, not later
    conversions: list[str] = []
    if getattr(image, "n_frames", 1) > 1:
        conversions.append(f"first of {image.n_frames} frames")  # type: ignore[attr-defined]  # of multi-frame formats only
        image.seek(0)
    size = original_size or image.size
    orientation = image.getexif().get(_ORIENTATION, 1)
    if image.mode in _RESIZABLE and "transparency" not in image.info:  # that is one colour, which must not be mixed
        image = _resized(image, reduced_size(size, max_size))  # first, so that no other copy is as large as the file
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
        size = size if orientation < 5 else size[::-1]
        conversions.append(f"turned upright (EXIF orientation {orientation})")
    if image.mode.startswith(("I", "F")):
        conversions.append(f"brought to 8 bits from mode {image.mode}")
        rgb = _eight_bits(image).convert("RGB")
    elif image.has_transparency_data:
        conversions.append("transparency laid on white")
        clear = image.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", image.size, "white"), clear).convert("RGB")
    else:
        if image.mode not in ("RGB", "L", "P"):
            conversions.append(f"converted from {image.mode}")
        rgb = image.convert("RGB")
    return UprightImage(_resized(rgb, reduced_size(size, max_size)), tuple(conversions), size)


def reduced_size(size: tuple[int, int], max_size: int | None) -> tuple[int, int]:
    """Return the size in the same proportions whose longer side is `max_size`; the size itself if it fits."""
    if max_size is None or max(size) <= max_size:
        return size
    return (max(1, round(size[0] * max_size / max(size))), max(1, round(size[1] * max_size / max(size))))


def find_pictures(paths: Iterable[str]) -> list[Path]:
    """Return the files that paths name: files, folders (their pictures, not those of subfolders) and globs, each once.

    A picture of a folder is a file with the suffix of a picture, also of one that this Pillow cannot read, and also a
    broken link; `other_files` names the others. A file that is named directly, or by a glob, stays in the list,
    whatever it is, so that an error can name it. Raises PictureError for a folder without pictures, and for a glob
    that matches nothing.
    """
    files: dict[Path, None] = {}
    for each in paths:
        path = Path(each)
        if path.is_dir():
            members = _pictures_in(path)
        elif has_magic(each) and not os.path.lexists(path):
            members = sorted(child for child in map(Path, glob(each, recursive=True)) if not child.is_dir())
            if not members:
                raise PictureError(f"{each}: matches no file")
        else:
            members = [path]
        files |= dict.fromkeys(members)
    return list(files)


def other_files(folder: Path) -> list[str]:
    """Return the names of the files in a folder that `find_pictures` does not take for pictures; not of hidden ones."""
    members, files = _members(folder)
    return [file.name for file in files if file not in members and not _is_hidden(file)]


def _pictures_in(folder: Path) -> list[Path]:
    members, files = _members(folder)
    if not members:
        folders = sum(child.is_dir() for child in folder.iterdir())
        has = f"; it has {len(files)} other files ({listed_names((f.name for f in files), most=3)})" if files else ""
        subfolders = f"; the pictures of its {folders} folders are named by '{folder}/*/*'" if folders else ""
        raise PictureError(
            f"{folder}: no pictures in this folder; allowed: files that Pillow reads, such as .jpg and .png"
            f"{has}{subfolders}"
        )
    return members


def _members(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder, and all of its files, with broken links."""
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise PictureError(f"{folder}: the folder cannot be read ({(error.strerror or str(error)).lower()})") from error
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN} | _OTHER_SUFFIXES
    files = [child for child in children if child.is_file() or (child.is_symlink() and not child.exists())]
    return [file for file in files if file.suffix.lower() in known or (not file.suffix and file.is_symlink())], files


def _is_hidden(file: Path) -> bool:
    return file.name.startswith(".") or file.name.lower() in ("thumbs.db", "desktop.ini")


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # three times faster than the default 6, and 15 % larger
    return buffer.getvalue()


def figure_bytes(figure: Any, dpi: int = 150) -> bytes:
    """Return a matplotlib figure as the bytes of a PNG file, with `dpi` pixels for each inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the image in that size; the same image if it has that size."""
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _not_black(image: Image.Image) -> Numbers:
    image.load()  # a truncated file fails here, not later
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

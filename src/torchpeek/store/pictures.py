"""Picture files: found, read upright as RGB or as a mask, and written as PNG."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from glob import glob, has_magic
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from torchpeek.errors import PictureError, listed_names
from torchpeek.store.regular_files import open_regular
from torchpeek.system_errors import ignored, is_from_outside, is_of_system

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


_COMMON = ("BMP", "DIB", "GIF", "JPEG", "PPM", "PNG")
"""The formats whose decoders Pillow imports at once."""

_FORMATS = (
    *_COMMON,
    *("AVIF", "BLP", "CUR", "DCX", "DDS", "FITS", "FLI", "FPX", "FTEX", "GBR", "ICNS", "ICO", "IM", "IMT", "JPEG2000"),
    *("MCIDAS", "MIC", "MSP", "PCD", "PCX", "PIXAR", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP"),
    *("XBM", "XPM", "XVTHUMB"),
)
"""The formats of Pillow that are read: their decoders run no program and open no other file.

EPS runs Ghostscript; IPTC opens what it contains in any format; WMF draws with Windows; and BUFR, GRIB, HDF5 and MPEG
are only recognised.
"""

_DOCUMENTS = {"PDF": b"%PDF", "EPS": b"%!", "SVG": b"<svg"}
"""The first bytes of documents, which are not decoded but drawn. Pillow takes only some of them for pictures."""

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
    except Exception as error:  # decoders may raise anything for what is no picture
        if is_from_outside(error):
            raise
        return False


def _opened(file: BinaryIO) -> Image.Image:
    """The picture, not decoded yet. The packages that read HEIC and AVIF are imported when such a file is met."""
    file.seek(0)
    Image.preinit()
    with suppress(UnidentifiedImageError):
        return Image.open(file, formats=_COMMON)
    Image.init()
    try:
        return Image.open(file, formats=_further_formats())
    except UnidentifiedImageError:
        if not (_is_heif(_first_bytes(file)) and _plugins()):
            raise
        return Image.open(file, formats=_further_formats())


def _further_formats() -> tuple[str, ...]:
    """The formats that are read, as far as a decoder is installed, in the order in which Pillow tries them."""
    return tuple(format_ for format_ in Image.ID if _is_read(format_) and format_ not in _COMMON)


def _is_read(format_: str) -> bool:
    """Whether a format is read: one of Pillow's that is harmless, or one of another package that the user imported."""
    if format_ not in Image.OPEN:  # Pillow makes an MPO of a JPEG
        return True
    factory, _ = Image.OPEN[format_]
    return format_ in _FORMATS or not factory.__module__.startswith("PIL.")


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


def _first_bytes(file: BinaryIO) -> bytes:
    file.seek(0)
    data = file.read(16)
    file.seek(0)
    return data


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def _why_unidentified(file: BinaryIO) -> str:
    data = _first_bytes(file)
    if not data:
        return "not a picture, because the file is empty"
    if _is_heif(data):
        if data[8:11] == b"avi":
            return "AVIF, which this Pillow cannot read. Next: pip install --upgrade pillow, or pillow-avif-plugin"
        return "HEIC, which Pillow reads with pillow-heif. Next: pip install 'torchpeek[heif]'"
    if format_ := _refused_format(data):
        return _refusal(format_)
    return "not a picture, or in a format that Pillow cannot read"


def _refused_format(data: bytes) -> str:
    """The name of a format that is recognised by its first bytes, but not read; empty if there is none."""
    for format_, (_, accept) in Image.OPEN.items():
        if not _is_read(format_) and accept is not None and accept(data):
            return format_
    return next((name for name, start in _DOCUMENTS.items() if data.lstrip().startswith(start)), "")


def _refusal(format_: str) -> str:
    return (
        f"{format_}, which is not read, because no decoder reads it without another program or file. Next: convert it "
        "to PNG with a program that you trust"
    )


def _name_of(path: str | PathLike[str] | BinaryIO) -> str:
    return str(path) if isinstance(path, (str, PathLike)) else str(getattr(path, "name", "picture"))


def _read(path: str | PathLike[str] | BinaryIO, convert: Callable[[Image.Image], Read]) -> Read:
    if isinstance(path, (str, PathLike)):
        with open_regular(path, PictureError) as file:
            return _decoded(file, str(path), convert)
    return _decoded(path, _name_of(path), convert)


def _decoded(file: BinaryIO, name: str, convert: Callable[[Image.Image], Read]) -> Read:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _opened(file) as opened:
                return convert(opened)
    except PictureError as error:
        if is_from_outside(error):
            raise
        raise PictureError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name}: {_why_unidentified(file)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(
            f"{name}: unpacks to more than {Image.MAX_IMAGE_PIXELS} pixels, which is refused as a decompression bomb. "
            "A maximum size does not lift this limit, because it counts what the file says. Next: scale it down with "
            "another program, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except Exception as error:  # decoders may raise anything for a damaged file
        if is_from_outside(error):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise PictureError(f"{name}: cannot be read ({(error.strerror or str(error)).lower()})") from error
        raise PictureError(f"{name}: damaged or truncated ({error})") from error


def upright_rgb(
    image: Image.Image, max_size: int | None = None, original_size: tuple[int, int] | None = None
) -> UprightImage:
    """Return an image in RGB, turned as its EXIF orientation says, with neither side longer than `max_size`.

    Of an animation it is the first frame. Transparent parts become white. 16 bits and floating point become 8 bits.
    `original_size` is the size of the file, where its decoder has already reduced it.
    """
    if getattr(image, "tile", None) and image.format is not None and not _is_read(image.format):
        raise PictureError(_refusal(image.format))  # it was opened, and would be decoded here
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


def find_pictures(paths: Iterable[str]) -> list[Path]:
    """Return the files that paths name: files, folders (their pictures, not those of subfolders) and globs, each once.

    A picture of a folder is a file with the suffix of a picture, also of one that this Pillow cannot read, and also a
    broken link, a FIFO or a device; `other_files` names the others. A file that is named directly, or by a glob, stays
    in the list, whatever it is, so that an error can name it. Raises PictureError for a folder without pictures, and
    for a glob that matches nothing.
    """
    files: dict[Path, None] = {}
    for each in paths:
        path = Path(each)
        if _is_folder(path):
            members = _pictures_in(path)
        elif has_magic(each) and not os.path.lexists(path):
            members = sorted(child for child in map(Path, glob(each, recursive=True)) if not _is_folder(child))
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
        folders = sum(_is_folder(child) for child in folder.iterdir())
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
        if not is_of_system(error):
            raise
        raise PictureError(f"{folder}: the folder cannot be read ({(error.strerror or str(error)).lower()})") from error
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN} | _OTHER_SUFFIXES
    files = [child for child in children if not _is_folder(child)]
    return [file for file in files if file.suffix.lower() in known or (not file.suffix and file.is_symlink())], files


def _is_folder(path: Path) -> bool:
    with ignored():  # without permission: a file, so that an error names it
        return path.is_dir()
    return False


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

"""The formats of picture files: which are read, which are refused, and what is said of a file in none of them."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

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


def opened_picture(file: BinaryIO) -> Image.Image:
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
    return tuple(format_ for format_ in Image.ID if is_format_read(format_) and format_ not in _COMMON)


def is_format_read(format_: str) -> bool:
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


def why_unidentified(file: BinaryIO) -> str:
    """The reason for the error, with what to do next, where no decoder takes a file."""
    data = _first_bytes(file)
    if not data:
        return "not a picture, because the file is empty"
    if _is_heif(data):
        if data[8:11] == b"avi":
            return "AVIF, which this Pillow cannot read. Next: pip install --upgrade pillow, or pillow-avif-plugin"
        return "HEIC, which Pillow reads with pillow-heif. Next: pip install 'torchpeek[heif]'"
    if format_ := _refused_format(data):
        return refusal(format_)
    return "not a picture, or in a format that Pillow cannot read"


def _refused_format(data: bytes) -> str:
    """The name of a format that is recognised by its first bytes, but not read; empty if there is none."""
    for format_, (_, accept) in Image.OPEN.items():
        if not is_format_read(format_) and accept is not None and accept(data):
            return format_
    return next((name for name, start in _DOCUMENTS.items() if data.lstrip().startswith(start)), "")


def refusal(format_: str) -> str:
    """The reason for the error, with what to do next, where a format is not read."""
    return (
        f"{format_}, which is not read, because no decoder reads it without another program or file. Next: convert it "
        "to PNG with a program that you trust"
    )

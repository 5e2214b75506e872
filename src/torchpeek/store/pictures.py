"""Picture files: found, read upright as RGB or as a mask, and written as PNG."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable
from glob import glob, has_magic
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from PIL import Image, UnidentifiedImageError

from torchpeek.errors import PictureError, listed_names
from torchpeek.store.picture_formats import opened_picture, why_unidentified
from torchpeek.store.regular_files import open_regular
from torchpeek.store.upright_images import Numbers, UprightImage, not_black, reduced_size, upright_rgb
from torchpeek.system_errors import ignored, is_from_outside, is_of_system

Read = TypeVar("Read")

_OTHER_SUFFIXES = {
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".svg"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),  # raw pictures of cameras
}
"""Suffixes of pictures that Pillow reads with another package, or not at all. Such files are named, and not ignored."""


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


def read_mask(path: str | PathLike[str] | BinaryIO) -> Numbers:
    """Read a file as a mask (H, W), bool, upright: where the picture is not black. The PictureError names the file.

    With a palette its colours count; with numbers of any depth, whether they are zero.
    """
    return _read(path, not_black)


def is_picture(file: BinaryIO) -> bool:
    """Whether a file, opened in binary mode, begins like a picture that can be read."""
    try:
        with opened_picture(file):
            return True
    except Exception as error:  # decoders may raise anything for what is no picture
        if is_from_outside(error):
            raise
        return False


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
            with opened_picture(file) as opened:
                return convert(opened)
    except PictureError as error:
        if is_from_outside(error):
            raise
        raise PictureError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name}: {why_unidentified(file)}") from error
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
    known = _picture_suffixes()
    files = [child for child in children if not _is_folder(child)]
    return [file for file in files if file.suffix.lower() in known or (not file.suffix and file.is_symlink())], files


def _picture_suffixes() -> set[str]:
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN} | _OTHER_SUFFIXES


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture: it has the suffix of one."""
    return os.path.splitext(name)[1].lower() in _picture_suffixes()


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

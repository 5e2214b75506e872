"""A folder of pictures, whose sub-folders may be classes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchpeek.errors import InputError, PictureError
from torchpeek.runs.labels import ClassFolders
from torchpeek.runs.samples import Sample
from torchpeek.store.pictures import is_picture_name
from torchpeek.store.regular_files import read_regular
from torchpeek.system_errors import is_of_system

_RAW = "bytes:"  # before the hexadecimal digits of a path that is no UTF-8


class FolderSource:
    """The pictures of a folder and of its sub-folders, sorted by name within each folder.

    Args:
        root: The folder.
        classes: Which class the name of a sub-folder stands for; None where folders are no classes.
    """

    def __init__(self, root: Path, classes: ClassFolders | None = None) -> None:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; give a folder of pictures")
        self.root, self.classes = root, classes

    @property
    def description(self) -> Mapping[str, Any]:
        """What run.json says of it."""
        return {"kind": "folder", "path": str(self.root)}

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        return f"the folder {self.root}"

    @property
    def labels_from(self) -> str:
        """How the folders were matched with classes."""
        return "" if self.classes is None else self.classes.words

    def samples(self) -> Iterator[Sample]:
        """The samples, folder by folder."""
        for path in _walk(self.root, ()):
            relative = path.relative_to(self.root).as_posix()
            label, label_name = (None, None) if self.classes is None else self.classes.of(relative)
            key = relative.encode(errors="backslashreplace").decode()
            location = "" if key == relative else _RAW + os.fsencode(relative).hex()
            yield Sample(key, location, label, label_name)

    def read(self, sample: Sample) -> bytes:
        """The bytes of the file."""
        return read_regular(self.path(sample), PictureError)

    def read_mask(self, sample: Sample) -> bytes | None:
        """The bytes of the mask's file."""
        return None if sample.mask is None else read_regular(self.root / sample.mask, PictureError)

    def path(self, sample: Sample) -> Path:
        """The file of a sample. Raises PictureError where it would lie outside of the folder."""
        name = sample.location or sample.key
        if name.startswith(_RAW):
            name = os.fsdecode(bytes.fromhex(name.removeprefix(_RAW)))
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise PictureError(f"{sample.key}: is no path inside of the folder {self.root}")
        return self.root / path


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """The picture files below a folder. A link to a folder above it is not followed again."""
    try:
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if not is_of_system(error):
            raise
        raise PictureError(f"{folder}: the folder cannot be read ({(error.strerror or str(error)).lower()})") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), (*above, identity))
        elif is_picture_name(entry.name):
            yield Path(entry.path)


def folders_of(root: Path) -> list[str]:
    """The names of the folders right below this one that are not hidden."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))

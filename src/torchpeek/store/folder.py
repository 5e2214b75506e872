"""Output folders: checked before the work starts, and their files written whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from os import PathLike
from pathlib import Path

from torchpeek.errors import FolderError


@dataclass(frozen=True)
class OutputFolder:
    """A folder for results."""

    path: Path
    created: tuple[Path, ...] = ()  # the folder and its parents, as far as they did not exist before

    @classmethod
    def prepared(
        cls,
        path: str | PathLike[str],
        *,
        overwrite: bool = False,
        advice: str = "--overwrite to replace what has the same name, or another --out",
    ) -> OutputFolder:
        """Make the folder if it does not exist. Raises FolderError if it cannot be written or is not empty.

        `advice` is the next step in the error for a folder that is not empty.
        """
        folder = Path(path)
        if os.path.exists(folder) and not folder.is_dir():
            raise FolderError(f"output folder {str(folder)!r} is a file; choose another")
        created = _missing(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            _remove_empty(created)
            raise FolderError(
                f"output folder {str(folder)!r} cannot be written ({error.strerror}); choose another"
            ) from error
        if not overwrite and (count := sum(1 for _ in folder.iterdir())):
            raise FolderError(
                f"output folder {str(folder)!r} is not empty ({count} entries); allowed: a new or empty one. Next: "
                f"{advice}"
            )
        return cls(folder, created)

    def write(self, name: str, data: bytes) -> Path:
        """Write a file of this folder, whole or not at all, and return its path.

        Raises FolderError where it cannot be written, such as on a full disk.
        """
        path = self.path / name
        created = _missing(path.parent)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
        except BaseException as error:
            _remove_empty(created)
            if isinstance(error, OSError):
                raise FolderError(f"{path}: cannot be written ({(error.strerror or str(error)).lower()})") from error
            raise
        return path

    def abandon(self) -> None:
        """Remove the folder and the parents that were made for it, as far as they are empty."""
        _remove_empty(self.created)


def write_whole(path: Path, data: bytes) -> None:
    """Write next to `path` and rename: no reader sees half a file, and an interrupt leaves none behind."""
    if not path.parent.is_dir():
        raise FolderError(f"no folder {str(path.parent)!r} to write {path.name} in; make it first")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".torchpeek-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes the file private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def file_stem(text: str) -> str:
    """Turn text into a part of a file name: `Egyptian cat` -> `egyptian-cat`. Letters of every script stay."""
    # A name has at most 255 bytes, and a letter up to four.
    return re.sub(r"[^\w+.]+", "-", text.lower())[:50].strip("-.") or "unnamed"


def _missing(folder: Path) -> tuple[Path, ...]:
    """Return the folder and its parents that do not exist, innermost first."""
    return tuple(takewhile(lambda each: not os.path.exists(each), (folder, *folder.parents)))


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # it is not empty
            return


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

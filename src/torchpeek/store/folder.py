"""Output folders: checked before the work starts, and their files written whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from os import PathLike
from pathlib import Path

from torchpeek.errors import FolderError
from torchpeek.interrupts import uninterrupted
from torchpeek.store.directory import Directory


@dataclass(frozen=True)
class OutputFolder:
    """A folder for results."""

    path: Path
    created: tuple[Path, ...] = ()  # the folder and its parents, as far as they did not exist before
    directory: Directory | None = None  # None opens the folder of this path
    is_followed: bool = False  # whether files are also written after the folder was moved
    _written: list[str] | None = None  # the names of the files of a part

    def __post_init__(self) -> None:
        if self.directory is None:
            object.__setattr__(self, "directory", Directory(self.path))

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
            directory = Directory(folder)
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
        return cls(folder, created, directory)

    def write(self, name: str, data: bytes) -> Path:
        """Write a file of this folder, whole or not at all, and return its path.

        A link of this name, or of the name of its subfolder, is replaced; what it leads to is not touched.

        Raises FolderError where it cannot be written, such as on a full disk, or the folder was moved or removed.
        """
        path = self.path / name
        try:
            with uninterrupted():
                if not self.is_followed:
                    self._directory.check()
                with self._directory.parent_of(name) as parent:
                    write_whole(path, data, parent)
                if self._written is not None:
                    self._written.append(name)
        except FolderError:
            raise
        except OSError as error:
            raise FolderError(f"{path}: cannot be written ({(error.strerror or str(error)).lower()})") from error
        return path

    @contextmanager
    def part(self) -> Iterator[OutputFolder]:
        """A folder for files that belong together: if the block fails, those written to it are deleted."""
        written: list[str] = []
        try:
            yield replace(self, _written=written)
        except BaseException:
            with uninterrupted():
                for name in written:
                    self.delete(name)
            raise

    def followed(self) -> OutputFolder:
        """This folder for the last files of a command: they are also written if the folder was moved."""
        return replace(self, is_followed=True)

    def read(self, name: str) -> bytes | None:
        """The contents of a file in this folder. None where there is no regular file of this name."""
        return self._directory.read(name)

    def delete(self, name: str) -> None:
        """Delete a file of this folder, if it exists and can be deleted. Of a link, the link is deleted."""
        with suppress(OSError):
            self._directory.delete(name)

    def abandon(self) -> None:
        """Remove the folder and the parents that were made for it, as far as they are empty."""
        with suppress(OSError):  # it is no longer this folder
            self._directory.check()
            _remove_empty(self.created)

    @property
    def place(self) -> Path | None:
        """Where the folder is now, if it was moved. None where it was removed, or the system does not tell."""
        return self._directory.place()

    @property
    def _directory(self) -> Directory:
        assert self.directory is not None
        return self.directory


def write_whole(path: Path, data: bytes, parent: int | None = None) -> None:
    """Write next to `path` and rename: no reader sees half a file, and an interrupt leaves none behind.

    Args:
        path: The file. If it is a link, the link is replaced.
        data: The contents.
        parent: The number of the open folder that the file stands in; None to find it by its path.
    """
    if parent is None and not path.parent.is_dir():
        raise FolderError(f"no folder {str(path.parent)!r} to write {path.name} in; make it first")
    target = path if parent is None else Path(path.name)
    temporary = target.with_name(f".torchpeek-{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    with uninterrupted():
        handle = os.open(temporary, flags, 0o666, dir_fd=parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, target, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
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

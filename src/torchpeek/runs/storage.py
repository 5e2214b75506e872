"""Where the files of a run are: a folder of this machine. A name is a path with slashes, relative to the run."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from torchpeek.errors import FolderError, FormatError
from torchpeek.interrupts import uninterrupted
from torchpeek.store.regular_files import open_regular, read_regular
from torchpeek.system_errors import ignored, is_of_system

TEMPORARY = ".torchpeek-"
"""What is written aside has a name that begins so."""


class Storage(Protocol):
    """The files of a run. Several processes may write to it at once."""

    @property
    def place(self) -> str:
        """The folder or URL."""
        ...

    def url(self, name: str) -> str:
        """How DuckDB finds a file."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def read(self, name: str, most: int | None = None) -> bytes:
        """The contents of a file. Raises FormatError where there is none, or it has more than `most` bytes."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a file to read parts of it. Raises FormatError where there is none."""
        ...

    def put_once(self, name: str, data: bytes) -> bool:
        """Write a file whole, unless it exists. Returns whether this call has written it."""
        ...

    def put_file_once(self, name: str, file: Path) -> bool:
        """The same with the contents of a file of this machine."""
        ...

    def put_folder(self, name: str, files: Mapping[str, bytes], mark: str) -> None:
        """Write the files of a folder. `mark` is the one whose presence says that the folder is complete.

        Where the folder is complete already, it stays. Raises FolderError where it cannot be written.
        """
        ...

    def remove_folder(self, name: str, mark: str) -> None:
        """Remove a folder, its mark first, so that it is never complete with files missing."""
        ...

    def folders(self, name: str) -> list[str]:
        """The names of the folders in a folder, sorted. Empty where there is none."""
        ...

    def files(self, name: str) -> list[str]:
        """The names of the files in a folder, sorted. Empty where there is none."""
        ...

    def remove_unfinished(self, older_than: float) -> None:
        """Remove what killed processes have left, if it was not touched for so many seconds."""
        ...


class FolderStorage:
    """A run in a folder of this machine, or of a file system that several machines share.

    Args:
        folder: The folder, which need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.folder)

    def url(self, name: str) -> str:
        """The path."""
        return str(self.folder / name)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.folder / name).is_file()

    def read(self, name: str, most: int | None = None) -> bytes:
        """The contents of a file."""
        return read_regular(self.folder / name, FormatError, most)

    def open(self, name: str) -> BinaryIO:
        """Open a file."""
        return open_regular(self.folder / name)

    def put_once(self, name: str, data: bytes) -> bool:
        """Write aside, force to the disk, and link: nobody sees half of a file."""
        return self._put_once(name, partial(_write_synced, data=data))

    def put_file_once(self, name: str, file: Path) -> bool:
        """Copy aside, force to the disk, and link."""
        return self._put_once(name, partial(_copy_synced, file))

    def _put_once(self, name: str, write: Callable[[Path], object]) -> bool:
        aside = self._aside(name)
        try:
            write(aside)
            return self._linked(aside, name)
        except OSError as error:
            if not is_of_system(error):
                raise
            raise self._not_written(name, error) from error
        finally:
            aside.unlink(missing_ok=True)

    def _aside(self, name: str) -> Path:
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not is_of_system(error):
                raise
            raise self._not_written(name, error) from error
        return path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")

    def _linked(self, aside: Path, name: str) -> bool:
        try:
            os.link(aside, self.folder / name)
        except FileExistsError:
            return False
        _sync_folder(aside.parent)
        return True

    def put_folder(self, name: str, files: Mapping[str, bytes], mark: str) -> None:
        """Write aside, force to the disk, and rename. Killed at any moment, it leaves a whole folder or none."""
        target = self.folder / name
        aside = self._aside(name)
        try:
            try:
                aside.mkdir()
                for each in sorted(files, key=lambda file: file == mark):
                    _write_synced(aside / each, files[each])
                _sync_folder(aside)
                _renamed(aside, target, mark)
                _sync_folder(target.parent)
            except BaseException:
                with uninterrupted():
                    shutil.rmtree(aside, ignore_errors=True)
                raise
        except OSError as error:
            if not is_of_system(error):
                raise
            raise self._not_written(name, error) from error

    def _not_written(self, name: str, error: OSError) -> FolderError:
        return FolderError(
            f"{self.folder / name}: cannot be written ({(error.strerror or str(error)).lower()}). Next: make room, "
            "or get the right to write, and run the same command again; it goes on where it stopped"
        )

    def remove_folder(self, name: str, mark: str) -> None:
        """Remove a folder, its mark first."""
        with uninterrupted():
            (self.folder / name / mark).unlink(missing_ok=True)
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def folders(self, name: str) -> list[str]:
        """The names of the folders in a folder; links are left out."""
        return self._entries(name, folders=True)

    def files(self, name: str) -> list[str]:
        """The names of the regular files in a folder; links are left out."""
        return self._entries(name, folders=False)

    def _entries(self, name: str, *, folders: bool) -> list[str]:
        try:
            with os.scandir(self.folder / name) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if (entry.is_dir(follow_symlinks=False) if folders else entry.is_file(follow_symlinks=False))
                    and not entry.name.startswith(".")
                )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove_unfinished(self, older_than: float) -> None:
        """Remove what has a temporary name, in the folder, in that of the groups and in those of the shards."""
        for pattern in (f"{TEMPORARY}*", f"groups/{TEMPORARY}*", f"parts/*/{TEMPORARY}*"):
            for aside in self.folder.glob(pattern):
                with ignored():
                    if time.time() - aside.stat().st_mtime > older_than:
                        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _copy_synced(file: Path, path: Path) -> None:
    shutil.copyfile(file, path)
    with open(path, "rb") as copy:
        os.fsync(copy.fileno())


def _sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the system can."""
    with ignored():
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _renamed(aside: Path, target: Path, mark: str) -> None:
    """Rename a finished folder. One that is complete already stays; one without a mark is removed."""
    for _ in range(3):
        try:
            os.rename(aside, target)
            return
        except OSError as error:
            if not is_of_system(error) or not target.exists():
                raise
        if (target / mark).is_file():
            shutil.rmtree(aside, ignore_errors=True)
            return
        shutil.rmtree(target, ignore_errors=True)  # a kill has cut its removal short
    raise FolderError(f"{target}: another process writes to it again and again")

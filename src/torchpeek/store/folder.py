"""Output folders: checked before the work starts, and their files written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from os import PathLike
from pathlib import Path

from torchpeek.errors import FolderError
from torchpeek.interrupts import uninterrupted
from torchpeek.store.directory import Directory
from torchpeek.store.folder_lock import (
    PREFIX,
    FolderHeld,
    FolderLock,
    lock_folder,
    remove_stale_files,
    temporary_prefix,
)
from torchpeek.system_errors import ignored, is_of_system


@dataclass(frozen=True)
class OutputFolder:
    """A folder for results, which no other writer has while this object, or its lock, lives."""

    path: Path
    created: tuple[Path, ...]  # the folder and its parents, as far as they did not exist before
    lock: FolderLock
    directory: Directory
    is_followed: bool = False  # whether files are also written after the folder was moved
    _written: list[str] | None = None  # the names of the files of a part
    _names: dict[str, None] = field(default_factory=dict)  # of all files that were written, and not deleted

    @classmethod
    def prepared(
        cls,
        path: str | PathLike[str],
        *,
        overwrite: bool = False,
        advice: str = "--overwrite to replace what has the same name, or another --out",
    ) -> OutputFolder:
        """Make the folder if it does not exist, and lock it.

        Raises FolderError if it cannot be written, is not empty, or another writer has it. `advice` is the next step
        in the error for a folder that is not empty.
        """
        folder, created, lock, holder = Path(path), tuple[Path, ...](), None, ""
        try:
            created, lock = _made_and_locked(folder)
        except FolderHeld as held:
            holder = str(held)
        try:
            if not overwrite and (count := _result_count(folder)):
                writing = f", and {holder} is writing to it" if holder else ""
                raise FolderError(
                    f"output folder {str(folder)!r} is not empty ({count} entries{writing}); allowed: a new or empty "
                    f"one. Next: {advice}"
                )
            if lock is None:
                raise FolderError(
                    f"output folder {str(folder)!r} is in use: {holder} is writing to it, and the files of two writers "
                    "would replace each other. Next: wait for its end, or choose another folder"
                )
            directory = Directory(folder)
            if not lock.is_of(folder):
                raise FileNotFoundError(errno.ENOENT, "another process has replaced it")
        except BaseException as error:
            if lock is not None:
                lock.release()
            if isinstance(error, OSError) and is_of_system(error):
                raise FolderError(
                    f"output folder {str(folder)!r} cannot be opened ({_reason(error)}); choose another"
                ) from error
            raise
        remove_stale_files(folder)
        return cls(folder, created, lock, directory)

    @classmethod
    def reopened(cls, path: str | PathLike[str]) -> OutputFolder:
        """Lock a folder that exists, to go on writing to it. Raises FolderError as `prepared` does."""
        if not Path(path).is_dir():
            raise FolderError(f"{path}: no such folder; it was moved or deleted")
        return cls.prepared(path, overwrite=True)

    def write(self, name: str, data: bytes) -> Path:
        """Write a file of this folder, whole or not at all, and return its path.

        A link of this name, or of the name of its subfolder, is replaced; what it leads to is not touched.

        Raises FolderError where it cannot be written, such as on a full disk, and where the folder was moved, removed
        or replaced.
        """
        path = self.path / name
        if not self.held:
            raise FolderError(
                f"{path}: cannot be written, because this process does not have the folder; another one, such as that "
                "which forked this one, may be writing to it. Next: choose another folder for each process"
            )
        try:
            with uninterrupted():
                if not self.is_followed:
                    self.directory.check()
                with self.directory.parent_of(name) as parent:
                    write_whole(path, data, parent)
                self._names[name] = None
                if self._written is not None:
                    self._written.append(name)
        except OSError as error:
            if not is_of_system(error):
                raise
            raise FolderError(_not_written(path, error, data)) from error
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

    def check_files(self) -> None:
        """Raise FolderError if a file that was written is gone, as where somebody has removed a subfolder meanwhile."""
        missing = [name for name in self._names if not os.path.lexists(self.path / name)]
        if missing:
            raise FolderError(
                f"output folder {str(self.path)!r}: of {len(self._names)} files that were written, {len(missing)} are "
                f"gone, such as {missing[0]!r}: something has removed them meanwhile. Next: run again"
            )

    def followed(self) -> OutputFolder:
        """This folder for the last files of a command: they are also written if the folder was moved."""
        return replace(self, is_followed=True)

    def read(self, name: str) -> bytes | None:
        """The contents of a file in this folder. None where there is no regular file of this name."""
        return self.directory.read(name)

    def delete(self, name: str) -> None:
        """Delete a file of this folder, if it exists and can be deleted. Of a link, the link is deleted."""
        self._names.pop(name, None)
        with ignored():
            self.directory.delete(name)

    @property
    def held(self) -> bool:
        """Whether this process may write to it."""
        return self.lock.held

    @property
    def place(self) -> Path | None:
        """Where the folder is now, if it was moved. None where it was removed, or the system does not tell."""
        return self.directory.place()

    def abandon(self) -> None:
        """Remove the folder and the parents that were made for it, as far as they are empty, and unlock it."""
        self.lock.remove_file()
        with suppress(FolderError), ignored():  # it is no longer this folder
            self.directory.check()
            _remove_empty(self.created)  # before others can have it
        self.close()

    def close(self) -> None:
        """Let others write to the folder."""
        self.lock.release()


def check_folder(path: str | PathLike[str]) -> None:
    """Raise FolderError unless files can be written to the folder, which need not exist yet. Nothing is left there.

    For folders to which several writers may write at once, as to that of TensorBoard.
    """
    _remove_empty(_made(Path(path)))


def write_whole(path: Path, data: bytes, parent: int | None = None) -> None:
    """Write next to `path` and rename: no reader sees half a file, and an interrupt leaves none behind.

    Args:
        path: The file. If it is a link, the link is replaced.
        data: The contents.
        parent: The number of the open folder that the file stands in; None to find it by its path.

    Raises:
        FolderError: When it cannot be written.
    """
    if parent is None and not os.path.isdir(path.parent):
        raise FolderError(f"no folder {str(path.parent)!r} to write {path.name} in; make it first")
    if not path.name:
        raise FolderError(f"{str(path)!r} is no name of a file; give one")
    target = path if parent is None else Path(path.name)
    temporary = target.with_name(f"{temporary_prefix()}{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        with uninterrupted():
            handle = os.open(temporary, flags, 0o666, dir_fd=parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.replace(temporary, target, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with ignored():
                    os.unlink(temporary, dir_fd=parent)
                raise
    except OSError as error:
        if not is_of_system(error):
            raise
        raise FolderError(_not_written(path, error, data)) from error


def _not_written(path: Path, error: OSError, data: bytes) -> str:
    text = f"{path}: cannot be written ({_reason(error)})"
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):  # Windows has no quotas
        free = ""
        with ignored():
            free = f", and {shutil.disk_usage(path.parent).free:,} are free"
        text += f": it has {len(data):,} bytes{free}. Next: make room, or choose a folder on another disk"
    return text


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def file_stem(text: str) -> str:
    """Turn text into a part of a file name: `Egyptian cat` -> `egyptian-cat`. Letters of every script stay."""
    # A name has at most 255 bytes, and a letter up to four.
    return re.sub(r"[^\w+.]+", "-", text.lower())[:50].strip("-.") or "unnamed"


def _result_count(folder: Path) -> int:
    """The number of entries that are no temporary files; 0 for a folder that its writer has removed meanwhile."""
    try:
        return sum(1 for each in folder.iterdir() if not each.name.startswith(PREFIX))
    except FileNotFoundError:
        return 0


def _made(folder: Path) -> tuple[Path, ...]:
    """Make a folder, and check that files can be written to it. Returns what was made. Raises FolderError."""
    if os.path.exists(folder) and not folder.is_dir():
        raise FolderError(f"output folder {str(folder)!r} is a file; choose another")
    created = _missing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _remove_empty(created)
        if not is_of_system(error):
            raise
        raise FolderError(
            f"output folder {str(folder)!r} cannot be written ({_reason(error)}); choose another"
        ) from error
    return created


def _made_and_locked(folder: Path) -> tuple[tuple[Path, ...], FolderLock]:
    """Make and lock a folder. Returns what was made, and the lock. Raises FolderError and FolderHeld."""
    created: tuple[Path, ...] = ()
    for _ in range(100):  # a writer that fails removes its empty folder, perhaps between these two steps
        created = _made(folder) or created
        try:
            return created, lock_folder(folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            _remove_empty(created)
            if not is_of_system(error):
                raise
            raise FolderError(
                f"output folder {str(folder)!r} cannot be locked ({_reason(error)}); choose another"
            ) from error
    raise FolderError(f"output folder {str(folder)!r} is removed again and again; choose another")


def _missing(folder: Path) -> tuple[Path, ...]:
    """Return the folder and its parents that do not exist, innermost first."""
    return tuple(takewhile(lambda each: not os.path.exists(each), (folder, *folder.parents)))


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:  # it is not empty
            if not is_of_system(error):
                raise
            return

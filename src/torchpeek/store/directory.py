"""A folder that is opened once, so that files are written into this very folder, wherever its path leads later."""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchpeek.errors import FolderError
from torchpeek.signal_gate import finalised
from torchpeek.system_errors import ignored, is_of_system

# O_PATH also opens a folder whose entries may not be listed. Windows cannot open folders: there, paths are used.
_AS_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_OPENS_FOLDERS = os.open in os.supports_dir_fd
_ATTEMPTS = 10  # to make a subfolder that another process removes or replaces at the same time


class Directory:
    """An open folder. Links inside it are not followed, and it is noticed if the folder is moved or removed.

    The folder itself may be a link: the user named it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._absolute = Path(os.path.abspath(path))  # the model's code may change the working directory
        self._number = os.open(path, _AS_FOLDER) if _OPENS_FOLDERS else None
        self._identity = os.stat(path)  # where folders cannot be opened, it tells them apart
        if self._number is not None:
            weakref.finalize(self, finalised, os.close, self._number)

    def __reduce__(self) -> tuple[type[Directory], tuple[Path]]:
        return Directory, (self._absolute,)  # a copy, or one in another process, opens the folder again

    def check(self) -> None:
        """Raise FolderError if the folder was moved or removed, or its path now leads to another one."""
        own = self._identity if self._number is None else os.fstat(self._number)
        try:
            if os.path.samestat(os.stat(self._absolute), own):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        if not own.st_nlink:
            what = "removed"
        else:
            what = "moved" if (place := self.place()) is None else f"moved to {str(place)!r}"
        raise FolderError(f"output folder {str(self.path)!r} was {what} while it was written to. Next: run again")

    def place(self) -> Path | None:
        """Where the folder is now. None where it was removed, or the system does not tell."""
        if self._number is None:
            return self._absolute
        own = os.fstat(self._number)
        with ignored():
            if os.path.samestat(os.stat(self._absolute), own):
                return self._absolute
        with ignored():  # Linux
            place = Path(os.readlink(f"/proc/self/fd/{self._number}"))
            if os.path.samestat(os.stat(place), own):
                return place
        return None

    @contextmanager
    def parent_of(self, name: str) -> Iterator[int | None]:
        """Open the folder in which a file with this name stands, such as `a` for "a/b.png". Missing folders are made.

        A link in the place of a subfolder is replaced by a folder; what it leads to is not touched. If the block fails,
        the folders that were made are removed again, as far as they are empty.

        Yields:
            The number for `dir_fd`. None where the system has no such numbers; then the file's path is used.
        """
        parts = Path(name).parts[:-1]
        if self._number is None:
            self.path.joinpath(*parts).mkdir(parents=True, exist_ok=True)
            yield None
            return
        numbers, made = [os.dup(self._number)], []
        try:
            for part in parts:
                number, is_new = _subfolder(part, numbers[-1])
                if is_new:
                    made.append((part, numbers[-1]))
                numbers.append(number)
            yield numbers[-1]
        except BaseException:
            with ignored():
                for part, number in reversed(made):
                    os.rmdir(part, dir_fd=number)
            raise
        finally:
            for number in numbers:
                os.close(number)

    def delete(self, name: str) -> None:
        """Delete a file of this folder, and its subfolder if that is empty then. No error where it is missing."""
        if self._number is None:
            (self.path / name).unlink(missing_ok=True)
            return
        *parts, last = Path(name).parts
        with ignored(FileNotFoundError, NotADirectoryError):
            numbers = [os.dup(self._number)]
            try:
                for part in parts:
                    numbers.append(os.open(part, _AS_FOLDER | _NO_LINK, dir_fd=numbers[-1]))
                os.unlink(last, dir_fd=numbers[-1])
                with ignored():  # it is not empty
                    for part, number in zip(reversed(parts), reversed(numbers[:-1]), strict=True):
                        os.rmdir(part, dir_fd=number)
            finally:
                for number in numbers:
                    os.close(number)

    def read(self, name: str) -> bytes | None:
        """The contents of a file in this folder. None where there is no regular file of this name, or only a link."""
        path = self.path / name if self._number is None else name
        flags = os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            number = os.open(path, flags, dir_fd=self._number)
        except OSError as error:
            if not is_of_system(error):
                raise
            return None
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            return None
        with os.fdopen(number, "rb") as file:
            return file.read()


def _subfolder(name: str, parent: int) -> tuple[int, bool]:
    """Open a subfolder, and make it if it is missing or a link. Returns its number, and whether it was made."""
    is_new = False
    for attempt in range(_ATTEMPTS):
        try:
            return os.open(name, _AS_FOLDER | _NO_LINK, dir_fd=parent), is_new
        except FileNotFoundError:
            pass
        except OSError as error:
            if not is_of_system(error):
                raise
            if attempt == _ATTEMPTS - 1 or not _is_link(name, parent):
                raise
            with ignored(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
        with ignored(FileExistsError):
            os.mkdir(name, dir_fd=parent)
            is_new = True
    raise FileNotFoundError(2, "another process removes the folder")


def _is_link(name: str, parent: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True  # it was one a moment ago

"""The files below a folder of this machine, or below a URL: listed in one sequence, and read."""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from torchpeek.errors import FileError, FormatError, PictureError, shown
from torchpeek.runs.object_storage import file_system, is_url
from torchpeek.store.pictures import is_picture_name
from torchpeek.store.regular_files import open_regular, read_regular
from torchpeek.system_errors import ignored, is_from_outside, is_of_system

MOST_BYTES = 1 << 30
"""Most bytes of a picture or a mask."""

_PIECE = 1 << 16  # bytes of a file behind a URL that are asked for at once; fsspec fetches more

IsWanted = Callable[[str], bool]


class FilePlace(Protocol):
    """The files below a folder. Their names are relative to it, with slashes. It holds no open file."""

    @property
    def address(self) -> str:
        """The folder or URL."""
        ...

    def names(self, is_wanted: IsWanted) -> Iterator[str]:
        """The names of the wanted files, sorted: those of one folder are in memory at a time. No hidden ones."""
        ...

    def folders(self) -> list[str]:
        """The names of the folders right below it, sorted, without hidden ones."""
        ...

    def files(self) -> list[str]:
        """The names of the files right below it, sorted, without hidden ones."""
        ...

    def read(self, name: str, error: type[FileError] = PictureError) -> bytes:
        """The bytes of a file. Raises `error`, which names it, where it cannot be read."""
        ...

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Some bytes of a file. Raises PictureError where it does not have them."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A file that can be read from any position. Raises FormatError where there is none."""
        ...


class FolderPlace:
    """A folder of this machine.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.abspath(path))

    @property
    def address(self) -> str:
        """The folder, from the root of the file system on."""
        return str(self.path)

    def names(self, is_wanted: IsWanted) -> Iterator[str]:
        """The names of the wanted files. A link to a folder above it is not followed again."""
        return _walk(str(self.path), "", is_wanted, ())

    def folders(self) -> list[str]:
        """The names of the folders right below it."""
        return [name[:-1] for name in sorted(_entries(str(self.path), lambda name: False))]

    def files(self) -> list[str]:
        """The names of the files right below it."""
        return [name for name in sorted(_entries(str(self.path), lambda name: True)) if not name.endswith("/")]

    def is_folder(self) -> bool:
        """Whether there is such a folder."""
        return self.path.is_dir()

    def read(self, name: str, error: type[FileError] = PictureError) -> bytes:
        """The bytes of a file."""
        return read_regular(self.path / inside(name, self.address), error, MOST_BYTES)

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Some bytes of a file."""
        with open_regular(self.path / inside(name, self.address), PictureError) as file:
            if start < 0 or not 0 <= size <= os.fstat(file.fileno()).st_size - start:
                raise PictureError(f"{self.path / name}: has no {size:,} bytes from {start:,} on; it was changed")
            file.seek(start)
            return file.read(size)

    def open(self, name: str) -> BinaryIO:
        """Open a file."""
        return open_regular(self.path / inside(name, self.address))


def _entries(folder: str, is_wanted: IsWanted) -> list[str]:
    """The names of the wanted files and, with a slash at the end, of the folders."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            is_folder = False
            with ignored():  # a link to itself: a file, so that an error names it
                is_folder = entry.is_dir()
            if is_folder:
                names.append(f"{entry.name}/")
            elif is_wanted(entry.name):
                names.append(entry.name)
    return names


def _walk(root: str, below: str, is_wanted: IsWanted, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    folder = os.path.join(root, below)
    try:
        status = os.stat(folder)
        names = _entries(folder, is_wanted)
    except OSError as error:
        if not is_of_system(error):
            raise
        raise PictureError(f"{folder}: the folder cannot be read ({(error.strerror or str(error)).lower()})") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    names.sort(reverse=True)
    while names:  # each name is let go when its turn has come
        name = names.pop()
        if name.endswith("/"):
            yield from _walk(root, below + name, is_wanted, (*above, identity))
        else:
            yield below + name


class UrlPlace:
    """What lies below a URL, read by fsspec.

    Args:
        url: The URL, such as s3://bucket/val.
    """

    def __init__(self, url: str) -> None:
        self.address = url if url.endswith("://") else url.rstrip("/")

    @property
    def _system(self) -> Any:
        # fsspec keeps one for each process: that of a parent process cannot be used after a fork.
        return file_system(self.address)

    def _path(self, name: str) -> str:
        root = str(self._system._strip_protocol(self.address)).rstrip("/")
        return f"{root}/{name}" if name else root or "/"

    def names(self, is_wanted: IsWanted) -> Iterator[str]:
        """The names of the wanted files."""
        return self._walk("", is_wanted)

    def _walk(self, below: str, is_wanted: IsWanted) -> Iterator[str]:
        names = self._entries(below, is_wanted)
        names.sort(reverse=True)
        while names:
            name = names.pop()
            if name.endswith("/"):
                yield from self._walk(below + name, is_wanted)
            else:
                yield below + name

    def _entries(self, below: str, is_wanted: IsWanted) -> list[str]:
        system, folder = self._system, self._path(below.rstrip("/"))
        with _named(f"{self.address}/{below}", PictureError):
            system.invalidate_cache()
            listed = system.ls(folder, detail=True)
            system.invalidate_cache()  # it would keep the list of every folder
        names = []
        for entry in listed:
            path = str(entry["name"]).rstrip("/")
            name = posixpath.basename(path)
            if not name or name.startswith(".") or path.strip("/") == folder.strip("/"):
                continue  # a store may list the folder itself
            if entry["type"] == "directory":
                names.append(f"{name}/")
            elif is_wanted(name):
                names.append(name)
        return names

    def folders(self) -> list[str]:
        """The names of the folders right below it."""
        return [name[:-1] for name in sorted(self._entries("", lambda name: False))]

    def files(self) -> list[str]:
        """The names of the files right below it."""
        return [name for name in sorted(self._entries("", lambda name: True)) if not name.endswith("/")]

    def is_folder(self) -> bool:
        """Whether there is such a folder."""
        with _named(self.address, FormatError):
            return bool(self._system.isdir(self._path("")))

    def read(self, name: str, error: type[FileError] = PictureError) -> bytes:
        """The bytes of a file."""
        with _named(f"{self.address}/{name}", error):
            data: bytes = self._system.cat_file(self._path(inside(name, self.address)))
            return data

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Some bytes of a file."""
        if size == 0:
            return b""
        with _named(f"{self.address}/{name}", PictureError):
            data: bytes = self._system.cat_file(self._path(inside(name, self.address)), start=start, end=start + size)
        if len(data) != size:
            raise PictureError(f"{self.address}/{name}: has no {size:,} bytes from {start:,} on; it was changed")
        return data

    def open(self, name: str) -> BinaryIO:
        """Open a file, of which only the parts that are asked for are fetched."""
        with _named(f"{self.address}/{name}", FormatError):
            file = self._system.open(self._path(inside(name, self.address)), "rb")
        return io.BufferedReader(_RemoteFile(file, f"{self.address}/{name}"), _PIECE)


class _RemoteFile(io.RawIOBase):
    """A file of fsspec, whose errors name its URL."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _named(self._url, FormatError):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _named:  # noqa: N801  # used as contextlib.suppress is
    """Raise an error of the project, with the URL, for what a store raises."""

    def __init__(self, url: str, error: type[FileError]) -> None:
        self._url, self._error = url, error

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, FileError) or is_from_outside(error):
            return
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else " ".join(str(error).split()) or type(error).__name__
        raise self._error(f"{self._url}: {reason[:300]}") from error


def inside(name: str, address: str) -> str:
    """The name, if it is one of a file below the folder. Raises PictureError where it is not."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise PictureError(f"{shown(name)}: is no path inside of {address}")
    return name


def place_of(address: str | Path) -> FolderPlace | UrlPlace:
    """The place with this address: a folder, a URL, or a URL of a folder of this machine, as file:///data."""
    text = os.fspath(address)
    if text.startswith("file://"):
        text = local_path(text)
    return UrlPlace(text) if is_url(text) else FolderPlace(text)


def local_path(url: str) -> str:
    """The path that a file:// URL names."""
    return "/" + url.removeprefix("file://").lstrip("/")


def place_and_name(address: str | Path) -> tuple[FolderPlace | UrlPlace, str]:
    """The folder of a file, and its name there."""
    text = os.fspath(address)
    if text.startswith("file://"):
        text = local_path(text)
    if not is_url(text):
        path = Path(os.path.abspath(text))
        return FolderPlace(path.parent), path.name
    folder, _, name = text.rpartition("/")
    return UrlPlace(f"{folder}/" if folder.endswith(":/") else folder), name


def picture_names() -> IsWanted:
    """A function that says whether a file of this name is taken for a picture. It asks once for each suffix."""
    known: dict[str, bool] = {}

    def is_wanted(name: str) -> bool:
        suffix = os.path.splitext(name)[1]
        if suffix not in known:
            known[suffix] = is_picture_name(name)
        return known[suffix]

    return is_wanted

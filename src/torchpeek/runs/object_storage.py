"""A run in an object store or behind another URL, by fsspec."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from torchpeek.errors import FolderError, FormatError, TorchpeekError
from torchpeek.system_errors import is_from_outside

_PIECE = 1 << 20  # bytes that are read ahead of a map


class ObjectStorage:
    """A run behind a URL, such as s3://bucket/runs/v2 or memory://run.

    An object store has no renames: the mark of a folder is written last, and nobody reads a folder without one.

    Args:
        url: The URL.
    """

    def __init__(self, url: str) -> None:
        self.place = url.rstrip("/")

    def __reduce__(self) -> tuple[type[ObjectStorage], tuple[str]]:
        return ObjectStorage, (self.place,)  # connections do not travel to other processes

    @cached_property
    def system(self) -> Any:
        """The file system of fsspec."""
        return file_system(self.place)

    def _path(self, name: str) -> str:
        return posixpath.join(str(self.system._strip_protocol(self.place)), name) if name else self._path(".")[:-2]

    def url(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.place}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self.system.isfile(self._path(name)))

    def read(self, name: str, most: int | None = None) -> bytes:
        """The contents of a file."""
        with _named(self.url(name), FormatError):
            size = int(self.system.size(self._path(name)) or 0)
            if most is not None and size > most:
                raise FormatError(f"{self.url(name)}: has {size:,} bytes; allowed: at most {most:,}")
            data: bytes = self.system.cat_file(self._path(name))
            return data

    def open(self, name: str) -> BinaryIO:
        """Open a file, of which only the parts that are asked for are fetched."""
        with _named(self.url(name), FormatError):
            file: BinaryIO = self.system.open(self._path(name), "rb", block_size=_PIECE)
            return file

    def put_once(self, name: str, data: bytes) -> bool:
        """Write a file, by the store's own "only if there is none" where it has that."""
        with _named(self.url(name), FolderError):
            try:
                self.system.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            return True

    def put_file_once(self, name: str, file: Path) -> bool:
        """The same with a file of this machine."""
        with _named(self.url(name), FolderError):
            try:
                self.system.put_file(str(file), self._path(name), mode="create")
            except FileExistsError:
                return False
            return True

    def put_folder(self, name: str, files: Mapping[str, bytes], mark: str) -> None:
        """Write the files, the mark last. Two writers write the same bytes."""
        if self.exists(f"{name}/{mark}"):
            return
        with _named(self.url(name), FolderError):
            for each in sorted(files, key=lambda file: file == mark):
                self.system.pipe_file(self._path(f"{name}/{each}"), files[each])

    def remove_folder(self, name: str, mark: str) -> None:
        """Remove a folder, its mark first."""
        with _named(self.url(name), FolderError):
            for each in sorted(self.files(name), key=lambda file: file != mark):
                self.system.rm_file(self._path(f"{name}/{each}"))

    def folders(self, name: str) -> list[str]:
        """The names of the folders in a folder."""
        return self._entries(name, "directory")

    def files(self, name: str) -> list[str]:
        """The names of the files in a folder."""
        return self._entries(name, "file")

    def _entries(self, name: str, kind: str) -> list[str]:
        with _named(self.url(name), FormatError):
            self.system.invalidate_cache()  # other machines write, too
            try:
                entries = self.system.ls(self._path(name), detail=True)
            except FileNotFoundError:
                return []
            return sorted({posixpath.basename(each["name"].rstrip("/")) for each in entries if each["type"] == kind})

    def remove_unfinished(self, older_than: float) -> None:
        """Nothing: a part without a mark is written again."""


def file_system(url: str) -> Any:
    """The file system of fsspec for a URL. Raises TorchpeekError where the package for its kind is not installed."""
    try:
        import fsspec
    except ImportError as error:
        raise TorchpeekError("fsspec is not installed; next: pip install 'torchpeek[data]'") from error
    try:
        return fsspec.core.url_to_fs(url)[0]
    except ImportError as error:
        raise TorchpeekError(f"{url}: {error}") from error
    except ValueError as error:
        raise FormatError(f"{url}: {error}") from error


class _named:  # noqa: N801  # used as contextlib.suppress is
    """Raise an error of the project, with the URL, for what a store raises."""

    def __init__(self, url: str, error: type[FolderError] | type[FormatError]) -> None:
        self._url, self._error = url, error

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, (FolderError, FormatError)):
            if is_from_outside(error):
                return
            reason = " ".join(str(error).split()) or type(error).__name__
            raise self._error(f"{self._url}: {reason[:300]}") from error


def is_url(text: object) -> bool:
    """Whether a text is a URL, such as s3://bucket/val, and no path."""
    return isinstance(text, str) and "://" in text and text.partition("://")[0].isidentifier()

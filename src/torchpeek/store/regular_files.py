"""Open and read the files that the user names: regular files only, and never with a wait. No other place opens them.

Opening a FIFO waits for a writer, and reading a device may never end.
"""

from __future__ import annotations

import io
import os
import stat
from os import PathLike
from pathlib import PurePath
from typing import BinaryIO

from torchpeek.errors import FormatError, TorchpeekError
from torchpeek.signal_gate import is_of_handler
from torchpeek.system_errors import is_of_system

_DESCRIPTORS = ("/dev/fd", "/proc/self/fd")
"""The folders whose files are open already: a shell names the output of a command there, as in `cam <(command)`."""


def open_regular(path: str | PathLike[str], error: type[TorchpeekError] = FormatError) -> BinaryIO:
    """Open a regular file for reading in binary mode. It never waits, also not for the writer of a FIFO.

    The output of a command that a shell names as /dev/fd/N is read whole, as standard input is.

    Args:
        path: Path of the file.
        error: The class of the error.

    Returns:
        The open file, at its beginning.

    Raises:
        TorchpeekError: Of the class `error`, where it cannot be opened, or is no regular file. The message names it.
    """
    try:
        # First by name, because opening a FIFO or device has an effect; then again, because the name may have changed.
        refusal = _refusal(path, os.stat(path))
        if not refusal:
            file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  # the caller closes it
            status = os.fstat(file.fileno())
            refusal = _refusal(path, status)
            if refusal:
                file.close()
            elif stat.S_ISFIFO(status.st_mode):
                os.set_blocking(file.fileno(), True)
                with file:
                    return _named(file.read(), path)
    except (OSError, ValueError) as reason:  # a ValueError for a NUL in the name
        if is_of_handler(reason) or (isinstance(reason, OSError) and not is_of_system(reason)):
            raise
        if os.path.islink(path) and not os.path.exists(path):
            raise error(f"{path}: a broken link, to {os.readlink(path)}") from reason
        raise error(f"{path}: cannot be opened ({_words(reason)})") from reason
    if refusal:
        raise error(f"{path}: is {refusal}")
    return file


def read_regular(
    path: str | PathLike[str], error: type[TorchpeekError] = FormatError, most: int | None = None
) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: Path of the file.
        error: The class of the error.
        most: The largest size, in bytes; None for no limit.

    Raises:
        TorchpeekError: Of the class `error`, where the file cannot be opened or read, is no regular file, has more than
            `most` bytes, or grows while it is read. The message names it.
    """
    with open_regular(path, error) as file:
        size = len(file.getvalue()) if isinstance(file, io.BytesIO) else os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise error(f"{path}: has {size:,} bytes; allowed: at most {most:,}. Next: check that it is the right file")
        try:
            data = file.read(size + 1)  # never more, because a file of the system may have no end
        except OSError as reason:
            if not is_of_system(reason):
                raise
            raise error(f"{path}: cannot be read ({_words(reason)})") from reason
    if len(data) > size:
        grew = "grew while it was read. Next: wait until it is written"
        raise error(f"{path}: {grew if size else 'has no size, as files of /proc. Next: copy its content to a file'}")
    return data


def _refusal(path: str | PathLike[str], status: os.stat_result) -> str:
    """What a file with this status is, where it is not read; empty for a regular one."""
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return ""
    if stat.S_ISDIR(mode):
        return "a directory; allowed: a regular file"
    if stat.S_ISFIFO(mode):
        if str(PurePath(os.path.abspath(path)).parent) in _DESCRIPTORS:
            return ""
        kind = "a FIFO"
    else:
        kind = "a socket" if stat.S_ISSOCK(mode) else "a device"
    return f"{kind}; allowed: a regular file. Next: copy its content to one"


def _named(data: bytes, path: str | PathLike[str]) -> BinaryIO:
    buffer = io.BytesIO(data)
    buffer.name = os.fspath(path)  # the name in errors, as a file has it
    return buffer


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))  # Windows has neither


def _words(reason: OSError | ValueError) -> str:
    return (getattr(reason, "strerror", None) or str(reason)).lower()

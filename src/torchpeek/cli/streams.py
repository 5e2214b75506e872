"""Standard streams of a process that runs a command, also where they are closed or their reader has gone.

A command goes on without its reader: `torchpeek cam ... | head` writes all its files, prints nothing more, and its exit
status is that of the work. A message that cannot be shown, as when a terminal was closed, stops nothing.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress

from torchpeek.system_errors import ignored, is_of_system

_GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader, and a terminal that was closed


class _File(io.FileIO):
    """A stream that drops what it cannot write, and records why."""

    failure: OSError | None = None

    def write(self, data: bytes) -> int | None:  # type: ignore[override]  # BufferedWriter gives it bytes
        try:
            return super().write(data)
        except OSError as error:
            if not is_of_system(error):
                raise
            self.failure = self.failure or error
            return len(data)


def take_over_streams() -> None:
    """Replace stdout and stderr of this process. Streams that are closed become /dev/null."""
    for number in range(3):  # otherwise the next file that is opened would take the number, and be printed into
        try:
            os.fstat(number)
        except OSError as error:
            if not is_of_system(error):
                raise
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _stream(sys.stdout, 1), _stream(sys.stderr, 2)


def finish_streams() -> str:
    """Write what is buffered. Returns why stdout could not be written: "" where it could, or where nobody reads it."""
    for stream in (sys.stdout, sys.stderr):
        with ignored(), suppress(ValueError):  # closed by other code
            stream.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, _File) else None
    if failure is None or failure.errno in _GONE:
        return ""
    return (failure.strerror or str(failure)).lower()


def _stream(stream: object, number: int) -> io.TextIOWrapper:
    """A stream to the file of this number, with the encoding and the buffers of the one that Python has made."""
    own = stream if isinstance(stream, io.TextIOWrapper) else None
    if own is not None:
        own.flush()
    file = _File(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(file),  # type: ignore[type-var]  # for mypy, `_File.write` is not that of its base
        encoding=own.encoding if own else "utf-8",
        errors="backslashreplace",
        line_buffering=own.line_buffering if own else False,
        write_through=own.write_through if own else False,
    )

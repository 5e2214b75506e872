"""Which OSErrors say that a file cannot be read or written, and which come from outside.

TimeoutError is an OSError, and the usual exception of a time limit: the handler of an alarm, or another thread, raises
it wherever the program happens to be, also while a file is read. Then it says nothing about the file.
"""

from __future__ import annotations

from types import TracebackType

from torchpeek.signal_gate import is_of_handler


def is_of_system(error: BaseException) -> bool:
    """Whether the operating system has raised an exception. It sets the number of the error, and nobody else does.

    Every `except OSError` asks this, or `is_of_library`, and raises again what is not.
    """
    return isinstance(error, OSError) and error.errno is not None and not is_of_handler(error)


def is_of_library(error: BaseException) -> bool:
    """Whether the operating system has raised an exception, or a library that reads files or fetches them.

    Libraries raise an OSError with a text and without a number. That of another thread has neither.
    """
    return isinstance(error, OSError) and bool(error.args) and not is_of_handler(error)


def is_from_outside(error: BaseException) -> bool:
    """Whether an exception is that of a signal's handler, or of a time limit.

    Every clause asks this that takes any exception of other code for a sign of what is wrong with it.
    """
    return is_of_handler(error) or (isinstance(error, TimeoutError) and not is_of_system(error))


class ignored:  # noqa: N801  # used as contextlib.suppress is
    """A block whose errors of the operating system do not matter. It ends where one is raised.

    Args:
        *errors: The types that do not matter.

    Example:
        >>> import os
        >>> from torchpeek.system_errors import ignored
        >>> with ignored(FileNotFoundError):
        ...     os.unlink("no such file")
    """

    def __init__(self, *errors: type[OSError]) -> None:
        self._errors = errors or (OSError,)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> bool:
        return isinstance(error, self._errors) and is_of_system(error)

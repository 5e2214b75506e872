"""What each process opens for itself: an open file has one position, which processes would share after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Something that is opened when it is first asked for in a process. Pickled, it is closed.

    Args:
        open_: Opens it.
    """

    def __init__(self, open_: Callable[[], T]) -> None:
        self._open = open_
        self._opened: tuple[int, T] | None = None

    def __reduce__(self) -> tuple[type[PerProcess[T]], tuple[Callable[[], T]]]:
        return PerProcess, (self._open,)

    def get(self) -> T:
        """What is open in this process."""
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            self._opened = (process, self._open())
        return self._opened[1]

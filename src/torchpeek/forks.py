"""What a forked process does first: it frees its locks, and undoes the changes of threads that it does not have.

A fork copies the whole memory, but only one of the threads: the one that forks.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

_FUNCTIONS: list[Callable[[], object]] = []
_LAST: list[Callable[[], object]] = []
_LOCKS: weakref.WeakSet[Lock] = weakref.WeakSet()


def in_child(function: Callable[[], object], *, last: bool = False) -> None:
    """Call a function in every process that is forked from this one.

    Args:
        function: Takes no arguments.
        last: Whether to call it after all functions that are not last. The locks are free before any is called.
    """
    (_LAST if last else _FUNCTIONS).append(function)


class Lock:
    """A lock for short pieces of code that do not nest, which no thread can leave held, and no fork either.

    A lock that another thread holds when a process forks would stay held in the new process for ever, because the
    thread that would release it is not there. And an exception from outside may come between the end of a block and
    the release. So a thread that enters gives back first what it has left held: every step that undoes something may
    be run again, and then enters again.

    Example:
        >>> from torchpeek.forks import Lock
        >>> lock = Lock()
        >>> with lock:
        ...     print("alone")
        alone
    """

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()
        _LOCKS.add(self)

    def __enter__(self) -> None:
        lock = self._lock
        while lock._is_owned():
            lock.release()
        lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def free(self) -> None:
        """Release the lock, whoever holds it: in a forked process."""
        self._lock._at_fork_reinit()  # as the standard library does with its own locks


def _call_all() -> None:
    for lock in _LOCKS:
        lock.free()
    for function in (*_FUNCTIONS, *_LAST):
        function()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_call_all)

"""What a forked process does first: it frees its locks, and undoes the changes of threads that it does not have.

A fork copies the whole memory, but only one of the threads: the one that forks.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
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
    """A lock for short pieces of code, which no thread can leave held, and no fork either.

    A lock that another thread holds when a process forks would stay held in the new process for ever, because the
    thread that would release it is not there. And an exception from outside may come between the end of a block and
    the release. So a thread that enters gives back first what it has left held: every step that undoes something may
    be run again, and then enters again.

    Blocks do not nest, but for one case: Python may run a finalizer in the middle of one, which enters, too. It is let
    in, so the block may find another state after each operation that allocates memory.

    Example:
        >>> from torchpeek.forks import Lock
        >>> lock = Lock()
        >>> with lock:
        ...     print("alone")
        alone
    """

    __slots__ = ("__weakref__", "_holder", "_lock")

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()
        self._holder: FrameType | None = None  # what has entered, without the finalizers inside of it
        _LOCKS.add(self)

    def __enter__(self) -> None:
        lock, frame = self._lock, sys._getframe(1)
        if lock._is_owned():
            if self._is_inside(frame):
                lock.acquire()
                return
            while lock._is_owned():
                lock.release()
        lock.acquire()
        self._holder = frame

    def __exit__(self, *error: object) -> None:
        if self._holder is sys._getframe(1):
            self._holder = None
        self._lock.release()

    def _is_inside(self, frame: FrameType) -> bool:
        """Whether the holder still runs, and has called what now enters."""
        caller = frame.f_back
        while caller is not None and caller is not self._holder:
            caller = caller.f_back
        return caller is not None

    def free(self) -> None:
        """Release the lock, whoever holds it: in a forked process."""
        self._holder = None
        self._lock._at_fork_reinit()  # as the standard library does with its own locks


def _call_all() -> None:
    for lock in _LOCKS:
        lock.free()
    for function in (*_FUNCTIONS, *_LAST):
        function()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_call_all)

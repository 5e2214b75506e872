"""What a forked process does first: it frees its locks, and undoes the changes of threads that it does not have.

A fork copies the whole memory, but only one of the threads: the one that forks.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

_FUNCTIONS: list[Callable[[], object]] = []
_LAST: list[Callable[[], object]] = []
_LOCKS: weakref.WeakSet[threading.Lock] = weakref.WeakSet()


def in_child(function: Callable[[], object], *, last: bool = False) -> None:
    """Call a function in every process that is forked from this one.

    Args:
        function: Takes no arguments.
        last: Whether to call it after all functions that are not last. The locks are free before any is called.
    """
    (_LAST if last else _FUNCTIONS).append(function)


def new_lock() -> threading.Lock:
    """Make a lock that is free in a forked process.

    A lock that another thread holds when a process forks would stay held in the new process for ever, because the
    thread that would release it is not there.
    """
    lock = threading.Lock()
    _LOCKS.add(lock)
    return lock


def _call_all() -> None:
    for lock in _LOCKS:
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # as the standard library does with its own locks
    for function in (*_FUNCTIONS, *_LAST):
        function()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_call_all)

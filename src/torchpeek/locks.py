"""Locks that a forked process finds free, whoever held them in its parent."""

from __future__ import annotations

import os
import threading
import weakref

_LOCKS: weakref.WeakSet[threading.Lock] = weakref.WeakSet()


def new_lock() -> threading.Lock:
    """Make a lock that is free in a forked process.

    A fork copies the memory and only the thread that forks. A lock that another thread holds at that moment would stay
    held in the new process for ever, because the thread that would release it is not there.
    """
    lock = threading.Lock()
    _LOCKS.add(lock)
    return lock


def _free_all() -> None:
    for lock in _LOCKS:
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # as the standard library does with its own locks


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_free_all)

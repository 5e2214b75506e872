"""One thread at a time runs a module: locks that are held by a block of code, and that never outlive it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

from torch import nn

from torchpeek.forks import Lock
from torchpeek.interrupts import let_interrupts_through
from torchpeek.undo import Undo

# Who holds a module, by the id of the module. Modules that nobody holds are not in it. Each module is locked and not
# each model, because two models may share a module.
_HOLDERS: dict[int, LockHolder] = {}
_GUARD = Lock()


class LockHolder:
    """Holds modules for one block of code in the current thread, until `release`.

    A block that ended without `release`, for example because an exception from outside came in the middle of its
    clean-up, holds nothing any more: it is over, or its thread is gone.

    Args:
        undo: The steps of the block.
    """

    __slots__ = ("_is_released", "_modules", "_released", "_undo", "thread")

    def __init__(self, undo: Undo) -> None:
        self.thread = threading.get_ident()
        self._undo = undo
        self._modules: Sequence[nn.Module] = ()  # the references also keep the ids in _HOLDERS from being used again
        self._released = threading.Lock()  # locked until the release, so that others can wait for it
        self._released.acquire()
        self._is_released = False

    @property
    def is_alive(self) -> bool:
        """Whether the block still runs."""
        return not (self._undo.is_over or self._undo.is_finished) and self.thread in sys._current_frames()

    def acquire(self, modules: Sequence[nn.Module]) -> None:
        """Wait until no other thread holds one of the modules, and hold them all. Ctrl-C takes effect meanwhile."""
        while (other := self._try(modules)) is not None:
            other._wait()
            let_interrupts_through()

    def release(self) -> None:
        """Give the modules back. May be called again."""
        with _GUARD:
            self._give_back()
        if not self._is_released:  # not the state of the lock, which a waiting thread holds for a moment
            self._is_released = True
            self._released.release()

    def _try(self, modules: Sequence[nn.Module]) -> LockHolder | None:
        """Hold all of the modules, or none of them if another thread holds one; that holder is returned."""
        ids = list(map(id, modules))
        with _GUARD:
            if not _HOLDERS.keys().isdisjoint(ids):
                for holder in set(map(_HOLDERS.get, ids)):
                    if holder is None:
                        continue
                    if not holder.is_alive:
                        holder._give_back()
                    elif holder.thread != self.thread:
                        return holder
                ids = [each for each in ids if each not in _HOLDERS]  # an outer block of this thread has the others
            self._modules = modules
            _HOLDERS.update(dict.fromkeys(ids, self))
        return None

    def _give_back(self) -> None:
        for each in map(id, self._modules):
            if _HOLDERS.get(each) is self:
                del _HOLDERS[each]
        self._modules = ()

    def _wait(self) -> None:
        """Wait for the release, but not for long: the block may end without one."""
        if self._released.acquire(timeout=0.1):
            self._released.release()

"""A lock that no block can leave held."""

from __future__ import annotations

import time
import weakref

from torchpeek.forks import in_child
from torchpeek.interrupts import let_interrupts_through
from torchpeek.undo import Block, Undo, undone

_WAIT = 0.0005  # seconds between two checks of whose turn it is; turns are short


class Turns:
    """A lock that blocks take turns to hold, in the order in which they ask for it.

    It remembers which block holds it. If the `with` statement of that block is over, or nothing refers to the block any
    more, it counts as released, even where the release itself was cut short. It is free in the child of a fork.

    Example:
        >>> from torchpeek.turns import Turns
        >>> turns = Turns()
        >>> with turns.turn():
        ...     print("alone")
        alone
    """

    def __init__(self) -> None:
        self._queue: list[weakref.ref[Undo]] = []  # the first has its turn
        _all.add(self)

    def turn(self) -> Block[None]:
        """A block that begins when no other thread is in one, and that others wait for. It must not be nested."""
        return _turn(self)

    def wait(self, undo: Undo) -> None:
        """Wait for a turn. The steps of `undo` end it."""
        place = weakref.ref(undo)
        undo.push(self._leave, place)
        self._queue.append(place)
        while (first := self._queue[0]) is not place:
            holder = first()
            if holder is None or holder.is_over:
                self._leave(first)
            elif holder.is_of_this_thread:  # this is a finalizer, which Python runs inside the thread's own turn
                return
            else:
                time.sleep(_WAIT)
                let_interrupts_through()

    def _leave(self, place: weakref.ref[Undo]) -> None:
        if place in self._queue:
            self._queue.remove(place)


@undone
def _turn(undo: Undo, turns: Turns) -> None:
    turns.wait(undo)


_all: weakref.WeakSet[Turns] = weakref.WeakSet()


def _free_all() -> None:
    for turns in _all:
        turns._queue.clear()


in_child(_free_all)

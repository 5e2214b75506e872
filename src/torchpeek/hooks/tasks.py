"""Which asyncio task opened a block: tasks share a thread, and take turns where they await."""

from __future__ import annotations

import sys
import weakref
from contextvars import ContextVar
from itertools import count
from threading import get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

# The numbers of the blocks that are open in this context. A task that is started inside a block inherits them.
_OPEN_BLOCKS: ContextVar[frozenset[int]] = ContextVar("torchpeek_open_blocks", default=frozenset())

_block_numbers = count()


class TaskBlock:
    """A block that an asyncio task has opened.

    Calls of that task belong to the block, and those of tasks that are started inside it. Calls of other tasks in the
    same thread do not, until the task that opened it has ended: in a notebook each cell is a task, and a block may be
    opened in one cell and closed in another.
    """

    __slots__ = ("_number", "_task", "_thread")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._number = next(_block_numbers)
        self._task = weakref.ref(task)
        self._thread = get_ident()
        _OPEN_BLOCKS.set(_OPEN_BLOCKS.get() | {self._number})

    def is_foreign(self) -> bool:
        """Whether the code that runs now belongs to another task."""
        if self._number in _OPEN_BLOCKS.get() or get_ident() != self._thread:
            return False
        task = self._task()
        return task is not None and not task.done()

    def close(self) -> None:
        """The block ends."""
        _OPEN_BLOCKS.set(_OPEN_BLOCKS.get() - {self._number})


def task_block() -> TaskBlock | None:
    """A block of the asyncio task that runs now; None if none runs."""
    asyncio = sys.modules.get("asyncio")  # without it there are no tasks, and importing it would be slow
    if asyncio is None or asyncio._get_running_loop() is None or (task := asyncio.current_task()) is None:
        return None
    return TaskBlock(task)

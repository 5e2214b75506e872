"""What does its work only inside a `with` block, and warns when it is thrown away before one has opened it."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ParamSpec, TypeVar

from torchpeek.errors import notify
from torchpeek.undo import Block, Undo

P = ParamSpec("P")
T = TypeVar("T")


class OpenedByWith:
    """Base class of context managers. One that is thrown away before a `with` block has opened it warns.

    A subclass calls `must_be_opened` as the last step of its `__init__`, and `was_opened` as the first of `__enter__`.
    So an object of which the construction failed says nothing.
    """

    _unopened: weakref.ref[Any] | None = None  # watches it until it is opened or displayed

    def must_be_opened(self, statement: str) -> None:
        """Declare that this object is complete and that nothing has opened it yet.

        Args:
            statement: How to open it, for example "with tp.record(...) as tape:".
        """
        # Not `__del__`, which would run at the end of every object, and Python drops an exception that arrives there.
        self._unopened = weakref.ref(self, functools.partial(_warn, statement))

    def was_opened(self) -> None:
        """Declare that a block has opened it, or that the user has read that nothing has."""
        self._unopened = None


def _warn(statement: str, reference: weakref.ref[Any], is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
    if is_finalizing():  # while the interpreter exits, nothing can be warned of any more
        return
    call = statement.removeprefix("with ").partition("(")[0]
    notify(f"the result of {call} was thrown away before it was opened, so it did nothing. Next: {statement} ...")


def opened_by_with(
    statement: str,
) -> Callable[[Callable[P, Iterator[T]]], Callable[P, WithBlock[T]]]:
    """Make a function that yields once return a context manager, as `contextlib.contextmanager` does.

    A context manager that is thrown away before a block has opened it warns. It can be opened several times, one after
    the other or nested, and it can decorate a function.

    The function makes its changes in blocks of `torchpeek.undo`, which it has around its `yield`. It has no `finally`,
    because an exception from outside could cut that short.

    Args:
        statement: How to open it, for example "with tp.edit(model, ...):".

    Example:
        >>> from torchpeek.hooks.with_block import opened_by_with
        >>> @opened_by_with("with doubled(number) as double:")
        ... def doubled(number):
        ...     yield 2 * number
        >>> with doubled(3) as double:
        ...     double
        6
    """

    def decorated(function: Callable[P, Iterator[T]]) -> Callable[P, WithBlock[T]]:
        enter = contextmanager(function)

        @functools.wraps(function)
        def made(*args: P.args, **kwargs: P.kwargs) -> WithBlock[T]:
            return WithBlock(statement, functools.partial(enter, *args, **kwargs))

        return made

    return decorated


class WithBlock(OpenedByWith, Block[T]):
    """The context manager that a function decorated with `opened_by_with` returns.

    Args:
        statement: How to open it.
        enter: Makes the context manager of one block, that of a generator.
    """

    def __init__(self, statement: str, enter: Callable[[], AbstractContextManager[T]]) -> None:
        super().__init__()
        self._enter = enter
        self._text = statement
        self.must_be_opened(statement)

    def _open(self, undo: Undo) -> T:
        self.was_opened()
        manager: Any = self._enter()
        undo.push(manager.gen.close)
        undo.ending = manager.__exit__
        result: T = manager.__enter__()
        return result

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a function: each of its calls runs inside a block of its own."""
        self.was_opened()

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return inside

    def __repr__(self) -> str:
        state = "open" if self._is_open() else "not open"
        self.was_opened()  # who displays it reads that it is not open
        return f"<{self._text.removeprefix('with ').removesuffix(':')}, {state}; {self._text} opens it>"

"""Passes that may fail because of what torchpeek changes in them: who is to blame for an exception, and what follows.

torchpeek runs the user's model in ways that the user did not ask for: with another number of samples, a changed
picture, a replaced output, in another memory format. A model may refuse such a pass, and there is another way then. But
an exception in it may as well be the user's own: of a hook, of `forward`, of a signal handler. `attempted` tells them
apart by repeating the pass, which costs nothing as long as no pass fails.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from torchpeek.signal_gate import is_of_handler

Result = TypeVar("Result")
Other = TypeVar("Other")

NEVER_REFUSALS = (TimeoutError, MemoryError, RecursionError, torch.OutOfMemoryError)
"""Exceptions that no change of a pass explains, so that every trial pass lets them through.

KeyboardInterrupt, SystemExit, GeneratorExit and asyncio.CancelledError are no subclasses of Exception, so they go
through in any case. For torch.OutOfMemoryError, `batching.py: in_memory` tries smaller batches.
"""


@dataclass(frozen=True, eq=False)
class Refusal(Generic[Other]):
    """The model refuses a changed pass, again and again, and takes the unchanged one.

    Args:
        reason: The exception of the changed pass, in one line. Not the exception, which would keep the model alive.
        unchanged: What the unchanged pass returned.
    """

    reason: str
    unchanged: Other


def may_refuse(error: Exception) -> bool:
    """Whether the change of a pass may be the cause of an exception, by its type."""
    return not isinstance(error, NEVER_REFUSALS)


def attempted(
    changed: Callable[[], Result],
    unchanged: Callable[[], Other],
    *,
    possible: Callable[[Exception], bool] = may_refuse,
) -> Result | Refusal[Other]:
    """What `changed()` returns, or a Refusal where it fails because of the change.

    An exception of `changed` is a refusal of the change only if

    1. `unchanged` raises nothing. What it raises goes through, because the model fails without the change, too.
    2. `changed` then raises the same again. An exception that does not come again was not caused by the change: that of
       a hook in one call, or of a signal handler.

    Otherwise the exception goes through as it is. So does that of a signal's handler, always: an alarm that repeats may
    strike in the repetition, too. Nothing of a failed attempt may be remembered, except what follows from a Refusal.

    Args:
        changed: Runs the model in torchpeek's own way. It may be called twice.
        unchanged: Runs the model as the user would, or in the way that is used in place of `changed`.
        possible: Whether the change may be the cause of an exception. All others go through at once.
    """
    try:
        return changed()
    except Exception as error:
        if not possible(error) or is_of_handler(error):
            raise
        first: Exception = error
    try:
        _forget_variables(first)
        result = unchanged()
        if not _comes_again(first, changed, possible):
            raise first
        return Refusal(described_exception(first), result)
    finally:
        del first  # an exception in a variable of a frame that its traceback has keeps the model alive


def shown_later() -> None:
    """Stands for the unchanged pass where later passes of the caller show whether the model itself fails."""


def described_exception(error: Exception) -> str:
    """An exception in one line: its type, and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def is_of_torch(error: Exception) -> bool:
    """Whether torch may have raised the exception itself: it is of one of Python's own types, or of torch's."""
    return type(error).__module__.partition(".")[0] in ("builtins", "torch")


class stop_iteration_restored:  # noqa: N801  # used as a function is, in `with`
    """A block that lets a StopIteration of the user's code out as what it is.

    Python turns it into a RuntimeError where it leaves a generator, such as `batching.py: chunks`. This is a class,
    because a context manager that is written as a generator could not raise it either.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration):
            stopped = error.__cause__
            try:
                raise stopped from None
            finally:
                del stopped, error


def _comes_again(error: Exception, function: Callable[[], object], possible: Callable[[Exception], bool]) -> bool:
    """Whether the function raises an exception like this one. One that no change explains goes through."""
    try:
        function()
    except Exception as again:
        if not possible(again) or is_of_handler(again):
            raise
        alike = _is_alike(error, again)
        _forget_variables(again)
        return alike
    return False


def _is_alike(one: Exception, other: Exception) -> bool:
    """Whether two exceptions are of one type, and of one line of code or with one message."""
    if type(one) is not type(other):
        return False
    memory = isinstance(one, torch.OutOfMemoryError)  # may end at another operation each time
    return memory or _raised_at(one) == _raised_at(other) or str(one) == str(other)


def _raised_at(error: Exception) -> tuple[str, int | None]:
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_filename, line


def _forget_variables(error: BaseException | None) -> None:
    """Drop the variables of the frames that have failed: their tensors take the memory that a repetition needs."""
    met: set[int] = set()  # where one exception is raised again and again, its contexts may be in a circle
    while error is not None and id(error) not in met:
        met.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__

"""Context managers whose clean-up is done, whatever exception arrives from outside, and whenever it arrives.

An exception from outside is one that the code itself does not raise: that of a signal's handler (Ctrl-C, an alarm), one
that another thread sends (`PyThreadState_SetAsyncExc`), RecursionError near the limit, MemoryError. It can strike at
every instruction, also at the first one of an `__exit__` method, where `try` cannot help. Four things make up for that:

1. Signals are delayed while a block is opened and closed (`signal_gate.py`).
2. What a block changes is undone by steps, `Undo`. A step is stored before its change is made, it may be run again, and
   it is dropped only after it ran.
3. The clean-up does not depend on `__exit__`. A `with` statement looks `__exit__` up before it calls `__enter__`, and
   refers to what it found until the statement is over. Here each statement finds a new object, and the end of that
   object's life is watched: the steps that are left then are run.
4. If even that is cut short, whoever opens the next block in the same thread runs what is left.

`contextlib.ExitStack` refers to that object until the stack is thrown away, so the third comes later there. An
asynchronous exception that strikes in the stack's own code, or in `__exit__`, has frames that refer to the stack, which
may be in a cycle. Then the steps are run when the exception has been handled and the garbage collector has run. For a
block that is opened and closed by calls of `__enter__` and `__exit__` there is only the second: its steps are run when
`__exit__` is called again, or when nothing refers to the block any more.

A lock that guards a few lines is a `forks.Lock`: a thread that enters it gives back what it has left held.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import FrameType, GeneratorType, TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeAlias, TypeVar

from torchpeek.forks import in_child
from torchpeek.signal_gate import Level

P = ParamSpec("P")
T = TypeVar("T")

Ending: TypeAlias = Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], bool | None]
"""Called as `__exit__` is."""

_ATTEMPTS = 3  # an exception from outside does not strike at the same step so often; one of the step itself does
_HEADROOM = 1000  # calls, for a clean-up near the recursion limit

_get_ident = threading.get_ident


class Undo:
    """The steps that undo what a block has changed. They run in reverse order, each until it has run to its end.

    Example:
        >>> from torchpeek.undo import Undo
        >>> settings, undo = {}, Undo()
        >>> undo.push(settings.pop, "quiet", None)
        >>> settings["quiet"] = True
        >>> undo.finish()
        >>> settings
        {}
    """

    __slots__ = (
        "__weakref__",
        "_closer",
        "_level",
        "_steps",
        "_thread",
        "delays_signals",
        "ending",
        "is_by_hand",
        "is_late",
    )

    def __init__(self) -> None:
        self._level = Level()
        self._steps: list[Callable[[], Any]] = [self._level.end]
        self._closer: weakref.ref[Any] | None = None  # the `__exit__` that a `with` statement holds, or the block
        self._thread = _get_ident()
        self.is_by_hand = False  # whether a call of `__enter__` has opened it, and no `with` statement
        self.is_late = False  # whether its steps run because nothing can close it any more
        self.delays_signals = False  # whether signals are delayed inside the block, too
        self.ending: Ending | None = None  # comes before the steps, and says whether the block's exception ends there

    @property
    def is_finished(self) -> bool:
        """Whether all steps have run."""
        return not self._steps

    def push(self, step: Callable[..., Any], *args: Any) -> None:
        """Add a step. Call this before the change is made that the step undoes.

        Args:
            step: May be called several times, and where the change was not made, or not wholly.
            *args: Its arguments.
        """
        self._steps.append(functools.partial(step, *args) if args else step)

    def push_local(self, step: Callable[..., Any], *args: Any) -> None:
        """Add a step for what belongs to the current thread. It does nothing where another thread has to run it."""
        self.push(_in_thread, self._thread, step, args)

    def enter(self, block: Block[T]) -> T:
        """Open a block as a part of this one: it is closed by the steps of this one.

        Args:
            block: The block.

        Returns:
            What its `with` statement would give.
        """
        return block._open(self)

    def enter_context(self, context: AbstractContextManager[T]) -> T:
        """Enter a context manager that is not torchpeek's own, as a part of this block.

        Args:
            context: The context manager. Exceptions from outside that strike in its own code may cut it short.

        Returns:
            What its `with` statement would give.
        """
        if isinstance(context, Block):
            inside: T = self.enter(context)
            return inside
        generator = getattr(context, "gen", None)
        if isinstance(generator, GeneratorType):  # made by contextlib.contextmanager
            self.push(generator.close)
            return context.__enter__()
        entered: list[AbstractContextManager[Any]] = []
        self.push(_exit_all, entered)
        result = context.__enter__()
        entered.append(context)
        return result

    @property
    def is_of_this_thread(self) -> bool:
        """Whether the current thread has opened the block."""
        return self._thread == _get_ident()

    @property
    def is_over(self) -> bool:
        """Whether the `with` statement that opened the block is over."""
        return self._closer is not None and self._closer() is None

    def finish(self) -> None:
        """Run the steps. Then raise the first exception that one of them, or a signal that was delayed, has raised."""
        steps = self._steps
        if not steps:
            self._forget()
            return
        self._level.begin()
        first: BaseException | None = None
        attempts = 0
        try:
            while steps:
                step = steps[-1]
                try:
                    step()
                except RecursionError:  # `_leave` runs it again, with more room
                    raise
                except BaseException as error:
                    first = error if first is None else first
                    attempts += 1
                    if attempts < _ATTEMPTS:
                        continue
                attempts = 0
                if steps and steps[-1] is step:
                    steps.pop()
            self._forget()
            if first is not None:
                raise first
        finally:
            first = None  # it refers to this frame

    def watch(self, closer: object) -> None:
        """Run the steps when the life of this object ends, which can close the block."""
        self._closer = weakref.ref(closer, functools.partial(_finish_all, self))
        _unfinished.add(self)

    def _forget(self) -> None:
        _unfinished.discard(self)
        self._closer = self.ending = None


def _in_thread(thread: int, step: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if thread == _get_ident():
        step(*args)


def _exit_all(entered: list[AbstractContextManager[Any]]) -> None:
    while entered:
        entered[-1].__exit__(None, None, None)
        entered.pop()


_unfinished: set[Undo] = set()  # of the open blocks


def _finish_over() -> None:
    """Finish the blocks of this thread that are over, and those of threads that have ended."""
    for undo in tuple(_unfinished):
        if undo._closer is not None and undo._closer() is not None:  # something can still close it
            continue
        is_ours = undo._thread == _get_ident() or undo._thread not in sys._current_frames()
        if is_ours and not _is_finishing():
            _finish_all(undo)


def _finish_other_threads() -> None:
    """In a forked process: finish the blocks of the threads that it does not have."""
    for undo in tuple(_unfinished):
        if undo._thread != _get_ident():
            _finish_all(undo)


in_child(_finish_other_threads, last=True)


def _is_finishing() -> bool:
    """Whether steps are running: one of them opens a block."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _FINISH:
        frame = frame.f_back
    return frame is not None


_FINISH = Undo.finish.__code__


def _finish_all(undo: Undo, closer: object = None) -> None:
    """Run the steps of a block that nothing closes: `__enter__` has failed, or what could close it is gone."""
    if undo._steps:
        undo.ending, undo.is_late = None, True
        _leave([undo], _NO_BLOCK)
    else:
        undo._forget()


class _Exit:
    """The `__exit__` of a block: each time it is looked up, an object of its own."""

    def __get__(self, block: Block[Any] | None, owner: type) -> Callable[..., bool | None]:
        found: list[Undo] = []  # the block that it closes
        exit = functools.partial(_leave, found) if block is None else functools.partial(_leave, found, block)
        _LOCAL.exit = weakref.ref(exit)
        return exit


_LOCAL = threading.local()  # `exit`: the `__exit__` that this thread has looked up last

_ENTER_CONTEXT = ExitStack.enter_context.__code__


def _leave(
    found: list[Undo],
    block: Block[Any],
    kind: type[BaseException] | None = None,
    error: BaseException | None = None,
    trace: TracebackType | None = None,
) -> bool | None:
    undo = found[0] if found else block._innermost_by_hand()
    try:
        if undo._steps:  # not where the garbage collector has closed the block first: nothing would end the level
            undo._level.begin_again()
        return None if undo.ending is None else undo.ending(kind, error, trace)
    finally:
        try:
            undo.finish()
        finally:
            if undo._steps:  # an exception cut them short, or there is no room for calls near the recursion limit
                limit = sys.getrecursionlimit()
                sys.setrecursionlimit(limit)  # raises where the limit could not be lowered again
                try:
                    sys.setrecursionlimit(limit + _HEADROOM)
                    undo.finish()
                finally:
                    sys.setrecursionlimit(limit)
            block._undos[:] = [each for each in block._undos if each._steps]


def _is_leaving(frame: FrameType) -> bool:
    """Whether the frame is a call of `__exit__` with steps left. No `with` statement would notice its end."""
    if frame.f_code is not _LEAVE:
        return False
    undo = frame.f_locals.get("undo")
    return undo is None or bool(undo._steps)


_LEAVE = _leave.__code__


class Block(Generic[T]):
    """A context manager that leaves nothing behind. It may be opened several times, one after the other or nested.

    A subclass has the method `_open`.
    """

    def __init__(self) -> None:
        self._undos: list[Undo] = []  # of the open blocks, innermost last

    def _open(self, undo: Undo) -> T:
        """Open a block, and push the steps that close it. Returns what the `with` statement gives."""
        raise NotImplementedError

    def _is_open(self, but: Undo | None = None) -> bool:
        """Whether a block is open, other than this one."""
        return any(not undo.is_finished and undo is not but for undo in self._undos)

    def _innermost_by_hand(self) -> Undo:
        """The block that `__exit__` closes where no `with` statement has opened it."""
        return next((undo for undo in reversed(self._undos) if undo.is_by_hand and undo._steps), None) or Undo()

    def __enter__(self) -> T:
        undo = Undo()
        exit = _LOCAL.__dict__.get("exit", _no_exit)()
        if (
            exit is not None
            and not exit.args[0]
            # An ExitStack looks `__exit__` up in the class.
            and (exit.args[-1] is self if len(exit.args) == 2 else sys._getframe(1).f_code is _ENTER_CONTEXT)
        ):
            by_with = len(exit.args) == 2
            undo.watch(exit)
            exit.args[0].append(undo)
        else:
            by_with = False
            undo.watch(self)
            undo.is_by_hand = True
        exit = None  # only the `with` statement holds it
        self._undos.append(undo)
        try:
            undo._level.begin()
            _finish_over()
            result = self._open(undo)
            if not undo.delays_signals:
                if by_with:
                    undo._level.end()
                else:
                    undo._level.guard(_is_leaving)
            return result
        except BaseException:
            try:
                _finish_all(undo)
            finally:
                if undo._steps:  # an exception struck before the first of them
                    _finish_all(undo)
                self._undos[:] = [each for each in self._undos if each._steps]
            raise

    if TYPE_CHECKING:

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> bool | None: ...
    else:
        __exit__ = _Exit()


_NO_BLOCK: Block[Any] = Block()  # for steps that belong to no block any more


def _no_exit() -> None:
    """Stands for a reference to an `__exit__` where none was looked up."""


def undone(opening: Callable[Concatenate[Undo, P], T]) -> Callable[P, Block[T]]:
    """Make a function that opens something return a context manager.

    Args:
        opening: Gets an `Undo` before its own arguments, and pushes on it the steps that close the block again. It
            returns what the `with` statement gives.

    Example:
        >>> from torchpeek.undo import undone
        >>> @undone
        ... def setting(undo, settings, name, value):
        ...     undo.push(settings.pop, name, None)
        ...     settings[name] = value
        >>> settings = {}
        >>> with setting(settings, "quiet", True):
        ...     print(settings)
        {'quiet': True}
        >>> settings
        {}
    """

    @functools.wraps(opening)
    def made(*args: P.args, **kwargs: P.kwargs) -> Block[T]:
        return _FunctionBlock(opening, args, kwargs)

    return made


class _FunctionBlock(Block[T]):
    def __init__(self, opening: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._undos = []
        self._opening, self._args, self._kwargs = opening, args, kwargs

    def _open(self, undo: Undo) -> T:
        return self._opening(undo, *self._args, **self._kwargs)

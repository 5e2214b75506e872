"""Delay signals: while a change is half done, no handler that Python calls may raise an exception."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # it has no types
import _thread
import functools
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from torchpeek.forks import in_child

# The functions of C. Those of the module `signal` make an enum of each handler, which takes longer than all the rest.
_get: Callable[[int], Any] = _signal.getsignal
_set: Callable[[int, Any], Any] = _signal.signal

_NUMBERS = tuple(sorted(_signal.valid_signals()))
_get_ident = threading.get_ident


class Level:
    """A part of a program during which signals are delayed, or let through.

    Python handles signals in the main thread, so in other threads a level does nothing. Levels are nested, and the
    innermost decides. While a level is closed, gates stand in the place of all handlers that are functions of Python. A
    gate notes that its signal has arrived, each signal once, and the handlers are called when no closed level decides
    any more. Handlers that are no functions (SIG_DFL, SIG_IGN, those of faulthandler) are left alone.

    All methods may be called again where an exception has cut them short.
    """

    __slots__ = ("_gates", "_is_gated", "is_open")

    def __init__(self, is_open: bool = False) -> None:
        self.is_open = is_open
        self._is_gated = False  # whether `begin` has run to its end
        self._gates: list[_Gate] = []  # those that this level has put in the place of handlers

    @property
    def is_begun(self) -> bool:
        """Whether there is something to end."""
        return self in _levels or bool(self._gates)

    def begin(self) -> None:
        """Make this level the innermost. From here on no signal raises, unless it is open."""
        if self._is_gated or _get_ident() != _main_thread.number:
            return
        inside_closed = False
        if self not in _levels:
            inside_closed = bool(_levels) and not _levels[-1].is_open  # no handler can have been installed since
            _levels.append(self)  # first, so that each gate holds from the moment at which it is installed
        if not (self.is_open or inside_closed):
            handlers = list(map(_get, _NUMBERS))
            for place, gate in _missing_gates(handlers):
                if gate.handler is not handlers[place]:  # equal to it, and another object
                    gate = _Gate(gate.number, handlers[place])
                self._gates.append(gate)
                _set(gate.number, gate)
        self._is_gated = True

    def begin_again(self) -> None:
        """Begin, or put gates in the place of handlers that were installed since this level has begun."""
        self._is_gated = False
        self.begin()

    def guard(self, is_guarded: Callable[[FrameType], bool]) -> None:
        """End this level, and leave its gates: they go on to delay the signals that interrupt certain code.

        Args:
            is_guarded: Says of a frame whether it runs that code.
        """
        if self._is_gated:  # not in other threads than the main one
            _guards[self] = is_guarded
        self._is_gated = False
        self._leave()

    def end(self) -> None:
        """Put the handlers back, and call those whose signals were delayed, if no outer level delays them.

        A handler that was installed in the meantime stays.
        """
        self._is_gated = False
        gates = self._gates
        # Still closed: a handler that is put back may raise, and then this is called again.
        while gates and _get_ident() == _main_thread.number:
            gate = gates[-1]
            if _get(gate.number) is gate:
                _set(gate.number, gate.handler)
            gates.pop()
        _guards.pop(self, None)
        self._leave()

    def _leave(self) -> None:
        if self in _levels:
            _levels.remove(self)
            if _pending and (not _levels or _levels[-1].is_open):
                deliver()


# The handlers that were looked at last, without gates and with them, and the places and gates of those that need one.
_known: list[tuple[list[Any], list[tuple[int, _Gate]]]] = []


def _missing_gates(handlers: list[Any]) -> list[tuple[int, _Gate]]:
    """Which handlers in this list, which has a place for each signal, are functions of Python and no gates.

    The list is nearly always one of the last two, and a single comparison shows that.
    """
    for known, gates in _known:
        if known == handlers:
            return gates
    gates = [
        (place, _Gate(_NUMBERS[place], handler))
        for place, handler in enumerate(handlers)
        if callable(handler) and type(handler) is not _Gate
    ]
    _known[:] = [(handlers, gates), *_known[:1]]
    return gates


class _Gate:
    """Stands in the place of a handler. One that is left behind passes its signals on."""

    __slots__ = ("handler", "number")

    def __init__(self, number: int, handler: Any) -> None:
        self.number = number
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        level = _levels[-1] if _levels else None
        if _guards and (level is None or level.is_open) and _is_guarded(frame):
            _pending.setdefault(number, (self, frame))
        elif level is None or level.is_open:
            self.call(number, frame)
        else:
            _pending.setdefault(number, (self, frame))

    def call(self, number: int, frame: FrameType | None) -> None:
        """Call the handler."""
        level = _levels[-1] if _levels else None
        if level is None or not level.is_open:
            self.handler(number, frame)
            return
        level.is_open = False  # the clean-up that follows is not interrupted again
        self.handler(number, frame)
        level.is_open = True  # reached if the handler did not raise


_levels: list[Level] = []  # innermost last
_pending: dict[int, tuple[_Gate, FrameType | None]] = {}  # the signals that arrived, in their order


_guards: dict[Level, Callable[[FrameType], bool]] = {}


def _is_guarded(frame: FrameType | None) -> bool:
    """Whether the innermost frames run guarded code: what was interrupted, and functions that it called."""
    guards = tuple(_guards.values())  # a copy: a block that is garbage may end meanwhile, in any thread
    for _ in range(_GUARDED_DEPTH):
        if frame is None:
            return False
        if any(is_guarded(frame) for is_guarded in guards):
            return True
        frame = frame.f_back
    return False


_GUARDED_DEPTH = 4


def finalised(function: Callable[..., Any], *args: Any) -> None:
    """Call a function of a finalizer, such as one of `weakref.finalize`, in which Python drops every exception.

    Signals that arrive meanwhile are sent again, by another thread, so that their handlers are called afterwards.
    """
    level = Level()
    again: list[int] = []
    try:
        try:
            try:
                level.begin()
            finally:  # also where an exception of another thread strikes before: what it gives back may be a lock
                function(*args)
        finally:
            if level in _levels and not (
                len(_levels) > 1 and not _levels[-2].is_open
            ):  # nobody else calls the handlers
                again += _pending
                _pending.clear()
            level.end()
    finally:
        level.end()  # for a second signal, where the first has struck before its gate was there
        for number in again:
            _thread.start_new_thread(_signal.raise_signal, (number,))


def is_of_handler(error: BaseException | None) -> bool:
    """Whether a signal's handler has raised an exception, or one that is the cause of it.

    Then its traceback has a call of the handler. An exception of another thread leaves no such trace.
    """
    codes = {_code(handler) for handler in map(_get, _NUMBERS) if callable(handler)} | {_code(_Gate.call)}
    met: set[int] = set()
    while error is not None and id(error) not in met:
        met.add(id(error))
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code in codes:
                return True
            trace = trace.tb_next
        error = error.__cause__  # not the context, which may be an exception that the caller of torchpeek handles
    return False


def _code(handler: Any) -> CodeType | None:
    """The code of a function, a method, a partial function, or an object that can be called. None for those of C."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not hasattr(handler, "__code__"):
        handler = getattr(handler, "__func__", type(handler).__call__)
    code: CodeType | None = getattr(handler, "__code__", None)
    return code


def are_delayed() -> bool:
    """Whether signals have arrived that are delayed."""
    return bool(_pending)


def deliver() -> None:
    """Call the handlers whose signals were delayed, each of them, also where the one before raises."""
    number = next(iter(_pending), None)
    if number is None:
        return
    gate, frame = _pending.pop(number)
    try:
        gate.call(number, frame)
    finally:
        deliver()


class _MainThread:
    """The identifier of the main thread. Python's own function for it takes longer than the rest of a level."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = threading.main_thread().ident

    def after_fork(self) -> None:
        """In a forked process: the thread that forked is its main thread.

        Where that is another one than before, put the handlers back: nobody else does.
        """
        before, self.number = self.number, _get_ident()
        if before == self.number:
            return
        for level in reversed(_levels):
            for gate in level._gates:
                if _get(gate.number) is gate:
                    _set(gate.number, gate.handler)
        _levels.clear()
        _guards.clear()
        _pending.clear()


_main_thread = _MainThread()
in_child(_main_thread.after_fork)

"""Signals of a process that runs a command: each ends it with one line and the status 128 + its number.

SIGINT (Ctrl-C), SIGTERM and SIGHUP are handled alike. One that was ignored when the process started, as `nohup` has it,
stays ignored. What a signal does depends on the phase of the process:

1. Loading. Nothing is written yet and no model exists. The process ends at once, without an exception: an import that
   is interrupted by one may turn it into another, drop it, or abort the process.
2. Running, from `start_running` on. The first signal raises KeyboardInterrupt in the main thread, once no import is
   going on. The command then writes what was done. A second signal, a second later or more, ends the process at once.
3. Ending, from `end_with` on. The status is decided and everything is printed. The process ends at once with it.

So at most one KeyboardInterrupt is raised. Code that turns it into another exception, or catches it and goes on, does
not change the status: see `interruption` and `raise_if_interrupted`.

This file imports little, because a signal before `take_over` has to wait, or is a traceback: see `__main__.py`.
"""

from __future__ import annotations

import atexit
import os
import sys
import time

from torchpeek.system_errors import ignored

TYPE_CHECKING = False  # `typing` takes long to import
if TYPE_CHECKING:
    import signal
    from types import FrameType
    from typing import Any
else:
    import _signal as signal  # what `signal` is made of, and built in; `signal` itself imports `enum`, which takes long

_LOADING, _RUNNING, _ENDING = "loading", "running", "ending"
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_SECONDS_TO_REPEAT = 0.05
_LONGEST_IMPORT = 2.0  # seconds that a signal waits for an import to end
_SAME = 1.0  # seconds in which further signals are the same request: a key that is held, or a shell that sends it twice
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class _Process:
    """The state of this process, if it runs a command."""

    def __init__(self) -> None:
        self.id: int | None = None  # None where signals are not handled here
        self.phase = _LOADING
        self.status = 0  # in the last phase
        self.signal: int | None = None  # the first that arrived while the command ran
        self.arrived = 0.0
        self.raised = False
        self.consequence = "what was written so far is complete"  # of an interruption


_process = _Process()


def take_over() -> None:
    """Handle the signals of this process from now on. Outside the main thread, nothing changes.

    Nor does anything in a worker process of `multiprocessing`, which imports the file of the command again.
    """
    if _process.id is not None or _is_worker():
        return
    try:
        for name in _NAMES:
            number = getattr(signal, name, None)
            # A signal that the parent process ignores, or that a host program handles, stays as it is.
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, _handle if name == "SIGINT" else _handle_as_ctrl_c)
    except ValueError:
        return
    _process.id = os.getpid()
    # Python resets these handlers when it ends, which takes long with torch, so the signals are ignored then. This exit
    # handler is registered first and so runs last: those of libraries, which may hang, can be interrupted.
    atexit.register(_ignore_signals)
    sys.unraisablehook = _repeat_dropped_interrupt


def _is_worker() -> bool:
    multiprocessing = sys.modules.get("multiprocessing")  # imported in every worker
    return multiprocessing is not None and multiprocessing.parent_process() is not None


def start_running() -> None:
    """From now on a signal raises KeyboardInterrupt, so that what the command has begun is cleaned up."""
    if _process.phase == _LOADING:
        _process.phase = _RUNNING


def set_consequence(words: str) -> None:
    """Say what an interruption leaves behind, for the line that an interrupted command ends with."""
    _process.consequence = words


def consequence() -> str:
    """What an interruption leaves behind."""
    return _process.consequence


def end_with(status: int) -> None:
    """From now on a signal ends the process at once with this status. Everything must be printed."""
    if _process.id is None:
        return
    _process.status, _process.phase = status, _ENDING


def interruption() -> int | None:
    """The number of the signal that interrupted the command, also where code has caught its KeyboardInterrupt."""
    return _process.signal


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt again if code has caught it and gone on. Call it between two steps of the work."""
    if _process.signal is not None and _process.raised and _process.phase == _RUNNING:
        raise KeyboardInterrupt


def interrupted_status() -> int:
    """The exit status of a command that was interrupted: 130 after Ctrl-C."""
    return 128 + (_process.signal or signal.SIGINT)


def write_interrupted(words: str | None = None) -> None:
    """Write the line of an interrupted command, past all buffers and also where nobody reads it."""
    with ignored():  # after SIGHUP there is no terminal
        os.write(2, f"error: interrupted; {words or _process.consequence}\n".encode())


def _handle(number: int, frame: FrameType | None) -> None:
    process = _process
    if os.getpid() != process.id:  # a child process that a library has forked
        _handle_in_child(number)
        return
    if process.phase == _ENDING:
        os._exit(process.status)
    if process.phase == _LOADING:
        write_interrupted("nothing was written")
        os._exit(128 + number)
    now = time.monotonic()
    if process.signal is None:
        process.signal, process.arrived = number, now
    if not process.raised:
        if _imports(frame) and now - process.arrived < _LONGEST_IMPORT:
            _repeat(number)
            return
        process.raised, process.arrived = True, now  # a second signal may have waited for the import, too
        raise KeyboardInterrupt
    if now - process.arrived > _SAME:
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)
        write_interrupted("the report may be missing")
        os._exit(interrupted_status())


def _handle_as_ctrl_c(number: int, frame: FrameType | None) -> None:
    """Handle the signal like SIGINT at this moment: its handler may delay it until a file is complete."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or handler is signal.default_int_handler:  # a background job of a shell ignores SIGINT
        handler = _handle
    handler(number, frame)


def _handle_in_child(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _imports(frame: FrameType | None) -> bool:
    """Whether an import is going on in this frame or one of its callers."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def _repeat(number: int) -> None:
    """Send the signal to the main thread again, a little later."""
    import threading

    def send() -> None:
        if hasattr(signal, "pthread_kill"):  # ends a sleep of the main thread, too
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        else:
            signal.raise_signal(number)

    timer = threading.Timer(_SECONDS_TO_REPEAT, send)
    timer.daemon = True
    timer.start()


def _repeat_dropped_interrupt(dropped: Any) -> None:
    """Repeat a KeyboardInterrupt that Python drops.

    Python drops every exception that is raised in a `__del__` method or in a callback of a weak reference, and only
    reports it to `sys.unraisablehook`. What is raised in this function is dropped, too.
    """
    if os.getpid() != _process.id or not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
    elif _process.phase == _RUNNING:
        _process.raised = False
        _repeat(_process.signal or signal.SIGINT)


def _ignore_signals() -> None:
    if os.getpid() == _process.id:
        for name in _NAMES:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)

"""Signals of a running command: SIGTERM ends it as Ctrl-C does, and no Ctrl-C is lost."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SECONDS_TO_REPEAT = 0.05


@contextmanager
def command_signals() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C inside the block, and repeat a Ctrl-C that Python drops.

    Python drops every exception that is raised in a `__del__` method or in a callback of a weak reference, and only
    reports it to `sys.unraisablehook`. Imports run such callbacks, so a Ctrl-C while torch is imported could be lost.
    """
    hook = sys.unraisablehook

    def repeat_interrupt(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            hook(dropped)
            return
        # Later, because what is raised in this function is dropped, too.
        timer = threading.Timer(_SECONDS_TO_REPEAT, signal.raise_signal, [signal.SIGINT])
        timer.daemon = True
        timer.start()

    handler = signal.getsignal(signal.SIGTERM)
    replaced = threading.current_thread() is threading.main_thread() and handler is signal.SIG_DFL
    if replaced:  # clusters end a job with SIGTERM
        signal.signal(signal.SIGTERM, _as_ctrl_c)
    sys.unraisablehook = repeat_interrupt
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if replaced:
            signal.signal(signal.SIGTERM, handler)


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM like SIGINT at this moment: its handler may delay it until a file is complete."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # a background job of a shell ignores SIGINT
        raise KeyboardInterrupt
    handler(number, frame)

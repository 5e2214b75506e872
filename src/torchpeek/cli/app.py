"""The entry point: dispatch, and what an error looks like."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO

from cyclopts import App, CycloptsError
from rich.console import Console

from torchpeek._version import __version__
from torchpeek.cli.cam import cam
from torchpeek.cli.evaluate import evaluate
from torchpeek.cli.features import features
from torchpeek.cli.gradients import gradients
from torchpeek.cli.kernels import kernels
from torchpeek.cli.layers import layers
from torchpeek.cli.methods import methods
from torchpeek.cli.metrics import metrics
from torchpeek.errors import Notice, TorchpeekError

OK, INCOMPLETE, MISTAKE, INTERRUPTED = 0, 1, 2, 130

app = App(
    name="torchpeek",
    help=(
        "Look inside any PyTorch network: what its layers see, what flows back, and which part of the picture "
        "decided.\n\nExit "
        "status: 0 all done; 1 something was left out, and named; 2 the request has to change."
    ),
    version=__version__,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
for command in (cam, evaluate, layers, kernels, features, gradients, methods, metrics):
    app.command(command)


def main(tokens: Sequence[str] | None = None) -> NoReturn:
    """Run the command in `tokens`, or in sys.argv, and exit."""
    given = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in given
    filters, show = list(warnings.filters), warnings.showwarning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may have what no encoding has
            stream.reconfigure(errors="backslashreplace")
    ended = signal.getsignal(signal.SIGTERM)
    own = threading.current_thread() is threading.main_thread() and ended is signal.SIG_DFL
    if own:  # what ends a job of a cluster
        signal.signal(signal.SIGTERM, _as_ctrl_c)
    warnings.simplefilter("always", Notice)
    noted: set[str] = set()

    def say_once(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        """Python's own "once" forgets whenever anybody catches warnings, as whoever reads a picture does."""
        if not issubclass(category, Notice):
            show(message, category, *where, **more)
        elif str(message) not in noted:
            noted.add(str(message))
            _say("note", str(message))

    warnings.showwarning = say_once
    try:
        status = app(given, exit_on_error=False)
        sys.stdout.flush()
        sys.exit(status or OK)
    except CycloptsError:  # it has said so itself
        sys.exit(MISTAKE)
    except TorchpeekError as error:
        if debug:
            raise
        _say("error", str(error))
        sys.exit(MISTAKE)
    except KeyboardInterrupt:
        if debug:
            raise
        _say("error", "interrupted; what was written so far is whole")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(OK)
    except Exception as error:
        if debug:
            raise
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
        _say("error", f"{type(error).__name__}: {error} (--debug shows where){notes}")
        sys.exit(MISTAKE)
    finally:
        warnings.filters, warnings.showwarning = filters, show
        if own:
            signal.signal(signal.SIGTERM, ended)


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    """By whatever handles Ctrl-C at that moment, which may hold it back until something is whole."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # a shell's background job ignores it
        raise KeyboardInterrupt
    handler(number, frame)


def _say(kind: str, words: str, file: TextIO | None = None) -> None:
    style = {"error": "bold red", "note": "yellow"}[kind]
    console = Console(file=file or sys.stderr, soft_wrap=True, highlight=False)
    console.print(f"[{style}]{kind}:[/] ", end="")
    console.print(words, markup=False)

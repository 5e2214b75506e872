"""The entry point: run a command, show its errors and notices, and exit with its status."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError
from rich.console import Console

from torchpeek._version import __version__
from torchpeek.cli.command_line import check_not_empty, parse_error, prepared_words
from torchpeek.cli.commands import COMMANDS
from torchpeek.cli.help_page import NARROW, StackedPanels
from torchpeek.cli.options import ConsoleOptions, choice, option
from torchpeek.cli.signals import command_signals
from torchpeek.errors import Notice, TorchpeekError

OK, INCOMPLETE, MISTAKE, INTERRUPTED = 0, 1, 2, 130

app = App(
    name="torchpeek",
    help=(
        "Look inside any PyTorch network: what its layers see, what flows back, and which part of the picture "
        "decided.\n\nExit status: 0 everything was done; 1 something was skipped, and is named; 2 the request is "
        "wrong; 130 interrupted."
    ),
    version=__version__,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


def install_completion(
    *,
    shell: Annotated[
        Literal["bash", "zsh", "fish"] | None,
        choice("bash, zsh or fish. By default, the shell that this command runs in."),
    ] = None,
    out: Annotated[
        Path | None,
        option("The folder to write the script to. By default, the one that the shell reads.", "--out", "-o"),
    ] = None,
    console: ConsoleOptions = ConsoleOptions(),
) -> int:
    """Let the shell complete commands, options, names of methods and metrics, and files. It changes no start-up file.

    Example: torchpeek --install-completion --shell bash
    """
    from torchpeek.cli.completion import run

    return run(app, shell, out)


for command in COMMANDS:
    app.command(command)
app.command(install_completion, name="--install-completion")


def main(tokens: Sequence[str] | None = None) -> NoReturn:
    """Run the command in `tokens`, or in sys.argv, and exit."""
    words = prepared_words(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in words  # read here, because an error may come before the options are parsed
    filters, show = list(warnings.filters), warnings.showwarning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold characters that the encoding lacks
            stream.reconfigure(errors="backslashreplace")
    warnings.simplefilter("always", Notice)
    printed: set[str] = set()

    def show_notice_once(message: Warning | str, category: type[Warning], *position: Any, **more: Any) -> None:
        # Python's own filter "once" forgets whenever any code catches warnings, as reading a picture does.
        if not issubclass(category, Notice):
            show(message, category, *position, **more)
        elif str(message) not in printed:
            printed.add(str(message))
            _print_line("note", str(message))

    warnings.showwarning = show_notice_once
    console = Console()
    app.help_formatter = StackedPanels() if console.width < NARROW else "default"
    try:
        with command_signals():
            check_not_empty(words)
            status = app(words, console=console, exit_on_error=False, print_error=False)
            sys.stdout.flush()
        sys.exit(status or OK)
    except CycloptsError as error:  # printed here, because cyclopts would fold a path at the edge of the terminal
        _print_line("error", parse_error(error, words))
        sys.exit(MISTAKE)
    except TorchpeekError as error:
        if debug:
            raise
        _print_line("error", str(error))
        sys.exit(MISTAKE)
    except KeyboardInterrupt:
        if debug:
            raise
        _print_line("error", "interrupted; what was written so far is complete")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of the output, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(OK)
    except Exception as error:
        if debug:
            raise
        added = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
        _print_line("error", f"{type(error).__name__}: {error} (--debug shows the traceback){added}")
        sys.exit(MISTAKE)
    finally:
        warnings.filters, warnings.showwarning = filters, show


def _print_line(label: str, text: str) -> None:
    style = {"error": "bold red", "note": "yellow"}[label]
    console = Console(file=sys.stderr, soft_wrap=True, highlight=False)
    console.print(f"[{style}]{label}:[/] ", end="")
    console.print(text, markup=False)

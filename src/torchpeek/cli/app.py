"""The entry point: run a command, show its errors and notices, and exit with its status."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from torchpeek._version import __version__
from torchpeek.cli.command_line import check_not_empty, parse_error, prepared_words
from torchpeek.cli.commands import COMMANDS
from torchpeek.cli.help_page import NARROW, StackedPanels
from torchpeek.cli.job_file import with_job_file
from torchpeek.cli.options import ConsoleOptions, choice, option
from torchpeek.cli.signals import consequence, interrupted_status, interruption, write_interrupted
from torchpeek.cli.streams import finish_streams, take_over_streams
from torchpeek.cli.terminal import print_message, print_traceback
from torchpeek.errors import Notice, TorchpeekError
from torchpeek.printable import printable

OK, INCOMPLETE, MISTAKE, INTERRUPTED = 0, 1, 2, 130

app = App(
    name="torchpeek",
    help=(
        "Look inside any PyTorch network: what its layers see, what flows back, and which part of the picture "
        "decided.\n\nExit status: 0 everything was done; 1 something was skipped, and is named; 2 the request is "
        "wrong, or a file could not be written; 130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP."
    ),
    version=__version__,
    default_parameter=Parameter(json_list=False, json_dict=False),  # a name may begin with a bracket
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


def run_process() -> int:
    """Run the command of this process. Returns its exit status, after everything is printed."""
    take_over_streams()
    words = sys.argv[1:]
    try:
        status = run(words)
    except KeyboardInterrupt:
        if "--debug" in words:
            print_traceback(*sys.exc_info())
        status = INTERRUPTED
    except (Exception, SystemExit):
        if "--debug" not in words:  # an error of this program
            raise
        print_traceback(*sys.exc_info())
        status = MISTAKE
    if problem := finish_streams():
        _print_line("error", f"standard output cannot be written ({problem})")
        status = MISTAKE
    if interruption() is None:
        return status
    # Code may have turned the KeyboardInterrupt into another exception, or have caught it.
    write_interrupted()
    return interrupted_status()


def run(tokens: Sequence[str]) -> int:
    """Run the command in `tokens`. Returns its exit status. With --debug, an error or a Ctrl-C is raised."""
    words = prepared_words(tokens)
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
            show(printable(str(message), lines=True), category, *position, **more)
        elif str(message) not in printed:
            printed.add(str(message))
            _print_line("note", str(message))

    warnings.showwarning = show_notice_once
    console = Console()
    app.help_formatter = StackedPanels() if console.width < NARROW else "default"
    try:
        check_not_empty(words)
        words = with_job_file(app, words)
        status = app(words, console=console, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return int(status or OK)
    except CycloptsError as error:  # printed here, because cyclopts would fold a path at the edge of the terminal
        _print_line("error", parse_error(error, words))
        return MISTAKE
    except KeyboardInterrupt:
        if debug:
            raise
        if interruption() is None:  # not in a process of its own, which writes the line itself
            _print_line("error", f"interrupted; {consequence()}")
        return INTERRUPTED
    except (Exception, SystemExit) as error:  # code of the model may call sys.exit(), also with the status 0
        if debug:
            raise
        if isinstance(error, TorchpeekError):
            _print_line("error", str(error))
        elif interruption() is None:  # otherwise it may be the KeyboardInterrupt in another form
            added = "".join(f"\n{note}" for note in getattr(error, "__notes__", []))
            _print_line("error", f"{type(error).__name__}: {error} (--debug shows the traceback){added}")
        return MISTAKE
    finally:
        warnings.filters, warnings.showwarning = filters, show


def _print_line(label: str, text: str) -> None:
    print_message(label, text, {"error": "bold red", "note": "yellow"}[label])

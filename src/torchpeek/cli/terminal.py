"""The only place of the commands that writes texts to stdout and stderr. Each name in them is escaped."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType

from rich.console import Console
from rich.text import Text

from torchpeek.printable import printable, printable_lines


def print_text(*lines: str) -> None:
    """Print lines of text, which may have names in them. A table is printed with `print_table`."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))


def print_message(label: str, text: str, style: str) -> None:
    """Print a label in a style of rich, such as "error: ", and a text, on stderr."""
    console = Console(file=sys.stderr, soft_wrap=True, highlight=False)
    # A Text, because a plain str would be read as markup, and ":b:" as an emoji.
    console.print(Text.assemble((f"{label}: ", style), printable_lines(text)))


def print_progress(text: str) -> None:
    """Print a line about what is being done, on stderr."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def print_traceback(type_: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
    """Print an exception with its traceback on stderr, as Python does. It may quote anything."""
    sys.stderr.write(printable("".join(traceback.format_exception(type_, error, frames)), lines=True))

"""The panels of a help page in a narrow terminal: each name in a line of its own, its text indented below."""

from __future__ import annotations

from io import StringIO
from textwrap import wrap
from typing import Any

from rich.console import Console

NARROW = 66
"""In fewer columns, cyclopts' own panels fold the names of options."""


class StackedPanels:
    """The formatter of cyclopts' help pages that folds text only between words, and names never."""

    def __call__(self, console: Console, options: Any, panel: Any) -> None:
        """Print one panel."""
        if not panel.entries:
            return
        lines = [f"{_plain(panel.title)}:"]
        for entry in panel.entries:
            lines.append(f"  {_names(entry)}")
            parts = [_plain(entry.description)]
            parts += ["[required]"] if getattr(entry, "required", False) else []
            parts += [f"[default: {entry.default}]"] if getattr(entry, "default", None) else []
            text = " ".join(filter(None, parts))
            indented = wrap(text, max(20, console.width - 6), break_long_words=False, break_on_hyphens=False)
            lines += [f"      {line}" for line in indented]
        _print(console, "\n".join(lines))

    def render_usage(self, console: Console, options: Any, usage: Any) -> None:
        """Print the line with the usage."""
        if usage:
            _print(console, f"Usage: {_plain(usage).removeprefix('Usage: ')}")


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print()


def _names(entry: Any) -> str:
    if labels := getattr(entry, "display_labels_with_metavar", None):
        return " ".join(labels)
    return " ".join((*entry.names, *entry.shorts))


def _plain(renderable: Any) -> str:
    if renderable is None:
        return ""
    console = Console(file=StringIO(), width=10_000, color_system=None, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(renderable)
    return " ".join(captured.get().split())

"""The command line.

`commands.py` declares every command and its options, which are grouped in `options.py`; `option_values.py` checks their
values. None of these imports torch, so help and wrong options are answered at once. The function of a command imports
the file of the same name and calls its `run`, which does the work: parse, call, print.

This file imports next to nothing, because the signals of a process wait until it is imported: see `__main__.py`.
"""

from __future__ import annotations

from torchpeek.cli import signals

TYPE_CHECKING = False  # `typing` takes longer to import than this package
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = ["main"]


def main(tokens: Sequence[str] | None = None) -> NoReturn:
    """Run the command in `tokens` and exit with its status. Without tokens, run that of the process, in sys.argv."""
    if tokens is not None:
        from torchpeek.cli.app import run

        raise SystemExit(run(tokens))
    signals.take_over()
    try:
        from torchpeek.cli.app import run_process

        status = run_process()
        signals.end_with(status)
    except KeyboardInterrupt:  # at most one is raised; here it came between two steps of the last lines
        status = signals.interrupted_status()
        signals.write_interrupted()
        signals.end_with(status)
    raise SystemExit(status)

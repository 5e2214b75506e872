"""Delay Ctrl-C and all other signals while a change is half done, and let them through while a model runs."""

from __future__ import annotations

from torchpeek.signal_gate import Level, are_delayed
from torchpeek.undo import Undo, undone


@undone
def uninterrupted(undo: Undo) -> None:
    """Delay signals until the end of the block, except in `interruptible` parts of it.

    Blocks may be nested, also inside an interruptible part. Only handlers that are functions of Python are delayed, so
    an exception that another thread sends still strikes: see `torchpeek.undo`.
    """
    undo.delays_signals = True


@undone
def interruptible(undo: Undo) -> None:
    """Let signals through in a long part of an `uninterrupted` block, also those that were delayed before."""
    level = Level(is_open=True)
    undo.push(level.end)
    level.begin()


def let_interrupts_through() -> None:
    """Call now the handlers of signals that an `uninterrupted` block has delayed."""
    if are_delayed():
        with interruptible():
            pass

"""Whether the current thread records gradients."""

from __future__ import annotations

import threading
from typing import Any

import torch

from torchpeek.undo import Undo, undone


@undone
def grad_mode(undo: Undo, enabled: bool, *, delays_signals: bool = False) -> GradMode:
    """Inside the block inference mode is off, and gradients are on or off. On exit both are as they were before.

    Args:
        undo: What restores them.
        enabled: Whether gradients are on.
        delays_signals: Whether the block is an `uninterrupted` one as well.

    Returns:
        What is restored.
    """
    undo.delays_signals = undo.delays_signals or delays_signals
    modes = _open_modes()
    mode = GradMode(torch.is_grad_enabled())
    undo.push_local(_end, modes, mode, undo)
    modes.append(mode)
    # Torch's guard may hold as soon as it is made. In this form nothing can strike before it is in the list. The class
    # of Python around it, torch.inference_mode, takes several times as long.
    mode.guards.extend(map(torch._C._InferenceMode, (False,)))
    mode.guards[0].__enter__()
    torch._C._set_grad_enabled(enabled)
    return mode


class GradMode:
    """An open block: whether gradients were on before it, and torch's guard of inference mode."""

    __slots__ = ("before", "guards")

    def __init__(self, before: bool) -> None:
        self.before = before
        self.guards: list[Any] = []

    def keep(self) -> None:
        """Let gradients stay on or off, as they are now, when the block ends. May be called again before that."""
        self.before = torch.is_grad_enabled()


_THREAD = threading.local()  # `modes`: the open blocks of this thread, the innermost last

_ABANDONED: list[GradMode] = []
"""Blocks whose end came too late. A guard that is freed without its `__exit__` would change the mode at that moment."""


def _open_modes() -> list[GradMode]:
    modes: list[GradMode] | None = getattr(_THREAD, "modes", None)
    if modes is None:
        modes = _THREAD.modes = []
    return modes


def _end(modes: list[GradMode], mode: GradMode, undo: Undo) -> None:
    """End a block. May be called again.

    An exception from outside may keep the `__exit__` of a block from running. Its steps then run late: when the garbage
    collector finds it, perhaps in the middle of another block, or after the blocks around it have ended.

    1. A block that ends in time ends those inside it, too. Their own ends, which come later, change nothing.
    2. If a block ends late, and others were opened after it, these still run. They restore what it would have restored.
    """
    place = next((i for i, each in enumerate(modes) if each is mode), None)
    if place is None:
        return
    later = modes[place + 1 :]
    if later and undo.is_late:
        later[0].before = mode.before
        _ABANDONED.append(mode)
        del modes[place]
        return
    _ABANDONED.extend(later)
    for guard in mode.guards:
        guard.__exit__(None, None, None)  # a second time it does nothing
    torch._C._set_grad_enabled(mode.before)
    del modes[place:]

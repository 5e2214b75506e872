"""Whether the current thread records gradients."""

from __future__ import annotations

from typing import Any

import torch

from torchpeek.undo import Undo, undone


@undone
def grad_mode(undo: Undo, enabled: bool, *, delays_signals: bool = False) -> None:
    """Inside the block inference mode is off, and gradients are on or off. On exit both are as they were before.

    Args:
        undo: What restores them.
        enabled: Whether gradients are on.
        delays_signals: Whether the block is an `uninterrupted` one as well.
    """
    undo.delays_signals = undo.delays_signals or delays_signals
    guard: Any = torch._C._InferenceMode(False)  # the class of Python around it takes several times as long
    undo.push_local(torch._C._set_grad_enabled, torch.is_grad_enabled())
    undo.push_local(guard.__exit__, None, None, None)  # before it is entered, and a second time, it does nothing
    guard.__enter__()
    torch._C._set_grad_enabled(enabled)

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
    undo.push_local(torch._C._set_grad_enabled, torch.is_grad_enabled())
    guards: list[Any] = []
    undo.push_local(_end, guards)
    # Torch's guard may hold as soon as it is made. In this form nothing can strike before it is in the list. The class
    # of Python around it, torch.inference_mode, takes several times as long.
    guards.extend(map(torch._C._InferenceMode, (False,)))
    guards[0].__enter__()
    torch._C._set_grad_enabled(enabled)


def _end(guards: list[Any]) -> None:
    for guard in guards:
        guard.__exit__(None, None, None)  # a second time it does nothing

"""Modes that see every function of torch that the current thread calls."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from torchpeek.undo import Undo, undone


@undone
def active(undo: Undo, mode: TorchFunctionMode) -> None:
    """Make the mode the thread's innermost. On exit the thread has the modes that it had before.

    The whole stack of modes is restored, because an interrupt inside torch's own code may leave modes on it or off it.

    Args:
        undo: What restores it.
        mode: The mode.
    """
    undo.push_local(_restore, _active_modes())
    torch._C._push_on_torch_function_stack(mode)


def _restore(modes: list[Any]) -> None:
    for _ in _active_modes():
        torch._C._pop_torch_function_stack()
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)


def _active_modes() -> list[Any]:
    return [torch._C._get_function_stack_at(index) for index in range(torch._C._len_torch_function_stack())]

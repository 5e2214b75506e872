"""Modes that see every function, or every operation, of torch that the current thread calls."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

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


@undone
def active_in_dispatch(undo: Undo, mode: TorchDispatchMode) -> None:
    """Make the mode the thread's innermost. On exit it is off, with those that an interrupt has left on it.

    Args:
        undo: What switches it off.
        mode: The mode.
    """
    undo.push_local(_switch_off, mode)
    torch._C._push_on_torch_dispatch_stack(mode)


def _switch_off(mode: TorchDispatchMode) -> None:
    while any(each is mode for each in _get_current_dispatch_mode_stack()):
        torch._C._pop_torch_dispatch_stack(None)

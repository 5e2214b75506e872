"""Modes that see every function, or every operation, of torch that the current thread calls."""

from __future__ import annotations

import sys
import traceback
from contextlib import _GeneratorContextManager, suppress
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from torchpeek.undo import Undo, undone


@undone
def active(undo: Undo, mode: TorchFunctionMode) -> None:
    """Make the mode the thread's innermost. On exit the thread has the modes that it had before.

    The whole stack of modes is restored, because an interrupt inside torch's own code may leave modes on it or off it.
    So is the state of a block of `DisableTorchFunction`, which may be cut before its `__exit__`: no mode would see
    anything after it.

    Args:
        undo: What restores it.
        mode: The mode.
    """
    undo.push_local(_restore, _active_modes(), torch._C._get_torch_function_state())
    torch._C._push_on_torch_function_stack(mode)


def _restore(modes: list[Any], state: torch._C._TorchFunctionState) -> None:
    _end_cut_blocks(sys.exception())
    torch._C._set_torch_function_state(state)
    for _ in _active_modes():
        torch._C._pop_torch_function_stack()
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)


def _end_cut_blocks(error: BaseException | None) -> None:
    """End torch's own blocks whose `__exit__` an exception from outside has cut short.

    Torch takes a mode off for each function in a block of `contextlib.contextmanager`, and puts it back at its end. The
    traceback keeps a block alive that was cut, and later, with the traceback, it would put the mode back after all.
    """
    met: set[int] = set()  # contexts may be in a circle
    while error is not None and id(error) not in met:
        met.add(id(error))
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code is _EXIT:
                with suppress(RuntimeError):  # it is still running
                    frame.clear()
        error = error.__context__


_EXIT = _GeneratorContextManager.__exit__.__code__


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

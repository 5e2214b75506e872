"""Read the stack of Python: which methods of which objects run. Nothing that is read stays alive for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from inspect import CO_OPTIMIZED
from sys import getrefcount
from types import FrameType
from typing import Any

from torch import nn

_UNREFERENCED = 3  # references to the copy of the variables: of the frame, of `_read`, and of getrefcount
_OUTER_CALL = nn.Module._wrapped_call_impl.__code__


def frames_from(frame: FrameType | None) -> Iterator[FrameType]:
    """Iterate over this frame and those that called it, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def variable(frame: FrameType, name: str) -> Any:
    """The value of a variable of a function that runs; None where it has none of this name, and outside functions."""
    return _read(frame, name) if frame.f_code.co_flags & CO_OPTIMIZED else None


def _read(frame: FrameType, name: str) -> Any:
    """As `variable`, of the frame of a function. The variables of a module or a class are no copy."""
    variables = frame.f_locals
    value = variables.get(name)
    # Before Python 3.13 this is a copy, which would keep all variables alive as long as the frame. Where the function
    # itself has called locals(), it is the very dict that the function got.
    if type(variables) is dict and getrefcount(variables) == _UNREFERENCED:
        variables.clear()
    return value


def first_argument(frame: FrameType) -> Any:
    """The value of the first parameter of a function that runs; None for other frames."""
    code = frame.f_code
    return variable(frame, code.co_varnames[0]) if code.co_argcount else None


def running_module(frame: FrameType) -> nn.Module | None:
    """The module of which a method runs in this frame; None for other frames. A call of a module is a method, too.

    Of the two frames that each call of a module begins with, the outer one counts as another.
    """
    code = frame.f_code
    if not code.co_argcount or code.co_varnames[0] != "self" or code is _OUTER_CALL:
        return None
    owner = _read(frame, "self")
    return owner if issubclass(type(owner), nn.Module) else None


def method_is_running(owner: object) -> bool:
    """Whether a method of this object runs in the current thread, or a wrapper of one that names it `self`."""
    return any(_names_self(frame) and variable(frame, "self") is owner for frame in frames_from(sys._getframe(1)))


def _names_self(frame: FrameType) -> bool:
    return "self" in frame.f_code.co_varnames or "self" in frame.f_code.co_cellvars

"""Read the stack of Python: which methods of which modules run."""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType

from torch import nn


def frames_from(frame: FrameType | None) -> Iterator[FrameType]:
    """Iterate over this frame and those that called it, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def running_module(frame: FrameType) -> nn.Module | None:
    """The module of which a method runs in this frame; None for other frames. A call of a module is a method, too."""
    code = frame.f_code
    if not code.co_argcount or code.co_varnames[0] != "self":
        return None
    variables = frame.f_locals
    owner = variables.get("self")
    if type(variables) is dict:  # before Python 3.13 a copy, which would keep the variables alive as long as the frame
        variables.clear()
    return owner if issubclass(type(owner), nn.Module) else None

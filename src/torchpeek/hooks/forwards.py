"""What a module's `forward` does, replaced for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn

from torchpeek.hooks.interrupts import uninterrupted

Forward: TypeAlias = Callable[..., Any]
"""Called as the module's own `forward`, with whatever that is called with."""

_ABSENT = object()


def replaceable(model: nn.Module) -> list[nn.Module]:
    """The modules below `model` whose `forward` can be replaced: all but scripted ones."""
    return [each for each in model.modules() if each is not model and not isinstance(each, torch.jit.ScriptModule)]


@contextmanager
def replaced(forwards: Iterable[tuple[nn.Module, Forward]]) -> Iterator[None]:
    """Inside, the first `forward` of each pair's module is the second; then it is as found, also an instance's own.

    The module's hooks run as ever: they are not part of its forward.
    """
    was: list[tuple[nn.Module, object]] = []
    try:
        with uninterrupted():
            for module, forward in forwards:
                was.append((module, module.__dict__.get("forward", _ABSENT)))
                module.__dict__["forward"] = forward  # not setattr, which a module may have made its own
        yield
    finally:
        with uninterrupted():
            for module, own in reversed(was):
                if own is _ABSENT:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = own

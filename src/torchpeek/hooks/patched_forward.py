"""Replace the `forward` of modules for the length of a block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, TypeAlias

import torch
from torch import nn

from torchpeek.hooks.process import current_thread
from torchpeek.undo import Undo, undone

Forward: TypeAlias = Callable[..., Any]
"""Called with the arguments of the module's own `forward`."""

_ABSENT = object()


class _PatchedForward:
    """Stands in a module for its `forward`. A deepcopy or a pickle of the model gets the module's own `forward`."""

    __slots__ = ("_forward", "_module", "_original", "_own_forward", "_thread")

    def __init__(self, module: nn.Module, own_forward: Any, forward: Forward) -> None:
        self._module, self._own_forward, self._forward = module, own_forward, forward
        self._original: Forward = module.forward
        self._thread = current_thread()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = self._forward if current_thread() == self._thread else self._original
        return function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._own_forward is not None:
            return copy.deepcopy(self._own_forward, memo)
        return MethodType(type(self._module).forward, memo.get(id(self._module), self._module))

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self._own_forward is not None:
            return _identity, (self._own_forward,)
        return getattr, (self._module, "forward")  # evaluated when the module is unpickled, before it has a patch


def _identity(value: Any) -> Any:
    return value


def replaceable(model: nn.Module) -> list[nn.Module]:
    """The modules below `model` whose `forward` can be replaced: all except scripted ones."""
    return [
        module for module in model.modules() if module is not model and not isinstance(module, torch.jit.ScriptModule)
    ]


@undone
def replaced(undo: Undo, forwards: Iterable[tuple[nn.Module, Forward]]) -> None:
    """Run another function as the `forward` of each module inside the block, and restore the module's own on exit.

    The replacement holds in the thread that entered the block; other threads run the module's own `forward`. The hooks
    of the module run as before, because they are not part of its `forward`.

    Args:
        undo: What restores them.
        forwards: Pairs of a module and the function that runs as its `forward`.
    """
    originals: list[tuple[nn.Module, object]] = []
    undo.push(_restore, originals)
    for module, forward in forwards:
        own_forward = module.__dict__.get("forward", _ABSENT)
        originals.append((module, own_forward))
        patched = _PatchedForward(module, None if own_forward is _ABSENT else own_forward, forward)
        module.__dict__["forward"] = patched  # not setattr: a module may have a `__setattr__` of its own


def _restore(originals: list[tuple[nn.Module, object]]) -> None:
    for module, own_forward in reversed(originals):
        if own_forward is _ABSENT:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = own_forward

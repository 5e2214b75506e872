"""What belongs to the process rather than to a model: saved by the first that comes, put back by the last that goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

_SHARED: dict[str, tuple[int, AbstractContextManager[Any]]] = {}
_SHARED_LOCK = threading.Lock()


@contextmanager
def shared(name: str, enter: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Be in `enter()`, together with everybody else who is in what has this name."""
    with _SHARED_LOCK:
        count, context = _SHARED.get(name) or (0, enter())
        if count == 0:
            context.__enter__()
        _SHARED[name] = count + 1, context
    try:
        yield
    finally:
        with _SHARED_LOCK:
            count, context = _SHARED[name]
            if count > 1:
                _SHARED[name] = count - 1, context
            else:
                del _SHARED[name]
                context.__exit__(None, None, None)


def is_compiled(module: nn.Module) -> bool:
    """Whether it runs compiled, and so ignores hooks that come after its first call."""
    return is_compile_wrapper(module) or module.__dict__.get("_compiled_call_impl") is not None


def is_compile_wrapper(module: nn.Module) -> bool:
    """Whether it is what torch.compile(model) returns; module.compile() returns the module itself."""
    return type(module).__name__ == "OptimizedModule"  # by name: importing the class takes seconds


@contextmanager
def eagerly(modules: Iterable[nn.Module], on_compiled: Callable[[], None] | None = None) -> Iterator[None]:
    """Where any of these is compiled, run all eagerly and call `on_compiled`: a compiled one ignores later hooks."""
    if not any(map(is_compiled, modules)):
        yield
        return
    if on_compiled is not None:
        on_compiled()
    with shared("eager", partial(torch.compiler.set_stance, "force_eager")):
        yield

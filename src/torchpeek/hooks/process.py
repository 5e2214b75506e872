"""The process around a model: settings of the whole process, the current thread, compiled and sharded modules."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from threading import get_ident
from typing import Any

import torch
from torch import nn

from torchpeek.errors import notify
from torchpeek.locks import new_lock

# thread -> the identifier that it has at present, for threads that are inside of `nested_in_pass`
_NESTED: dict[int, int] = {}
_new_identifiers = count(-2, -1)  # -1 is no thread, and those of threads are not negative


def current_thread() -> int:
    """The identifier of the thread that calls it, or another while that thread is inside of `nested_in_pass`."""
    return _NESTED.get(get_ident(), get_ident()) if _NESTED else get_ident()


@contextmanager
def nested_in_pass(is_nested: bool = True) -> Iterator[None]:
    """Inside the block this thread has another identifier, so that the hooks of the pass around it do not run.

    A hook of a model, or its `forward`, may run a model with torchpeek while torchpeek runs the first one.

    Args:
        is_nested: Whether a pass runs around the block. If not, nothing is changed.

    Yields:
        None.
    """
    if not is_nested:
        yield
        return
    thread = get_ident()
    outer = _NESTED.get(thread)
    try:
        _NESTED[thread] = next(_new_identifiers)
        yield
    finally:
        if outer is None:
            _NESTED.pop(thread, None)
        else:
            _NESTED[thread] = outer


def _forget_other_threads() -> None:
    """In a forked process: a new thread may get the number of one that is not there any more."""
    for thread in [each for each in _NESTED if each != get_ident()]:
        del _NESTED[thread]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)

_SHARED: dict[str, tuple[int, AbstractContextManager[Any]]] = {}
_SHARED_LOCK = new_lock()


@contextmanager
def shared(name: str, enter: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Enter the context manager that `enter()` makes, once for all blocks of this name that overlap in time.

    Args:
        name: Names the setting of the process.
        enter: Makes the context manager. It is called only if no block of this name is open.

    Yields:
        None.
    """
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
    """Whether the module runs compiled code, which ignores hooks that are registered after its first call."""
    return is_compile_wrapper(module) or module.__dict__.get("_compiled_call_impl") is not None


def is_compile_wrapper(module: nn.Module) -> bool:
    """Whether the module is what torch.compile(model) returns; model.compile() returns the model itself."""
    return type(module).__name__ == _COMPILE_WRAPPER


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP shards the parameters of the module over several processes."""
    return any(base.__name__ in _SHARDED_CLASSES for base in type(module).__mro__)


# Compared by name, because importing them is slow: they are in torch._dynamo and torch.distributed.
_COMPILE_WRAPPER = "OptimizedModule"
_SHARDED_CLASSES = ("FullyShardedDataParallel", "FSDPModule")


@contextmanager
def eagerly(modules: Iterable[nn.Module], block: str | None = None) -> Iterator[None]:
    """Run everything eagerly inside the block if one of these modules is compiled, so that hooks are called.

    Args:
        modules: The modules of a model.
        block: What the block does with the model, such as "recorded", for the notice if a module is compiled. None for
            no notice.

    Yields:
        None.
    """
    if not any(map(is_compiled, modules)):
        yield
        return
    if block is not None:
        notify(f"the model is compiled, and compiled code ignores hooks; it runs eagerly while it is {block}")
    with shared("eager", partial(torch.compiler.set_stance, "force_eager")):
        yield

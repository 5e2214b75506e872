"""The process around a model: settings of the whole process, the current thread, compiled and sharded modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import count
from threading import get_ident
from typing import Any

import torch
from torch import nn

from torchpeek.errors import notify
from torchpeek.forks import in_child
from torchpeek.turns import Turns
from torchpeek.undo import Undo, undone

# thread -> the identifier that it has at present, for threads that are inside of `nested_in_pass`
_NESTED: dict[int, int] = {}
_new_identifiers = count(-2, -1)  # -1 is no thread, and those of threads are not negative


def current_thread() -> int:
    """The identifier of the thread that calls it, or another while that thread is inside of `nested_in_pass`."""
    return _NESTED.get(get_ident(), get_ident()) if _NESTED else get_ident()


@undone
def nested_in_pass(undo: Undo, is_nested: bool = True) -> None:
    """Inside the block this thread has another identifier, so that the hooks of the pass around it do not run.

    A hook of a model, or its `forward`, may run a model with torchpeek while torchpeek runs the first one.

    Args:
        undo: What gives the thread its former identifier.
        is_nested: Whether a pass runs around the block. If not, nothing is changed.
    """
    if is_nested:
        thread = get_ident()
        undo.push(_identify, thread, _NESTED.get(thread))
        _identify(thread, next(_new_identifiers))


def _identify(thread: int, identifier: int | None) -> None:
    if identifier is None:
        _NESTED.pop(thread, None)
    else:
        _NESTED[thread] = identifier


def _forget_other_threads() -> None:
    """In a forked process: a new thread may get the number of one that is not there any more."""
    for thread in [each for each in _NESTED if each != get_ident()]:
        del _NESTED[thread]


in_child(_forget_other_threads)


class _SharedSetting:
    """A setting of the process, and the blocks that need it."""

    def __init__(self) -> None:
        self.undo = Undo()  # what ends the setting
        self.is_made = False
        self.users: set[object] = set()


_SHARED: dict[str, _SharedSetting] = {}
_SHARED_TURNS = Turns()


@undone
def shared(undo: Undo, name: str, enter: Callable[[], AbstractContextManager[Any]]) -> None:
    """Enter the context manager that `enter()` makes, once for all blocks of this name that overlap in time.

    Args:
        undo: What leaves it with the last of these blocks.
        name: Names the setting of the process.
        enter: Makes the context manager. It is called only if no block of this name is open.
    """
    user = object()
    undo.push(_leave_shared, name, user)
    with _SHARED_TURNS.turn():
        setting = _SHARED.setdefault(name, _SharedSetting())
        setting.users.add(user)
        if not setting.is_made:
            setting.undo.finish()  # what an exception has left half made
            setting.undo = Undo()
            setting.undo.enter_context(enter())
            setting.is_made = True


def _leave_shared(name: str, user: object) -> None:
    with _SHARED_TURNS.turn():
        setting = _SHARED.get(name)
        if setting is None:
            return
        setting.users.discard(user)
        if not setting.users:
            setting.undo.finish()
            _SHARED.pop(name, None)


def is_compiled(module: nn.Module) -> bool:
    """Whether the module runs compiled code, which ignores hooks that are registered after its first call."""
    return is_compile_wrapper(module) or module.__dict__.get("_compiled_call_impl") is not None


def _any_compiled(modules: Iterable[nn.Module]) -> bool:
    """`any(map(is_compiled, modules))`, without a call for each of the modules, which may be many and small."""
    modules = list(modules)
    if any(kind.__name__ == _COMPILE_WRAPPER for kind in set(map(type, modules))):
        return True
    return any(each.__dict__.get("_compiled_call_impl") is not None for each in modules)


def is_compile_wrapper(module: nn.Module) -> bool:
    """Whether the module is what torch.compile(model) returns; model.compile() returns the model itself."""
    return type(module).__name__ == _COMPILE_WRAPPER


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP shards the parameters of the module over several processes."""
    return any(base.__name__ in _SHARDED_CLASSES for base in type(module).__mro__)


# Compared by name, because importing them is slow: they are in torch._dynamo and torch.distributed.
_COMPILE_WRAPPER = "OptimizedModule"
_SHARDED_CLASSES = ("FullyShardedDataParallel", "FSDPModule")


@undone
def eagerly(undo: Undo, modules: Iterable[nn.Module], block: str | None = None) -> None:
    """Run everything eagerly inside the block if one of these modules is compiled, so that hooks are called.

    Args:
        undo: What ends this.
        modules: The modules of a model.
        block: What the block does with the model, such as "recorded", for the notice if a module is compiled. None for
            no notice.
    """
    if not _any_compiled(modules):
        return
    if block is not None:
        notify(f"the model is compiled, and compiled code ignores hooks; it runs eagerly while it is {block}")
    undo.enter(shared("eager", _eager_stance))


@undone
def _eager_stance(undo: Undo) -> None:
    stances: list[Any] = []
    set_stance: Any = torch.compiler.set_stance
    undo.push(_end_stances, stances)
    # It takes effect as soon as it is made. In this form nothing can strike before it is in the list.
    stances.extend(map(set_stance, ("force_eager",)))


def _end_stances(stances: list[Any]) -> None:
    for stance in stances:
        stance.__exit__(None, None, None)  # sets the stance from before, also a second time

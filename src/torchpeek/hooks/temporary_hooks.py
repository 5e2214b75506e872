"""Register hooks on modules for the length of a block, and remove them on every exit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from torchpeek.hooks.process import current_thread
from torchpeek.interrupts import uninterrupted

BeforeHook: TypeAlias = Callable[..., Any]
"""Called as `hook(module, args, kwargs)` when the module is called. A pair (args, kwargs) replaces the inputs.

Another thread that runs the model at the moment of the removal calls it as `hook(module, args)`.
"""

ForwardHook: TypeAlias = Callable[[nn.Module, tuple[Any, ...], Any], Any]
"""Called as `hook(module, args, output)` when the module returns. A result other than None replaces the output."""


def takes_hooks(module: nn.Module) -> bool:
    """Whether hooks can be registered on the module. Scripted and traced ones take none."""
    return not isinstance(module, torch.jit.ScriptModule)


class UncopiedHook:
    """A hook that does nothing in a copy of the model: a deepcopy or a pickle gets an empty function in its place."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _do_nothing

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _empty_hook, ()


def is_own_hook(hook: Callable[..., Any]) -> bool:
    """Whether `attached` registered the hook."""
    return isinstance(hook, UncopiedHook)


@contextmanager
def attached(
    returned: Iterable[tuple[nn.Module, ForwardHook]] = (),
    *,
    called: Iterable[tuple[nn.Module, BeforeHook]] = (),
    ended: Iterable[tuple[nn.Module, ForwardHook]] = (),
    every_thread: bool = False,
) -> Iterator[None]:
    """Register these hooks after the existing ones, and remove exactly these on every exit.

    A hook runs only in the thread that entered the block, because another thread may run the same model at the same
    time. An `UncopiedHook` runs in every thread and decides for itself.

    Args:
        returned: Modules with their forward hooks.
        called: Modules with their forward pre-hooks.
        ended: Modules with forward hooks that also run when the module raises an Exception; the output is None then.
        every_thread: Run all hooks in every thread.

    Yields:
        None.
    """
    thread = None if every_thread else current_thread()
    handles: list[RemovableHandle] = []
    try:
        with uninterrupted():
            # One by one, so that after a failure the handles so far are known.
            for module, before in called:
                handles.append(module.register_forward_pre_hook(_as_uncopied(before, thread), with_kwargs=True))
            for module, hook in returned:
                handles.append(module.register_forward_hook(_as_uncopied(hook, thread)))
            for module, hook in ended:
                handles.append(module.register_forward_hook(_as_uncopied(hook, thread), always_call=True))
        yield
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()


class _ThreadHook(UncopiedHook):
    __slots__ = ("_hook", "_thread")

    def __init__(self, hook: Callable[..., Any], thread: int | None) -> None:
        self._hook = hook
        self._thread = thread  # the only thread in which it runs; None for every thread

    def __call__(self, *args: Any) -> Any:
        return self._hook(*args) if self._thread in (None, current_thread()) else None


def _as_uncopied(hook: Callable[..., Any], thread: int | None) -> Callable[..., Any]:
    return hook if isinstance(hook, UncopiedHook) else _ThreadHook(hook, thread)


def _empty_hook() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*args: Any) -> None:
    """Stands for a hook in a copy of the model."""

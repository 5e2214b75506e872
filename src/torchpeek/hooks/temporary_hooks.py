"""Hooks on modules that come off again, whatever happens in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn
from torch.utils.hooks import RemovableHandle

from torchpeek.interrupts import uninterrupted

BeforeHook: TypeAlias = Callable[..., Any]
"""Called as `hook(module, args, kwargs)` when the module is called; a pair (args, kwargs) replaces them.

Whoever runs the model in another thread just when the hook comes off calls it as `hook(module, args)`.
"""

ForwardHook: TypeAlias = Callable[[nn.Module, tuple[Any, ...], Any], Any]
"""Called as `hook(module, args, output)` when the module returns; what is not None replaces the output."""


class UncopiedHook:
    """A hook that a copy of the model does not take along: in a deepcopy or a pickle it does nothing."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _no_hook, ()


@contextmanager
def attached(
    returned: Iterable[tuple[nn.Module, ForwardHook]] = (),
    *,
    called: Iterable[tuple[nn.Module, BeforeHook]] = (),
    ended: Iterable[tuple[nn.Module, ForwardHook]] = (),
    every_thread: bool = False,
) -> Iterator[None]:
    """Register these hooks after the existing ones, and remove exactly these on every exit.

    The hooks of `ended` also run where the module raised an Exception, with None for the output. A hook runs only in
    the thread that attached it, because another thread may run the same model at the same time; with `every_thread`, or
    where the hook is `UncopiedHook` and so looks at the thread itself, it runs in all of them.
    """
    thread = None if every_thread else threading.get_ident()
    handles: list[RemovableHandle] = []
    try:
        with uninterrupted():
            # One by one: a failure must find those so far.
            for module, before in called:
                handles.append(module.register_forward_pre_hook(_uncopied(before, thread), with_kwargs=True))
            for module, hook in returned:
                handles.append(module.register_forward_hook(_uncopied(hook, thread)))
            for module, hook in ended:
                handles.append(module.register_forward_hook(_uncopied(hook, thread), always_call=True))
        yield
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()


class _ThreadHook(UncopiedHook):
    __slots__ = ("_hook", "_thread")

    def __init__(self, hook: Callable[..., Any], thread: int | None) -> None:
        self._hook = hook
        self._thread = thread  # the only one it runs in; None where it runs in all

    def __call__(self, *args: Any) -> Any:
        return self._hook(*args) if self._thread in (None, threading.get_ident()) else None


def _uncopied(hook: Callable[..., Any], thread: int | None) -> Callable[..., Any]:
    return hook if isinstance(hook, UncopiedHook) else _ThreadHook(hook, thread)


def _no_hook() -> Callable[..., None]:
    return _nothing


def _nothing(*args: Any) -> None:
    """What is left of a hook in a copy."""

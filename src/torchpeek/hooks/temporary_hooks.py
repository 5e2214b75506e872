"""Hooks on modules that come off again, whatever happens in between."""

from __future__ import annotations

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


class Inert:
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
) -> Iterator[None]:
    """Register these hooks, after those already there, and remove just them on every exit.

    Those of `ended` are called also where the module raised an Exception, with None for the output.
    """
    handles: list[RemovableHandle] = []
    try:
        with uninterrupted():
            # One by one: a failure must find those so far.
            for module, before in called:
                handles.append(module.register_forward_pre_hook(_inert(before), with_kwargs=True))
            for module, hook in returned:
                handles.append(module.register_forward_hook(_inert(hook)))
            for module, hook in ended:
                handles.append(module.register_forward_hook(_inert(hook), always_call=True))
        yield
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()


class _Wrapped(Inert):
    __slots__ = ("_hook",)

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook

    def __call__(self, *given: Any) -> Any:
        return self._hook(*given)


def _inert(hook: Callable[..., Any]) -> Callable[..., Any]:
    return hook if isinstance(hook, Inert) else _Wrapped(hook)


def _no_hook() -> Callable[..., None]:
    return _nothing


def _nothing(*given: Any) -> None:
    """What is left of a hook in a copy."""

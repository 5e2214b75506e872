"""Register hooks on modules for the length of a block, and remove them on every exit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from torchpeek.hooks.model_calls import ModelCalls
from torchpeek.hooks.process import current_thread
from torchpeek.undo import Undo, undone

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


@undone
def attached(
    undo: Undo,
    returned: Iterable[tuple[nn.Module, ForwardHook]] = (),
    *,
    called: Iterable[tuple[nn.Module, BeforeHook]] = (),
    ended: Iterable[tuple[nn.Module, ForwardHook]] = (),
    every_thread: bool = False,
    calls: ModelCalls | None = None,
) -> None:
    """Register these hooks after the existing ones, and remove exactly these on every exit.

    A hook runs only in the thread that entered the block, because another thread may run the same model at the same
    time. An `UncopiedHook` runs in every thread and at every call, and decides for itself.

    Args:
        undo: What removes the hooks.
        returned: Modules with their forward hooks.
        called: Modules with their forward pre-hooks.
        ended: Modules with forward hooks that also run when the module raises an Exception; the output is None then.
        every_thread: Run all hooks in every thread.
        calls: Run the hooks only in these calls, those of one model. They are followed while the block is open.
    """
    thread = None if every_thread else current_thread()
    hook_dicts: list[dict[int, Any]] = []
    registered: list[tuple[nn.Module, Callable[..., Any]]] = []
    handles: list[RemovableHandle] = []
    number = _new_number()
    undo.push(_detach, hook_dicts, number, registered, handles)
    if calls is not None:
        undo.push(calls.close)
        calls.open()
        called = [(calls.model, _PassBegin(calls)), *called]
        ended = [*ended, (calls.model, _PassEnd(calls))]
    for module, before in called:
        limited = _limited(before, thread, calls)
        registered.append((module, limited))  # first, so that it is known whenever an exception arrives
        handles.append(module.register_forward_pre_hook(limited, with_kwargs=True))
    for module, hook in returned:
        limited = _limited(hook, thread, calls)
        hooks = module._forward_hooks
        if type(module).register_forward_hook is not _REGISTER or number in hooks:
            registered.append((module, limited))
            handles.append(module.register_forward_hook(limited))
        else:  # what that does, without a handle: many small layers would take most of their time for these
            hook_dicts.append(hooks)
            hooks[number] = limited
    for module, hook in ended:
        limited = _limited(hook, thread, calls)
        registered.append((module, limited))
        handles.append(module.register_forward_hook(limited, always_call=True))


def _detach(
    hook_dicts: list[dict[int, Any]],
    number: int,
    registered: list[tuple[nn.Module, Callable[..., Any]]],
    handles: list[RemovableHandle],
) -> None:
    for hooks in hook_dicts:
        hooks.pop(number, None)
    for handle in handles:
        handle.remove()
    if len(handles) == len(registered):
        return
    # An exception has struck between a registration and the moment from which its handle was known.
    for module, hook in registered:
        for hooks, options in (
            (module._forward_pre_hooks, [module._forward_pre_hooks_with_kwargs]),
            (module._forward_hooks, [module._forward_hooks_with_kwargs, module._forward_hooks_always_called]),
        ):
            for key in [key for key, registered_hook in hooks.items() if registered_hook is hook]:
                for option in options:  # first, so that the key is found again where this is cut short
                    option.pop(key, None)
                hooks.pop(key, None)


def _new_number() -> int:
    """A key that no other hook has in any module."""
    return RemovableHandle(OrderedDict()).id


_REGISTER = nn.Module.register_forward_hook


class _LimitedHook(UncopiedHook):
    """Runs a hook in one thread, or in the calls of one model, or both."""

    __slots__ = ("_calls", "_hook", "_thread")

    def __init__(self, hook: Callable[..., Any], thread: int | None, calls: ModelCalls | None) -> None:
        self._hook = hook
        self._thread = thread  # the only thread in which it runs; None for every thread
        self._calls = calls  # the only calls in which it runs; None for every call

    def __call__(self, *args: Any) -> Any:
        thread, calls = current_thread(), self._calls
        if self._thread is not None and self._thread != thread:
            return None
        if calls is not None and not calls.depth.get(thread) and not calls.include(args[0]):
            return None
        return self._hook(*args)


class _PassBegin(UncopiedHook):
    __slots__ = ("_calls",)

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls

    def __call__(self, *args: Any) -> None:
        self._calls.begin()


class _PassEnd(_PassBegin):
    __slots__ = ()

    def __call__(self, *args: Any) -> None:
        self._calls.end()


def _limited(hook: Callable[..., Any], thread: int | None, calls: ModelCalls | None) -> Callable[..., Any]:
    return hook if isinstance(hook, UncopiedHook) else _LimitedHook(hook, thread, calls)


def _empty_hook() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*args: Any) -> None:
    """Stands for a hook in a copy of the model."""

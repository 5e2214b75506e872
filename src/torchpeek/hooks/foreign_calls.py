"""A notice where another thread calls a model in eval mode, and the hooks of threads that a fork does not have."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from torchpeek.errors import notify
from torchpeek.hooks.temporary_hooks import UncopiedHook, takes_hooks, thread_of_hook


class _ForeignCallHook(UncopiedHook):
    """The pre-hook of a model: gives one Notice if another thread than the one that made it calls the model."""

    __slots__ = ("_has_notified", "_thread")

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._has_notified = False

    def __call__(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() == self._thread or self._has_notified:
            return
        self._has_notified = True
        notify(
            f"another thread called {type(module).__name__} while torchpeek had it in eval mode, so that call ran in "
            "eval mode, too, and not in train mode as the model was found. Next: train and explain in turn, or explain "
            "a copy: copy.deepcopy(model)"
        )


def notice_of_foreign_calls(model: nn.Module) -> RemovableHandle | None:
    """Give a Notice when another thread calls the model itself, until the handle is removed.

    A call of a part of the model alone is not noticed. None for a scripted model, which takes no hooks.
    """
    return model.register_forward_pre_hook(_ForeignCallHook()) if takes_hooks(model) else None


def remove_hooks_of_other_threads(modules: Iterable[nn.Module]) -> None:
    """Remove the hooks that `attached` registered in other threads: in a forked process, these are not there."""
    thread = threading.get_ident()
    for module in modules:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number in [each for each, hook in hooks.items() if thread_of_hook(hook) not in (None, thread)]:
                for registered in (
                    hooks,
                    module._forward_hooks_with_kwargs,
                    module._forward_hooks_always_called,
                    module._forward_pre_hooks_with_kwargs,
                ):
                    registered.pop(number, None)  # numbers are unique over all of these

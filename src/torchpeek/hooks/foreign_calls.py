"""A notice where another thread calls a model that torchpeek has in eval mode."""

from __future__ import annotations

import threading
from typing import Any

from torch import nn

from torchpeek.errors import notify
from torchpeek.hooks.temporary_hooks import UncopiedHook, attached, takes_hooks
from torchpeek.undo import Undo, undone


class _ForeignCallHook(UncopiedHook):
    """The pre-hook of a model: gives one Notice if another thread than the one that made it calls the model."""

    __slots__ = ("_has_notified", "_thread")

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._has_notified = False

    def __call__(self, module: nn.Module, *_: Any) -> None:
        if threading.get_ident() == self._thread or self._has_notified:
            return
        self._has_notified = True
        notify(
            f"another thread called {type(module).__name__} while torchpeek had it in eval mode, so that call ran in "
            "eval mode, too, and not in train mode as the model was found. Next: train and explain in turn, or explain "
            "a copy: copy.deepcopy(model)"
        )


@undone
def notice_of_foreign_calls(undo: Undo, model: nn.Module) -> None:
    """Inside the block, a Notice says when another thread calls the model itself.

    A call of a part of the model alone is not noticed, and neither is one of a scripted model, which takes no hooks.

    Args:
        undo: What removes the hook.
        model: The model.
    """
    if takes_hooks(model):
        undo.enter(attached(called=[(model, _ForeignCallHook())]))

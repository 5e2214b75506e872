"""Forward hooks that come off again, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn
from torch.utils.hooks import RemovableHandle

from torchpeek.hooks.interrupts import uninterrupted

ForwardHook: TypeAlias = Callable[[nn.Module, tuple[Any, ...], Any], Any]
"""Called as `hook(module, args, output)` when the module returns; what is not None replaces the output.

Never with_kwargs: whoever runs the model in another thread just when such a hook comes off calls it without them.
"""


@contextmanager
def attached(hooks: Iterable[tuple[nn.Module, ForwardHook]]) -> Iterator[None]:
    """Register these forward hooks, after those already there, and remove just them on every exit."""
    handles: list[RemovableHandle] = []
    try:
        with uninterrupted():
            for module, hook in hooks:
                handles.append(module.register_forward_hook(hook))
        yield
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()

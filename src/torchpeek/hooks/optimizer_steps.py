"""Be told of the steps of optimizers. The hooks are torch's own for the whole process, and come off with the block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from torchpeek.interrupts import uninterrupted


@contextmanager
def around_steps(before: Callable[[Optimizer, bool], None], after: Callable[[Optimizer], None]) -> Iterator[None]:
    """Call functions before and after each step of each `torch.optim.Optimizer`, inside the block.

    Args:
        before: Called as `before(optimizer, closure)`; the second is whether the step got a closure, which computes the
            gradients anew.
        after: Called as `after(optimizer)`, if the step did not raise.

    Yields:
        None.
    """

    def begin(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        before(optimizer, closure is not None)

    def end(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        after(optimizer)

    handles: list[RemovableHandle] = []
    try:
        with uninterrupted():
            handles.append(register_optimizer_step_pre_hook(begin))
            handles.append(register_optimizer_step_post_hook(end))
        yield
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()

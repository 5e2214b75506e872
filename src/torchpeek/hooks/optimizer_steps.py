"""Be told of the steps of optimizers. The hooks are torch's own for the whole process, and come off with the block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer, optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torchpeek.undo import Undo, undone


@undone
def around_steps(undo: Undo, before: Callable[[Optimizer, bool], None], after: Callable[[Optimizer], None]) -> None:
    """Call functions before and after each step of each `torch.optim.Optimizer`, inside the block.

    Args:
        undo: What takes them off.
        before: Called as `before(optimizer, closure)`; the second is whether the step got a closure, which computes the
            gradients anew.
        after: Called as `after(optimizer)`, if the step did not raise.
    """

    def begin(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        before(optimizer, closure is not None)

    def end(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        after(optimizer)

    undo.push(_take_off, begin, end)
    register_optimizer_step_pre_hook(begin)
    register_optimizer_step_post_hook(end)


def _take_off(*hooks: Callable[..., None]) -> None:
    for registered in (optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks):
        for key in [key for key, hook in registered.items() if hook in hooks]:
            registered.pop(key, None)

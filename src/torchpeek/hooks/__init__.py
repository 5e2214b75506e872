"""The only room that registers a hook, or touches one."""

from torchpeek.hooks.attach import attached
from torchpeek.hooks.interrupts import interruptible, let_interrupts_through, uninterrupted
from torchpeek.hooks.select import Selection, select

__all__ = ["Selection", "attached", "interruptible", "let_interrupts_through", "select", "uninterrupted"]

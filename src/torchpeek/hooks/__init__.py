"""The only room that registers a hook, or touches one."""

from torchpeek.hooks.attach import attached
from torchpeek.hooks.interrupts import interruptible, uninterrupted
from torchpeek.hooks.select import Selection, select

__all__ = ["Selection", "attached", "interruptible", "select", "uninterrupted"]

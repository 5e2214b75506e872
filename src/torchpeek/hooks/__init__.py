"""The only room that registers a hook, or touches one."""

from torchpeek.hooks.attach import attached, uninterrupted
from torchpeek.hooks.select import Selection, select

__all__ = ["Selection", "attached", "select", "uninterrupted"]

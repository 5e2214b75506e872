"""The only room that registers a hook, or touches one."""

from torchpeek.hooks import edits, keep, nested
from torchpeek.hooks.attach import attached
from torchpeek.hooks.calls import Call, Calls
from torchpeek.hooks.edit import edit
from torchpeek.hooks.interrupts import interruptible, let_interrupts_through, uninterrupted
from torchpeek.hooks.process import eagerly, shared
from torchpeek.hooks.record import Recording, record
from torchpeek.hooks.select import Selection, select, why_not_fired
from torchpeek.hooks.tensors import edit_gradient, record_gradients

__all__ = [
    "Call",
    "Calls",
    "Recording",
    "Selection",
    "attached",
    "eagerly",
    "edit",
    "edit_gradient",
    "edits",
    "interruptible",
    "keep",
    "let_interrupts_through",
    "nested",
    "record",
    "record_gradients",
    "select",
    "shared",
    "uninterrupted",
    "why_not_fired",
]

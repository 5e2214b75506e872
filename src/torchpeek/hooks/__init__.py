"""The only room that registers a hook, or touches one."""

from torchpeek.hooks import edits, keep
from torchpeek.hooks.attach import attached
from torchpeek.hooks.calls import Call, Calls
from torchpeek.hooks.edit import edit
from torchpeek.hooks.interrupts import interruptible, let_interrupts_through, uninterrupted
from torchpeek.hooks.record import Recording, record
from torchpeek.hooks.select import Selection, is_compiled, select
from torchpeek.hooks.tensors import edit_gradient, record_gradients

__all__ = [
    "Call",
    "Calls",
    "Recording",
    "Selection",
    "attached",
    "edit",
    "edit_gradient",
    "edits",
    "interruptible",
    "is_compiled",
    "keep",
    "let_interrupts_through",
    "record",
    "record_gradients",
    "select",
    "uninterrupted",
]

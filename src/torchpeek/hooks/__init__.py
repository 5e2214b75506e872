"""Hooks: record and edit what flows through a network. The only package that registers a hook."""

from torchpeek.hooks import containers
from torchpeek.hooks.checked_model import checked_model
from torchpeek.hooks.editing import edits
from torchpeek.hooks.editing.edit import edit
from torchpeek.hooks.patched_forward import Forward, replaceable, replaced
from torchpeek.hooks.process import eagerly, is_compile_wrapper, is_sharded, shared
from torchpeek.hooks.recording import keep
from torchpeek.hooks.recording.call import Call, Calls
from torchpeek.hooks.recording.record import Recording, record
from torchpeek.hooks.select import Selection, select, why_not_fired
from torchpeek.hooks.temporary_hooks import BeforeHook, ForwardHook, attached, takes_hooks
from torchpeek.hooks.tensors import edit_gradient, record_gradients

__all__ = [
    "BeforeHook",
    "Call",
    "Calls",
    "Forward",
    "ForwardHook",
    "Recording",
    "Selection",
    "attached",
    "checked_model",
    "containers",
    "eagerly",
    "edit",
    "edit_gradient",
    "edits",
    "is_compile_wrapper",
    "is_sharded",
    "keep",
    "record",
    "record_gradients",
    "replaceable",
    "replaced",
    "select",
    "shared",
    "takes_hooks",
    "why_not_fired",
]

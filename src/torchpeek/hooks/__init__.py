"""Hooks: record and edit what flows through a network. The only package that registers a hook."""

from torchpeek.hooks import containers
from torchpeek.hooks.backward_pass import in_backward_pass
from torchpeek.hooks.checked_model import checked_model
from torchpeek.hooks.computing_layers import computing_layers
from torchpeek.hooks.editing import edits
from torchpeek.hooks.editing.edit import edit
from torchpeek.hooks.finite.check_finite import check_finite
from torchpeek.hooks.foreign_calls import notice_of_foreign_calls
from torchpeek.hooks.frames import method_is_running, running_module
from torchpeek.hooks.function_modes import active, active_in_dispatch
from torchpeek.hooks.grad_mode import grad_mode
from torchpeek.hooks.graph_nodes import edited_gradients
from torchpeek.hooks.model_calls import ModelCalls
from torchpeek.hooks.module_channels import (
    CHANNELS_FIRST,
    CHANNELS_FIRST_WITH_WEIGHTS,
    CHANNELS_LAST_NORMS,
    ChannelAxis,
    Channels,
    channels_inside,
    channels_of,
)
from torchpeek.hooks.optimizer_steps import around_steps
from torchpeek.hooks.patched_forward import Forward, replaceable, replaced
from torchpeek.hooks.process import eagerly, is_compile_wrapper, is_sharded, nested_in_pass, shared
from torchpeek.hooks.recording import keep
from torchpeek.hooks.recording.call import Call
from torchpeek.hooks.recording.calls import Calls
from torchpeek.hooks.recording.keep import Captured, LenientRunning, NoStatistics, StatisticsKeeper
from torchpeek.hooks.recording.record import Recording, record
from torchpeek.hooks.recording.running_statistics import RunningStatistics
from torchpeek.hooks.recording.storage import Leaf
from torchpeek.hooks.rectifier_functions import rectifiers_observed
from torchpeek.hooks.select import Selection, has_layer, layer_at, select, select_modules, why_not_fired
from torchpeek.hooks.selected_layer import SelectedLayer, at_call, call_name, no_such_call, several_calls
from torchpeek.hooks.temporary_hooks import BeforeHook, ForwardHook, attached, is_own_hook, takes_hooks
from torchpeek.hooks.tensors import edit_gradient, record_gradients
from torchpeek.hooks.with_block import opened_by_with
from torchpeek.hooks.without_hooks import without_hooks

__all__ = [
    "CHANNELS_FIRST",
    "CHANNELS_FIRST_WITH_WEIGHTS",
    "CHANNELS_LAST_NORMS",
    "BeforeHook",
    "Call",
    "Calls",
    "Captured",
    "ChannelAxis",
    "Channels",
    "Forward",
    "ForwardHook",
    "Leaf",
    "LenientRunning",
    "ModelCalls",
    "NoStatistics",
    "Recording",
    "RunningStatistics",
    "SelectedLayer",
    "Selection",
    "StatisticsKeeper",
    "active",
    "active_in_dispatch",
    "around_steps",
    "at_call",
    "attached",
    "call_name",
    "channels_inside",
    "channels_of",
    "check_finite",
    "checked_model",
    "computing_layers",
    "containers",
    "eagerly",
    "edit",
    "edit_gradient",
    "edited_gradients",
    "edits",
    "grad_mode",
    "has_layer",
    "in_backward_pass",
    "is_compile_wrapper",
    "is_own_hook",
    "is_sharded",
    "keep",
    "layer_at",
    "method_is_running",
    "nested_in_pass",
    "no_such_call",
    "notice_of_foreign_calls",
    "opened_by_with",
    "record",
    "record_gradients",
    "rectifiers_observed",
    "replaceable",
    "replaced",
    "running_module",
    "select",
    "select_modules",
    "several_calls",
    "shared",
    "takes_hooks",
    "why_not_fired",
    "without_hooks",
]

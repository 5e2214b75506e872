"""Runs a model; the only room that calls one."""

from torchpeek.engine import targets
from torchpeek.engine.attempts import Refusal, attempted, may_refuse, shown_later, stop_iteration_restored
from torchpeek.engine.batching import Change
from torchpeek.engine.bias_gradients import FullGradients, bias_gradients
from torchpeek.engine.call_counts import CallCounts, call_counts
from torchpeek.engine.capture import Capture, CaptureRequest
from torchpeek.engine.effective_weight import effective_weight, is_quantised
from torchpeek.engine.forward import check_fits, run
from torchpeek.engine.forward_pass import ForwardPass, Origin, with_observed_layers
from torchpeek.engine.hook_free import HookFreeModel, hook_free
from torchpeek.engine.input_gradients import input_gradient_chunks
from torchpeek.engine.layout import Layout, LayoutSpec
from torchpeek.engine.layout_inference.default_layer import (
    Suggestion,
    suggest_layer,
    suggest_layers,
    suggest_stages,
)
from torchpeek.engine.layout_inference.dry_run import LayerCall, layer_calls, layout_of, with_known_totals
from torchpeek.engine.layout_text import described
from torchpeek.engine.model_call import Arguments, ModelCall, as_model_call
from torchpeek.engine.model_config import takes_a_list
from torchpeek.engine.model_copy import NotIndependent, check_independent, copied_model
from torchpeek.engine.numerics import all_finite
from torchpeek.engine.preserve import check_initialised, preserved
from torchpeek.engine.random_state import seeded_draws
from torchpeek.engine.targets import Question, Target
from torchpeek.engine.targets.question import Bound, bound_to, is_positional, label_noun, output_part, score_kind
from torchpeek.engine.trace import Trace, trace_model
from torchpeek.engine.wrappers import inspectable_module, network_name, with_wrapper_prefix

__all__ = [
    "Arguments",
    "Bound",
    "CallCounts",
    "Capture",
    "CaptureRequest",
    "Change",
    "ForwardPass",
    "FullGradients",
    "HookFreeModel",
    "LayerCall",
    "Layout",
    "LayoutSpec",
    "ModelCall",
    "NotIndependent",
    "Origin",
    "Question",
    "Refusal",
    "Suggestion",
    "Target",
    "Trace",
    "all_finite",
    "as_model_call",
    "attempted",
    "bias_gradients",
    "bound_to",
    "call_counts",
    "check_fits",
    "check_independent",
    "check_initialised",
    "copied_model",
    "described",
    "effective_weight",
    "hook_free",
    "input_gradient_chunks",
    "inspectable_module",
    "is_positional",
    "is_quantised",
    "label_noun",
    "layer_calls",
    "layout_of",
    "may_refuse",
    "network_name",
    "output_part",
    "preserved",
    "run",
    "score_kind",
    "seeded_draws",
    "shown_later",
    "stop_iteration_restored",
    "suggest_layer",
    "suggest_layers",
    "suggest_stages",
    "takes_a_list",
    "targets",
    "trace_model",
    "with_known_totals",
    "with_observed_layers",
    "with_wrapper_prefix",
]

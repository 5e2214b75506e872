"""Runs a model; the only room that calls one."""

from torchpeek.engine import targets
from torchpeek.engine.bias_gradients import FullGradients, bias_gradients
from torchpeek.engine.capture import Capture
from torchpeek.engine.forward import run
from torchpeek.engine.layout import Layout, LayoutSpec, described
from torchpeek.engine.layout_inference.default_layer import Suggestion, suggest_layer, suggest_stages
from torchpeek.engine.layout_inference.dry_run import LayerCall, layer_calls
from torchpeek.engine.model_call import Arguments, ModelCall, as_model_call, takes_a_list
from torchpeek.engine.preserve import preserved
from torchpeek.engine.runner import ModelRunner
from torchpeek.engine.targets import Question, Target
from torchpeek.engine.trace import Origin, Trace

__all__ = [
    "Arguments",
    "Capture",
    "FullGradients",
    "LayerCall",
    "Layout",
    "LayoutSpec",
    "ModelCall",
    "ModelRunner",
    "Origin",
    "Question",
    "Suggestion",
    "Target",
    "Trace",
    "as_model_call",
    "bias_gradients",
    "described",
    "layer_calls",
    "preserved",
    "run",
    "suggest_layer",
    "suggest_stages",
    "takes_a_list",
    "targets",
]

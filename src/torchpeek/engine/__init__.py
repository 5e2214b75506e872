"""Runs a model; the only room that calls one."""

from torchpeek.engine import targets
from torchpeek.engine.capture import Capture
from torchpeek.engine.contributions import Contributions, contributions
from torchpeek.engine.forward import run
from torchpeek.engine.given import Arguments, Given, as_given, takes_a_list
from torchpeek.engine.guard import as_found
from torchpeek.engine.layouts import Layout, Reading, described
from torchpeek.engine.progress import progress
from torchpeek.engine.runner import ModelRunner
from torchpeek.engine.suggestion import Suggestion, suggest_layer, suggest_stages
from torchpeek.engine.survey import LayerCall, layer_calls
from torchpeek.engine.targets import Question, Target
from torchpeek.engine.trace import Origin, Trace

__all__ = [
    "Arguments",
    "Capture",
    "Contributions",
    "Given",
    "LayerCall",
    "Layout",
    "ModelRunner",
    "Origin",
    "Question",
    "Reading",
    "Suggestion",
    "Target",
    "Trace",
    "as_found",
    "as_given",
    "contributions",
    "described",
    "layer_calls",
    "progress",
    "run",
    "suggest_layer",
    "suggest_stages",
    "takes_a_list",
    "targets",
]

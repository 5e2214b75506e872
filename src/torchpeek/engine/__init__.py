"""Runs a model; the only room that calls one."""

from torchpeek.engine import targets
from torchpeek.engine.guard import as_found
from torchpeek.engine.runner import ModelRunner, run
from torchpeek.engine.survey import LayerCall, Suggestion, described, suggest_layer, survey
from torchpeek.engine.targets import Question, Target
from torchpeek.engine.trace import Capture, Origin, Trace

__all__ = [
    "Capture",
    "LayerCall",
    "ModelRunner",
    "Origin",
    "Question",
    "Suggestion",
    "Target",
    "Trace",
    "as_found",
    "described",
    "run",
    "suggest_layer",
    "survey",
    "targets",
]

"""Runs a model; the only room that calls one."""

from torchpeek.engine import targets
from torchpeek.engine.contributions import Contributions, contributions
from torchpeek.engine.forward import run
from torchpeek.engine.guard import as_found
from torchpeek.engine.progress import progress
from torchpeek.engine.runner import ModelRunner
from torchpeek.engine.survey import LayerCall, Suggestion, described, suggest_layer, suggest_stages, survey
from torchpeek.engine.targets import Question, Target
from torchpeek.engine.trace import Capture, Origin, Trace

__all__ = [
    "Capture",
    "Contributions",
    "LayerCall",
    "ModelRunner",
    "Origin",
    "Question",
    "Suggestion",
    "Target",
    "Trace",
    "as_found",
    "contributions",
    "described",
    "progress",
    "run",
    "suggest_layer",
    "suggest_stages",
    "survey",
    "targets",
]

"""Runs a model; the only room that calls one."""

from torchpeek.engine import targets
from torchpeek.engine.contributions import Contributions, contributions
from torchpeek.engine.forward import run
from torchpeek.engine.given import Arguments, Given, as_given
from torchpeek.engine.guard import as_found
from torchpeek.engine.layouts import Layout, Reading, described
from torchpeek.engine.progress import progress
from torchpeek.engine.runner import ModelRunner
from torchpeek.engine.survey import LayerCall, Suggestion, suggest_layer, suggest_stages, survey
from torchpeek.engine.targets import Question, Target
from torchpeek.engine.trace import Capture, Origin, Trace

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
    "progress",
    "run",
    "suggest_layer",
    "suggest_stages",
    "survey",
    "targets",
]

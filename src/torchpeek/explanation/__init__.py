"""The front door for heatmaps: trace, explain, compare."""

from torchpeek.engine import Target
from torchpeek.explanation.api import compare, explain, trace
from torchpeek.explanation.heatmaps import HeatmapOptions, explain_methods
from torchpeek.explanation.request import LayerChoice
from torchpeek.models import Inputs, Model

__all__ = [
    "HeatmapOptions",
    "Inputs",
    "LayerChoice",
    "Model",
    "Target",
    "compare",
    "explain",
    "explain_methods",
    "trace",
]

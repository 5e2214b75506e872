"""The front door for heatmaps: trace, explain, compare."""

from torchpeek.engine import Target
from torchpeek.explanation.api import compare, explain, trace
from torchpeek.explanation.heatmaps import How
from torchpeek.models import Inputs, Model

__all__ = ["How", "Inputs", "Model", "Target", "compare", "explain", "trace"]

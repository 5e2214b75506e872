"""The front door for heatmaps: trace, explain, compare."""

from torchpeek.engine import Target
from torchpeek.explain.front import compare, explain, trace
from torchpeek.explain.heatmaps import How
from torchpeek.models import Inputs, Model

__all__ = ["How", "Inputs", "Model", "Target", "compare", "explain", "trace"]

"""The front door for trust: evaluate()."""

from torchpeek.evaluate.checks import Metrics
from torchpeek.evaluate.front import evaluate

__all__ = ["Metrics", "evaluate"]

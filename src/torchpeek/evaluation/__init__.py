"""The front door for trust: evaluate()."""

from torchpeek.evaluation.api import evaluate
from torchpeek.evaluation.checks import Metrics

__all__ = ["Metrics", "evaluate"]

"""The public entry point for metrics: evaluate()."""

from torchpeek.evaluation.api import evaluate
from torchpeek.evaluation.checks import Metrics

__all__ = ["Metrics", "evaluate"]

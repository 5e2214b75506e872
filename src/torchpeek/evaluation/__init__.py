"""The public entry point for metrics: evaluate()."""

from torchpeek.evaluation.api import evaluate

__all__ = ["evaluate"]

"""Masking metrics: the probability when the input is multiplied by the heatmap. They share one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from torchpeek.metrics.case import Case, check_computed, rounding_of
from torchpeek.metrics.metric import MetricResult, metric


def _one(options: Mapping[str, Any]) -> int:
    return 1


_PAPER = "arXiv:1710.11063"


@metric("average-drop", needs="passes", higher_is_better=False, paper=_PAPER, passes=_one, reads="probability")
def average_drop(case: Case) -> MetricResult:
    """How much of the probability is lost when the input is multiplied by the heatmap (Grad-CAM++, section 4).

    A heatmap of ones loses nothing.
    """
    check_computed(case, "average-drop")
    clean = case.scores
    # A probability that is zero in this precision can lose nothing.
    return MetricResult(torch.where(clean > 0, (clean - case.masked_scores).clamp(min=0) / clean, 0))


@metric("increase", needs="passes", higher_is_better=True, paper=_PAPER, passes=_one, reads="p")
def increase(case: Case) -> MetricResult:
    """Whether the probability rises when the input is multiplied by the heatmap (Grad-CAM++, section 4).

    The rise has to exceed rounding: passes in chunks of another size differ in the last digit.
    """
    rounding = rounding_of(case.inputs) * case.scores.abs()
    return MetricResult((case.masked_scores > case.scores + rounding).to(case.scores))


@metric(
    "average-gain", needs="passes", higher_is_better=True, paper="arXiv:2301.07002", passes=_one, reads="probability"
)
def average_gain(case: Case) -> MetricResult:
    """How much of the rest to 1 the probability gains when the input is multiplied by the heatmap (Opti-CAM)."""
    check_computed(case, "average-gain")
    clean = case.scores
    return MetricResult(torch.where(clean < 1, (case.masked_scores - clean).clamp(min=0) / (1 - clean), 0))

"""Sufficiency: whether the positions that the heatmap marks are enough for the class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchpeek.argument_types import Cells, Count, Share
from torchpeek.errors import MetricNotApplicable
from torchpeek.metrics.case import Case
from torchpeek.metrics.clean_pass import ONE_LOGIT
from torchpeek.metrics.fidelity import random_patches
from torchpeek.metrics.fills import Baseline, filled
from torchpeek.metrics.metric import MetricResult, metric
from torchpeek.metrics.patches import patches


def _samples(options: Mapping[str, Any]) -> int:
    return int(options["samples"])


@metric(
    "sufficiency", needs="passes", higher_is_better=True, paper="arXiv:2202.00734", passes=_samples, reads="classes"
)
def sufficiency(
    case: Case,
    *,
    share: Share = 0.2,
    cells: Cells = 6,
    samples: Count = 16,
    baseline: Baseline = "mean",
) -> MetricResult:
    """Share of inputs with the same highest positions for which the class is predicted (Dasgupta et al.).

    Each of these inputs has half of the patches removed, at random. The highest positions stay in all of them. For a
    target under a sigmoid, the class is predicted where its probability is above 0.5.

    Args:
        share: Share of the positions that stay.
        cells: Number of patches along each axis.
        samples: Number of inputs.
        baseline: What replaces removed patches: "zeros", "mean", "blur", "noise", a number, a tensor or a function.
    """
    index = patches(case.size, cells)
    removed = random_patches(cells**index.ndim, 0.5, samples, case.clean.seed)[:, index]  # (samples, *size)
    count, fill = round(share * case.size.numel()), filled(case.clean, baseline)

    def changed(inputs: Tensor, rows: Tensor, maps: Tensor, trials: Tensor) -> Tensor:
        gone = removed[trials].to(inputs.device) & (case.ranks[rows, maps] >= count)  # (b, *size)
        return torch.where(gone.unsqueeze(1), fill[rows].to(inputs), inputs)

    question: Any = case.clean.trace.question  # a ClassScores
    if question.is_sigmoid:  # the model decides for each class by itself
        return MetricResult((case.rescored(changed, samples) > 0.5).to(case.values).mean(2))
    logits = case.rescored_logits(changed, samples)  # (N, J, samples, classes)
    if logits.shape[3] < 2:
        raise MetricNotApplicable(ONE_LOGIT)
    labels = question.labels[:, case.columns].to(logits.device)  # (N, J)
    predicted = logits.argmax(3) == labels.unsqueeze(2)
    return MetricResult(predicted.to(case.values).mean(2))

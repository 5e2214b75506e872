"""Complexity metrics: over how few positions a heatmap is spread. They run no pass."""

from __future__ import annotations

import torch
from torch import Tensor

from torchpeek.argument_types import Share
from torchpeek.metrics.case import Case
from torchpeek.metrics.metric import MetricResult, metric


@metric("sparseness", needs="heatmap", higher_is_better=True, paper="arXiv:1810.06583")
def sparseness(case: Case) -> MetricResult:
    """Gini index of the absolute values on the heatmap's own grid: 0 if they are equal, near 1 if one is all."""
    return MetricResult(gini(case.values.flatten(2).abs()))


def gini(values: Tensor) -> Tensor:
    """Return the Gini index of non-negative values, (..., n) -> (...); 0 if all are zero."""
    ordered, count = values.sort(dim=-1).values, values.shape[-1]
    places = torch.arange(1, count + 1, device=values.device, dtype=values.dtype)
    total = ordered.sum(-1)
    index = ((2 * places - count - 1) * ordered).sum(-1) / (count * total)
    return torch.where(total > 0, index, 0)


@metric("entropy", needs="heatmap", higher_is_better=False, paper="arXiv:2005.00631")
def entropy(case: Case) -> MetricResult:
    """Entropy of the absolute values on the heatmap's own grid, in nats, as shares of their sum.

    A heatmap of zeros has the entropy of a uniform one.
    """
    values = case.values.flatten(2).abs()
    total = values.sum(2, keepdim=True)
    share = torch.where(total > 0, values / total, 1 / values.shape[2])
    return MetricResult(torch.special.entr(share).sum(2))


@metric("effective-complexity", needs="heatmap", higher_is_better=False, paper="arXiv:2007.07584")
def effective_complexity(case: Case, *, threshold: Share = 1e-5) -> MetricResult:
    """Share of the positions whose absolute value exceeds `threshold` of the largest (Nguyen and Martinez).

    The positions are those of the heatmap's own grid. A heatmap of zeros has the share of a uniform one, 1.

    Args:
        threshold: Share of the largest absolute value, 0 to 1.
    """
    values = case.values.flatten(2).abs()
    largest = values.amax(2, keepdim=True)
    return MetricResult(((values > threshold * largest) | (largest == 0)).to(values).mean(2))

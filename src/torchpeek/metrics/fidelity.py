"""Fidelity metrics: whether a part's share of the heatmap is what the score loses without that part.

The passes are the same for every heatmap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchpeek.metrics.case import Case
from torchpeek.metrics.fills import Baseline, fill_key, filled
from torchpeek.metrics.metric import MetricResult, metric
from torchpeek.metrics.patches import patches
from torchpeek.registry import check_number, check_whole


def _samples(options: Mapping[str, Any]) -> int:
    return int(options["samples"])


@metric(
    "mufidelity",
    needs="passes",
    higher_is_better=True,
    paper="arXiv:2005.00631",
    passes=_samples,
    shared=True,
    reads="p",
)
def mufidelity(
    case: Case, *, cells: int = 9, share: float = 0.2, samples: int = 100, baseline: Baseline = "zeros"
) -> MetricResult:
    """Correlation of the heatmap's sum over random patches with the probability lost without them (Bhatt et al.).

    Args:
        cells: Number of patches along each axis.
        share: Share of the patches that is removed at once.
        samples: Number of random subsets of the patches.
        baseline: What replaces removed patches: "zeros", "mean", "blur", "noise", a number, a tensor or a function.
    """
    check_whole("cells", cells)
    check_whole("samples", samples, least=2)
    check_number("share", share, most=1.0)
    index = patches(case.size, cells)
    subsets = random_patches(cells**index.ndim, share, samples, case.clean.seed)[:, index]  # (samples, *size)
    lost = case.scores.unsqueeze(2) - _without(case, ("patches", cells, share), subsets, baseline, raw_score=False)
    return MetricResult(correlation(_sums(case, subsets), lost))


def random_patches(number: int, share: float, samples: int, seed: int) -> Tensor:
    """Return random subsets, (samples, number), bool. Each has round(share * number) patches, at least one."""
    generator = torch.Generator().manual_seed(seed)
    permutations = torch.rand(samples, number, generator=generator).argsort(1)
    return permutations < max(1, round(share * number))


@metric("infidelity", needs="passes", higher_is_better=False, paper="arXiv:1901.09392", passes=_samples, shared=True)
def infidelity(case: Case, *, samples: int = 50, baseline: Baseline = "zeros") -> MetricResult:
    """Squared difference between the heatmap's sum over random squares and the score lost with them (Yeh et al.).

    The heatmap is first multiplied by the number that makes this smallest, because its own scale has no meaning.

    Args:
        samples: Number of random squares.
        baseline: What replaces removed squares: "zeros", "mean", "blur", "noise", a number, a tensor or a function.
    """
    check_whole("samples", samples)
    subsets = random_squares(case.size, samples, case.clean.seed)
    clean = case.clean.trace.scores[:, case.columns].unsqueeze(2)
    lost = (clean - _without(case, "squares", subsets, baseline, raw_score=True)).double()  # (N, J, samples)
    sums = _sums(case, subsets).double()
    energy = (sums**2).sum(2, keepdim=True)
    beta = torch.where(energy > 0, (sums * lost).sum(2, keepdim=True) / energy, 0)
    return MetricResult(((beta * sums - lost) ** 2).mean(2).to(case.values))


def random_squares(size: torch.Size, samples: int, seed: int) -> Tensor:
    """Return random boxes, (samples, *size), bool. Their sides are a tenth to a half of the input's."""
    generator = torch.Generator().manual_seed(seed)
    squares = torch.ones(samples, *size, dtype=torch.bool)
    shares = 0.1 + 0.4 * torch.rand(samples, generator=generator, dtype=torch.float64)
    for axis, length in enumerate(size):
        sides = (shares * length).round().clamp(min=1).long()
        starts = (torch.rand(samples, generator=generator, dtype=torch.float64) * (length - sides + 1)).long()
        along = torch.arange(length)
        inside = (along >= starts.unsqueeze(1)) & (along < (starts + sides).unsqueeze(1))  # (samples, length)
        squares &= inside.view(samples, *(length if each == axis else 1 for each in range(len(size))))
    return squares


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return Pearson's correlation over the last axis, (N, J, n) twice -> (N, J); 0 if one of them is constant."""
    first, second = _centred(one.double()), _centred(other.double())
    return (first * second).sum(2).to(one)


def _centred(values: Tensor) -> Tensor:
    """Subtract the mean and divide by the norm, (N, J, n). Values that vary by rounding alone become zeros."""
    centred = values - values.mean(2, keepdim=True)
    norm, whole = centred.norm(dim=2, keepdim=True), values.norm(dim=2, keepdim=True)
    return torch.where(norm > 1e-7 * whole, centred / norm, 0)


def _sums(case: Case, subsets: Tensor) -> Tensor:
    """(N, J, samples): the heatmap's sum over each subset of the positions."""
    weights = subsets.flatten(1).to(case.signed)  # (samples, P)
    return case.signed.flatten(2) @ weights.mT


def _without(case: Case, key: object, subsets: Tensor, baseline: Baseline, *, raw_score: bool) -> Tensor:
    """(N, J, samples): the score without each subset of the positions."""
    fill = filled(case.clean, baseline)

    def removed(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        return torch.where(subsets[trials].unsqueeze(1).to(inputs.device), fill[rows].to(inputs), inputs)

    return case.rescored_alike((key, fill_key(baseline)), removed, len(subsets), raw_score=raw_score)

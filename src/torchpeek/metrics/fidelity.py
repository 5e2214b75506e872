"""Fidelity metrics: whether a part's share of the heatmap is what the score loses without that part.

The passes are the same for every heatmap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from torchpeek.argument_types import Cells, Count, Share, Whole
from torchpeek.metrics.case import Case, round_to_levels
from torchpeek.metrics.correlation import correlation, mean_ranks
from torchpeek.metrics.fills import Baseline, drawn_noise, fill_key, filled
from torchpeek.metrics.metric import MetricResult, metric
from torchpeek.metrics.patches import patch_sums, patches


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
    case: Case,
    *,
    cells: Cells = 9,
    share: Share = 0.2,
    samples: Annotated[int, Whole(2, 1_000_000)] = 100,
    baseline: Baseline = "zeros",
) -> MetricResult:
    """Correlation of the heatmap's sum over random patches with the probability lost without them (Bhatt et al.).

    Args:
        cells: Number of patches along each axis.
        share: Share of the patches that is removed at once.
        samples: Number of random subsets of the patches.
        baseline: What replaces removed patches: "zeros", "mean", "blur", "noise", a number, a tensor or a function.
    """
    index = patches(case.size, cells)
    subsets = random_patches(cells**index.ndim, share, samples, case.clean.seed)[:, index]  # (samples, *size)
    lost = case.scores.unsqueeze(2) - _without(case, ("patches", cells, share), subsets, baseline, raw_score=False)
    return MetricResult(correlation(_sums(case, subsets), lost))


def random_patches(number: int, share: float, samples: int, seed: int) -> Tensor:
    """Return random subsets, (samples, number), bool. Each has round(share * number) patches, at least one."""
    generator = torch.Generator().manual_seed(seed)
    permutations = torch.rand(samples, number, generator=generator, dtype=torch.float32).argsort(1)
    return permutations < max(1, round(share * number))


@metric("infidelity", needs="passes", higher_is_better=False, paper="arXiv:1901.09392", passes=_samples, shared=True)
def infidelity(case: Case, *, samples: Count = 50, baseline: Baseline = "zeros") -> MetricResult:
    """Squared difference between the heatmap's sum over random squares and the score lost with them (Yeh et al.).

    The heatmap is first multiplied by the number that makes this smallest, because its own scale has no meaning.

    Args:
        samples: Number of random squares.
        baseline: What replaces removed squares: "zeros", "mean", "blur", "noise", a number, a tensor or a function.
    """
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


@metric(
    "sensitivity-n",
    needs="passes",
    higher_is_better=True,
    paper="arXiv:1711.06104",
    passes=lambda options: int(options["sizes"]) * int(options["samples"]),
    shared=True,
)
def sensitivity_n(
    case: Case, *, sizes: Cells = 5, samples: Annotated[int, Whole(2, 1_000_000)] = 20, baseline: Baseline = "zeros"
) -> MetricResult:
    """Correlation of the heatmap's sum over n random positions with the score lost without them (Ancona et al.).

    `curve` has the correlation for each n, and `values` are their mean. n grows from 1 % to 80 % of the positions, each
    time by the same factor.

    Args:
        sizes: Number of different n.
        samples: Number of random subsets for each n.
        baseline: What replaces removed positions: "zeros", "mean", "blur", "noise", a number, a tensor or a function.
    """
    subsets = random_positions(case.size, sizes, samples, case.clean.seed)  # (sizes * samples, *size)
    clean = case.clean.trace.scores[:, case.columns].unsqueeze(2)
    lost = clean - _without(case, ("positions", sizes), subsets, baseline, raw_score=True)
    each_size = zip(_sums(case, subsets).chunk(sizes, 2), lost.chunk(sizes, 2), strict=True)
    curve = torch.stack([correlation(sums, losses) for sums, losses in each_size], dim=2)  # (N, J, sizes)
    return MetricResult(curve.mean(2), curve)


def random_positions(size: torch.Size, sizes: int, samples: int, seed: int) -> Tensor:
    """Return random subsets of the positions, (sizes * samples, *size), bool, those of the smallest size first."""
    generator, positions = torch.Generator().manual_seed(seed), size.numel()
    counts = [max(1, round(positions * 0.01 * 80 ** (step / max(1, sizes - 1)))) for step in range(sizes)]
    drawn = [
        torch.rand(samples, positions, generator=generator, dtype=torch.float32).argsort(1) < count for count in counts
    ]
    return torch.cat(drawn).view(-1, *size)


@metric(
    "monotonicity-correlation",
    needs="passes",
    higher_is_better=True,
    paper="arXiv:2007.07584",
    passes=lambda options: int(options["cells"]) ** 2 * int(options["samples"]),  # of a picture
    shared=True,
    reads="p",
)
def monotonicity_correlation(case: Case, *, cells: Cells = 6, samples: Count = 4) -> MetricResult:
    """Rank correlation of each patch's absolute sum with how far the probability changes with it (Nguyen and Martinez).

    The change is the mean square over random contents of the patch: uniform noise between the smallest and the largest
    value of each channel.

    Args:
        cells: Number of patches along each axis.
        samples: Number of random contents of each patch.
    """
    index = patches(case.size, cells)
    number = cells**index.ndim
    contents = drawn_noise(case.clean, samples, salt=5)  # (N, samples, C, *size)

    def changed(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        inside = index == (trials // samples).view(-1, *(1 for _ in case.size))  # (b, *size)
        drawn = contents[rows, (trials % samples).to(rows.device)].to(inputs)
        return torch.where(inside.unsqueeze(1).to(inputs.device), drawn, inputs)

    scores = case.rescored_alike(("contents", cells, samples), changed, number * samples)
    change = (case.scores.unsqueeze(2) - scores).double() ** 2
    # Of the root, whose order is the same: squares of small changes would be rounded to zero.
    effects = round_to_levels(change.view(*change.shape[:2], number, samples).mean(3).sqrt())  # (N, J, patches)
    sums = round_to_levels(patch_sums(case.signed, index.to(case.signed.device), number).abs())
    return MetricResult(correlation(mean_ranks(sums), mean_ranks(effects)).to(case.values))


@metric(
    "completeness",
    needs="passes",
    higher_is_better=False,
    paper="arXiv:1703.01365",
    passes=lambda options: 1,
    shared=True,
)
def completeness(case: Case, *, baseline: Baseline = "zeros") -> MetricResult:
    """Distance of the heatmap's sum from the difference of the scores of input and baseline (Sundararajan et al.).

    The sum is over the heatmap's own grid. Only some methods promise that it is this difference, for their own
    baseline: those that distribute the score over the input.

    Args:
        baseline: The input without content: "zeros", "mean", "blur", "noise", a number, a tensor or a function.
    """
    everywhere = torch.ones(1, *case.size, dtype=torch.bool)
    without = _without(case, "everything", everywhere, baseline, raw_score=True).squeeze(2)
    difference = case.clean.trace.scores[:, case.columns].double() - without.double()
    return MetricResult((case.values.flatten(2).double().sum(2) - difference).abs().to(case.values))


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

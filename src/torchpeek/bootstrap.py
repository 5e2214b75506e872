"""Bootstrap confidence intervals of a mean."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from torchpeek.errors import InputError

_AT_ONCE = 2**22  # numbers of a chunk of resamples


def bootstrap_interval(
    values: Tensor, confidence: float = 0.95, seed: int = 0, draws: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the lower and upper end of the confidence interval of the mean over the samples.

    This is the expanded percentile interval. The samples are drawn again with replacement, `draws` times, and the
    interval lies between two percentiles of the resampled means. Plain percentiles are too narrow for few samples, so
    the percentiles lie further out the smaller n is.

    Args:
        values: (n, ...), one entry for each sample.
        confidence: The confidence level, between 0 and 1.
        seed: Seed of the resampling.
        draws: The number of resamples. None means 10,000, or 2,000 for a hundred samples or more, whose percentiles lie
            less far out.

    Returns:
        Two tensors (...), float64 on the CPU. They are NaN where there are fewer than two samples, or one is NaN or
        infinite.

    Raises:
        InputError: When `confidence` is not between 0 and 1.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap, 2015, arXiv:1411.5279.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence!r}; allowed: a number between 0 and 1, such as 0.95")
    n = len(values)
    if n < 2:
        undefined = torch.full(values.shape[1:], math.nan, dtype=torch.float64)
        return undefined, undefined.clone()
    draws = draws or (10_000 if n < 100 else 2_000)
    samples = (
        values.detach().double().cpu().flatten(1) if values.ndim > 1 else values.detach().double().cpu().view(n, 1)
    )
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, _AT_ONCE // n)
    means = torch.cat(
        [_drawn_means(samples, min(at_once, draws - start), generator) for start in range(0, draws, at_once)]
    )
    tail = _tail(n, confidence)
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    return low.view(values.shape[1:]), high.view(values.shape[1:])


def _drawn_means(values: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Return the means of `draws` resamples: (n, m) -> (draws, m)."""
    n = len(values)
    drawn = torch.randint(n, (draws, n), generator=generator)
    counts = torch.zeros(draws, n, dtype=torch.float64)  # how often each sample was drawn
    counts.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand_as(drawn))
    return counts @ values / n


def _tail(n: int, confidence: float) -> float:
    """Return the share of the resampled means that the interval leaves out on each side.

    The variance of the resampled means is divided by n, not by n - 1, and their quantiles are those of the normal
    distribution, not Student's. The share corrects for both.
    """
    normal = NormalDist()
    wide = math.sqrt(n / (n - 1)) * _student(-normal.inv_cdf((1 - confidence) / 2), n - 1)
    return normal.cdf(-wide)


def _student(z: float, freedom: int) -> float:
    """Return Student's quantile for the normal quantile `z` and the degrees of freedom.

    The relative error at 95 % is at most 0.001 from five degrees of freedom on.

    Source: Abramowitz and Stegun, 26.7.5.
    """
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, 1))

"""Between which numbers a mean lies, as the samples themselves say."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from torchpeek.errors import InputError

_AT_ONCE = 2**22  # numbers


def bootstrap_interval(
    values: Tensor, confidence: float = 0.95, seed: int = 0, draws: int | None = None
) -> tuple[Tensor, Tensor]:
    """Of values (n, ...) the lower and the upper end for the mean over n, (...) each, in float64 on the CPU.

    NaN where there are fewer than two, or one is NaN or infinite.

    The expanded percentile interval: percentiles of the means of `draws` samples that are drawn from the n with
    replacement, further out the smaller n is, as plain percentiles are too narrow for a few (Hesterberg, What Teachers
    Should Know About the Bootstrap, 2015, arXiv:1411.5279). Unless said, `draws` are 10,000, and 2,000 of a hundred
    samples or more, whose percentiles lie less far out. Raises InputError.
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
    """(n, m) -> (draws, m)"""
    n = len(values)
    drawn = torch.randint(n, (draws, n), generator=generator)
    counts = torch.zeros(draws, n, dtype=torch.float64)  # how often each was drawn
    counts.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand_as(drawn))
    return counts @ values / n


def _tail(n: int, confidence: float) -> float:
    """The share of the drawn means on each side that the interval leaves out.

    Those vary as if n were their degrees of freedom and their variance divided by n, not n - 1, and their quantiles are
    the normal distribution's, where Student's are meant.
    """
    normal = NormalDist()
    wide = math.sqrt(n / (n - 1)) * _student(-normal.inv_cdf((1 - confidence) / 2), n - 1)
    return normal.cdf(-wide)


def _student(z: float, freedom: int) -> float:
    """Student's quantile from the normal one, z.

    Abramowitz and Stegun 26.7.5; at 95 % right to one in a thousand from five degrees of freedom on.
    """
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, 1))

"""The mean over samples with its bootstrap interval."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from torchpeek.argument_types import Seed
from torchpeek.bootstrap import bootstrap_interval
from torchpeek.keywords import checked_keywords


class Interval(NamedTuple):
    """The mean over the samples, with its confidence interval.

    Args:
        mean: The mean of the values that are not NaN.
        low: Lower end of the interval. NaN if there are fewer than two samples, or one is infinite.
        high: Upper end of the interval, or NaN as above.
        samples: Number of samples that have a value.

    Example:
        >>> interval = tp.metrics.Interval(0.5, 0.41, 0.58, 20)
        >>> print(interval)
        0.5 [0.41, 0.58]
    """

    mean: float
    low: float
    high: float
    samples: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]" if self.low == self.low else f"{self.mean:.4g}"


@checked_keywords
def bootstrap(values: Tensor, confidence: float = 0.95, seed: Seed = 0) -> Interval:
    """Return the mean of the values with its bootstrap interval. NaN are left out.

    Args:
        values: (n,), one for each sample.
        confidence: The confidence level, between 0 and 1.
        seed: Seed of the resampling.

    Returns:
        The Interval. Its ends are NaN for fewer than two values.

    Raises:
        InputError: When `confidence` is not between 0 and 1.

    Example:
        >>> interval = tp.metrics.bootstrap(torch.tensor([0.25, 0.75, float("nan")]))
        >>> interval.mean, interval.samples
        (0.5, 2)
    """
    known = values[~values.isnan()].double().cpu()
    low, high = bootstrap_interval(known, confidence, seed)
    return Interval(mean_of(known), float(low), float(high), len(known))


def of_samples(values: Tensor) -> Tensor:
    """Return the mean over each sample's scores, (N, K, ...) -> (N, ...): they are not independent of each other."""
    return values.detach().double().cpu().nanmean(1)


def mean_of(values: Tensor) -> float:
    """Return the mean of the values that are not NaN; NaN where there is none."""
    known = values[~values.isnan()]
    return float(known.double().mean()) if len(known) else float("nan")

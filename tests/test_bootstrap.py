"""Bootstrap intervals against a slow implementation, and how often they miss the mean."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch

from torchpeek.bootstrap import _student, _tail, bootstrap_interval
from torchpeek.errors import InputError


def slow(values: list[float], tail: float, draws: int) -> tuple[float, float]:
    """One mean after the other, by another generator."""
    random = np.random.default_rng(0)
    means = [random.choice(values, len(values)).mean() for _ in range(draws)]
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))


@pytest.mark.parametrize("n", [6, 20, 60])
def test_against_a_slow_one(n: int) -> None:
    values = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) ** 3
    low, high = bootstrap_interval(values, draws=20_000)
    expected = slow(values.tolist(), _tail(n, 0.95), 20_000)
    spread = float(values.std()) / n**0.5
    assert float(low) == pytest.approx(expected[0], abs=0.1 * spread)
    assert float(high) == pytest.approx(expected[1], abs=0.1 * spread)


@pytest.mark.parametrize(("confidence", "within"), [(0.9, 1e-4), (0.95, 2e-4), (0.99, 1e-3)])
def test_students_quantile(confidence: float, within: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    for freedom in (5, 6, 9, 30, 1000):
        assert _student(z, freedom) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=within)


def test_how_far_out() -> None:
    """Of many samples the plain percentiles; of a few Hesterberg's formula, by another's quantiles."""
    assert _tail(10**6, 0.95) == pytest.approx(0.025, rel=1e-3)
    stats = pytest.importorskip("scipy.stats")
    for n in (6, 10, 20, 50):
        assert _tail(n, 0.95) == pytest.approx(
            stats.norm.cdf(-((n / (n - 1)) ** 0.5) * stats.t.ppf(0.975, n - 1)), rel=3e-3
        )


@pytest.mark.parametrize("n", [6, 12])
def test_how_often_it_misses(n: int) -> None:
    """Of normal samples the true mean lies outside in one of twenty; plain percentiles miss twice as often of six."""
    random = torch.Generator().manual_seed(0)
    samples = torch.randn(n, 4000, generator=random, dtype=torch.float64)
    low, high = bootstrap_interval(samples, draws=2000)
    missed = float(((low > 0) | (high < 0)).double().mean())
    assert 0.03 < missed < 0.07


def test_each_column_is_its_own() -> None:
    values = torch.rand(9, 2, 3)
    low, high = bootstrap_interval(values, seed=5)
    assert low.shape == high.shape == (2, 3)
    one, other = bootstrap_interval(values[:, 1, 2], seed=5)
    assert (float(low[1, 2]), float(high[1, 2])) == (pytest.approx(float(one)), pytest.approx(float(other)))


def test_many_samples_in_pieces() -> None:
    """More than go at once, and the same for every seed."""
    values = torch.rand(3000, dtype=torch.float64)
    first, again = (bootstrap_interval(values, draws=3000)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, bootstrap_interval(values, draws=3000, seed=1)[0])
    spread = float(values.std()) / 3000**0.5
    assert float(first) == pytest.approx(float(values.mean()) - 1.96 * spread, abs=0.2 * spread)


@pytest.mark.parametrize("values", [[], [2.0], [1.0, float("inf")], [1.0, 2.0, float("nan")]])
def test_where_nothing_can_be_said(values: list[float]) -> None:
    assert all(bool(each.isnan()) for each in bootstrap_interval(torch.tensor(values)))


def test_what_cannot_be() -> None:
    for count in (1, 4):
        with pytest.raises(InputError, match="confidence is 95; allowed: a number between 0 and 1"):
            bootstrap_interval(torch.rand(count), 95)

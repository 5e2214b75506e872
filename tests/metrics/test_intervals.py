"""Means over samples and their bootstrap intervals."""

from __future__ import annotations

import math

import pytest
import torch

from torchpeek.metrics import bootstrap


def test_the_interval_is_that_of_the_mean() -> None:
    """Against the normal approximation, which holds for many samples."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    found = bootstrap(values)
    spread = 1.96 * float(values.std()) / 400**0.5
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(float(values.mean()) - spread, abs=0.2 * spread)
    assert found.high == pytest.approx(float(values.mean()) + spread, abs=0.2 * spread)
    assert bootstrap(values) == found
    narrow = bootstrap(values, confidence=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_of_one_nothing_is_said() -> None:
    found = bootstrap(torch.tensor([2.0, torch.nan]))
    assert (found.mean, found.samples) == (2.0, 1)
    assert math.isnan(found.low)
    assert str(found) == "2"

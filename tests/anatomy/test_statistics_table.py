"""The table that statistics() returns, where there is nothing to compute a number from."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.text_table import percentage


class Apply(nn.Module):
    """A module without weights that applies a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": lambda x: x * math.nan,
    "infinity": lambda x: x.abs() / 0,
    "both": lambda x: torch.cat([x / 0, x * math.nan]),
    "nothing": lambda x: x[:0],
}


@pytest.mark.parametrize("function", VALUES.values(), ids=VALUES)
class TestNoFiniteValue:
    def test_no_number_is_made_up(self, function: Callable[[Tensor], Tensor]) -> None:
        found = tp.statistics(Apply(function), [torch.ones(2, 3), torch.ones(4, 3)])
        summary = found[0].output.summary()
        assert summary.count == 0
        assert all(map(math.isnan, (summary.mean, summary.std, summary.min, summary.max, summary.zero_share)))

    def test_the_texts_say_nan_once_for_each_number(self, function: Callable[[Tensor], Tensor]) -> None:
        found = tp.statistics(Apply(function), [torch.ones(2, 3)])
        assert found.cells()[0][3:8] == ("nan",) * 5
        for text in (str(found), repr(found[0].output), found._repr_html_()):
            assert "nan%" not in text
            assert " inf, max" not in text
            assert "-inf" not in text


def test_one_finite_value_is_enough() -> None:
    found = tp.statistics(nn.Identity(), [torch.tensor([[math.nan, 0.0], [math.inf, math.nan]])])
    summary = found[0].output.summary()
    assert (summary.count, summary.min, summary.max, summary.zero_share) == (1, 0.0, 0.0, 1.0)
    assert found.cells()[0][3:] == ("0", "0", "0", "0", "100.0%", "0/2", "2", "1")


def test_percentages() -> None:
    assert [percentage(share) for share in (0.0, 0.1234, 1.0, math.nan)] == ["0.0%", "12.3%", "100.0%", "nan"]

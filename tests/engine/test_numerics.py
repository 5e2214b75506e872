"""When numbers count as finite, against a look at each element."""

from __future__ import annotations

import pytest
import torch

from torchpeek.engine.numerics import all_finite

LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([], True),
        ([0.0, -1.0, 2.0], True),
        ([60_000.0] * 4, True),  # their sum overflows in float16
        ([float("inf"), 1.0], False),
        ([float("inf"), -float("inf")], False),
        ([float("nan"), 1.0], False),
        ([-float("inf")], False),
    ],
)
def test_all_finite(dtype: torch.dtype, values: list[float], finite: bool) -> None:
    tensor = torch.tensor(values, dtype=dtype)
    assert all_finite(tensor) is finite
    assert all_finite(tensor) is bool(torch.isfinite(tensor).all())


def test_the_largest_numbers() -> None:
    assert all_finite(torch.tensor([LARGEST, LARGEST]))
    assert all_finite(torch.tensor([LARGEST, -LARGEST]))
    assert not all_finite(torch.tensor([LARGEST, LARGEST, float("nan")]))


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64, torch.float8_e5m2])
def test_other_kinds_of_numbers(kind: torch.dtype) -> None:
    ones = torch.ones(3).to(kind)
    assert all_finite(ones * 1j if ones.is_complex() else ones)


def test_a_graph_does_not_grow() -> None:
    x = torch.ones(2, requires_grad=True)
    assert all_finite(x * 2)

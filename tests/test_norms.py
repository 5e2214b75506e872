"""Norms of any magnitude against sums in exact arithmetic."""

from __future__ import annotations

import math
import warnings
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from torchpeek.norms import Magnitude, magnitude, mean_and_std, norm, norms, total_norm


def exact(tensor: Tensor) -> Magnitude:
    """The same numbers from fractions, whose squares neither overflow nor underflow."""
    values = [Fraction(value) for value in tensor.double().flatten().tolist()]
    squares = sum(value * value for value in values)
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 40, -10_000, 10_000
        root = (Decimal(squares.numerator) / Decimal(squares.denominator)).sqrt()
    return Magnitude(float(root), float(sum(map(abs, values)) / len(values)), float(max(map(abs, values))))


SIZES = [
    (torch.float16, 6e-8),
    (torch.float16, 1e4),
    (torch.bfloat16, 1e-39),
    (torch.bfloat16, 1e37),
    (torch.float32, 1e-45),
    (torch.float32, 1e-38),
    (torch.float32, 1e-25),
    (torch.float32, 1.0),
    (torch.float32, 1e20),
    (torch.float32, 5e37),
    (torch.float64, 5e-324),
    (torch.float64, 1e-310),
    (torch.float64, 1e-200),
    (torch.float64, 1e200),
    (torch.float64, 1e306),
]


@pytest.mark.parametrize(("dtype", "size"), SIZES)
def test_of_every_size_that_a_dtype_holds(dtype: torch.dtype, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-4, 5, (7, 5), generator=generator).double().mul(size).to(dtype)
    assert values.any()
    assert values.isfinite().all()
    expected = exact(values)
    assert magnitude(values) == pytest.approx(expected, rel=1e-12, abs=0)
    # The fast sums are in float32, and in float64 for float64.
    assert norms([values, torch.ones(4), values]) == pytest.approx([expected.norm, 2.0, expected.norm], rel=1e-6, abs=0)


def test_of_values_far_apart() -> None:
    values = torch.tensor([1e-30, 3e20, -4e20, 1e-45])
    assert norm(values) == pytest.approx(math.hypot(*values.tolist()), rel=1e-12)
    # A large tensor whose small values decide: their squares underflow in float32.
    values = torch.full((1_000_000,), 1e-22)
    values[0] = 1e-20
    expected = math.sqrt(math.fsum(value * value for value in values.double().tolist()))
    assert norm(values) == pytest.approx(expected, rel=1e-9)
    assert norms([values]) == pytest.approx([expected], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_nan_and_infinity_stay(dtype: torch.dtype) -> None:
    infinite, neither = torch.tensor([1.0, -math.inf], dtype=dtype), torch.tensor([1.0, math.nan, 1e4], dtype=dtype)
    assert magnitude(infinite) == Magnitude(math.inf, math.inf, math.inf)
    assert all(math.isnan(number) for number in magnitude(neither))
    found = norms([infinite, neither])
    assert found[0] == math.inf
    assert math.isnan(found[1])
    assert math.isnan(total_norm([math.inf, math.nan]))


def test_a_sum_that_no_float64_holds_is_infinite() -> None:
    values = torch.full((4,), 1e308, dtype=torch.float64)
    found = magnitude(values)
    assert (found.norm, found.mean_abs, found.max_abs) == (math.inf, 1e308, 1e308)


def test_of_other_tensors() -> None:
    assert magnitude(torch.empty(0, 3)) == Magnitude(0.0, 0.0, 0.0)
    assert magnitude(torch.zeros(3)) == Magnitude(0.0, 0.0, 0.0)
    assert norms([torch.empty(0), torch.zeros(3), torch.arange(3)]) == [0.0, 0.0, math.sqrt(5)]
    assert magnitude(torch.tensor([3e-30 + 4e-30j, 0j])) == pytest.approx((5e-30, 2.5e-30, 5e-30), rel=1e-6, abs=0)
    assert norm(torch.tensor([3 + 4j]).conj()) == pytest.approx(5)
    assert norm(torch.tensor([[0.0, 3.0], [4.0, 0.0]]).to_sparse()) == pytest.approx(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls both deprecated or a prototype
        quantised = torch.quantize_per_tensor(torch.tensor([3.0, 4.0]), 1.0, 0, torch.qint8)
        nested = torch.nested.nested_tensor([torch.tensor([3.0]), torch.tensor([0.0, 4.0])])
        jagged = torch.nested.nested_tensor([torch.tensor([3.0]), torch.tensor([0.0, 4.0])], layout=torch.jagged)
        assert [norm(quantised), norm(nested), norm(jagged)] == pytest.approx([5, 5, 5])
        assert norms([quantised, nested, jagged]) == pytest.approx([5, 5, 5])
    # Two parts of one sparse value are added before they are squared.
    twice = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([1.0, 2.0]), (3,), check_invariants=True)
    assert magnitude(twice) == pytest.approx((3, 1, 3))


def test_total_norm() -> None:
    assert total_norm([3e-300, 4e-300]) == pytest.approx(5e-300, rel=1e-15, abs=0)
    assert total_norm([3e200, 4e200]) == pytest.approx(5e200)
    assert total_norm([]) == 0.0


@pytest.mark.parametrize(("dtype", "size"), [each for each in SIZES if each[1] < 1e37])
def test_mean_and_std(dtype: torch.dtype, size: float) -> None:
    values = (torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * size).to(dtype)
    numbers = [Fraction(value) for value in values.double().flatten().tolist()]
    mean = sum(numbers) / len(numbers)
    variance = sum((value - mean) ** 2 for value in numbers) / len(numbers)
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 40, -10_000, 10_000
        root = (Decimal(variance.numerator) / Decimal(variance.denominator)).sqrt()
    found = mean_and_std(values.double())
    least = 5e-324
    assert found[0] == pytest.approx(float(mean), rel=1e-12, abs=least)
    assert found[1] == pytest.approx(float(root), rel=1e-12, abs=least)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e-200, 1e300])
def test_mean_and_std_of_equal_values(value: float) -> None:
    assert mean_and_std(torch.full((7, 3), value, dtype=torch.float64)) == (value, 0.0)


def test_mean_and_std_without_numbers() -> None:
    assert all(map(math.isnan, mean_and_std(torch.tensor([1.0, math.nan]))))
    assert all(map(math.isnan, mean_and_std(torch.empty(0))))

"""Mean and standard deviation, against exact fractions, for numbers of every magnitude."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from torchpeek.hooks.recording.moments import chunks, combined, row_moments, scales, times


def exact(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation of the population, by exact arithmetic."""
    numbers = [Fraction(value) for value in values]
    mean = sum(numbers) / len(numbers)
    var = sum((number - mean) ** 2 for number in numbers) / len(numbers)
    if not var:
        return float(mean), 0.0
    shift = (var.numerator.bit_length() - var.denominator.bit_length()) // 2  # so that the root can be taken in float64
    scaled = var * Fraction(4) ** -shift
    return float(mean), math.ldexp(math.sqrt(scaled), shift)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class TestCombined:
    @pytest.mark.parametrize("magnitude", [1.0, 1e-300, 1e-160, 1e160, 1e300])
    @pytest.mark.parametrize("offset", [0.0, 3.0, 1e6])
    def test_groups_give_the_numbers_of_all_values(self, magnitude: float, offset: float) -> None:
        groups = [(random(2, n) + offset) * magnitude for n in (1, 5, 30)]  # two channels
        groups = [group * 1e-3 for group in groups]  # 1e300 * 1e6 is too large
        parts = [[exact(channel.tolist()) for channel in group] for group in groups]
        counts = torch.tensor([[group.shape[1]] * 2 for group in groups], dtype=torch.float64)
        means, stds = torch.tensor(parts, dtype=torch.float64).movedim(-1, 0)
        mean, std = combined(counts, means, stds)
        expected = torch.tensor([exact(channel.tolist()) for channel in torch.cat(groups, 1)], dtype=torch.float64)
        tolerance = 1e-9 if offset == 1e6 else 1e-12  # of the standard deviation, beside a mean that is 1e6 of it
        assert torch.allclose(mean / expected[:, 0], torch.ones(2, dtype=torch.float64), rtol=1e-12)
        assert torch.allclose(std / expected[:, 1], torch.ones(2, dtype=torch.float64), rtol=tolerance)

    def test_empty_groups_count_for_nothing(self) -> None:
        counts = torch.tensor([[0.0], [2.0], [0.0]], dtype=torch.float64)
        means = torch.tensor([[1e300], [3.0], [-7.0]], dtype=torch.float64)
        stds = torch.tensor([[1e300], [2.0], [9.0]], dtype=torch.float64)
        assert [each.item() for each in combined(counts, means, stds)] == [3.0, 2.0]
        mean, std = combined(counts * 0, means, stds)
        assert mean.isfinite()
        assert std.item() == 0

    def test_equal_means_have_exactly_that_mean(self) -> None:
        counts = torch.tensor([[3.0], [7.0], [11.0]], dtype=torch.float64)
        means = torch.full((3, 1), 0.1, dtype=torch.float64)
        mean, std = combined(counts, means, torch.zeros(3, 1, dtype=torch.float64))
        assert (mean.item(), std.item()) == (0.1, 0.0)

    def test_by_hand(self) -> None:
        """1, 3 and 8: the mean is 4, the squares of the deviations are 9, 1 and 16."""
        counts = torch.tensor([[2.0], [1.0]], dtype=torch.float64)
        means, stds = torch.tensor([[[2.0], [8.0]], [[1.0], [0.0]]], dtype=torch.float64)
        mean, std = combined(counts, means, stds)
        assert mean.item() == pytest.approx(4)
        assert std.item() == pytest.approx(math.sqrt(26 / 3))


class TestScales:
    @pytest.mark.parametrize("number", [5e-324, 1e-308, 1e-160, 0.3, 1.0, 1e160, 1.7e308])
    def test_they_lead_to_about_one_and_exactly_back(self, number: float) -> None:
        largest = torch.tensor([number], dtype=torch.float64)
        scale, back = scales(largest)
        scaled = times(largest, scale)
        assert 0.25 <= scaled.item() <= 2
        assert times(scaled, back).item() == number

    def test_zero_stays(self) -> None:
        scale, back = scales(torch.zeros(1, dtype=torch.float64))
        assert times(torch.zeros(1, dtype=torch.float64), scale * back).item() == 0


class TestRowMoments:
    @pytest.mark.parametrize("offset", [0.0, 1e8])
    def test_each_row(self, offset: float) -> None:
        rows = random(2, 3, 50) + offset
        mean, std = row_moments(rows)
        for r in range(2):
            for c in range(3):
                expected = exact(rows[r, c].tolist())
                assert mean[r, c].item() == pytest.approx(expected[0], rel=1e-12, abs=1e-14)
                assert std[r, c].item() == pytest.approx(expected[1], rel=1e-6 if offset else 1e-12)

    def test_rows_that_are_processed_in_several_groups(self) -> None:
        rows = random(1, 3, 1).expand(1, 3, (1 << 19) + 1).contiguous()
        assert len(chunks(rows.view(3, -1))) == 3
        mean, std = row_moments(rows)
        assert torch.allclose(mean[0], rows[0, :, 0])
        assert std.abs().max() < 1e-12


class TestChunks:
    def test_every_row_is_in_one(self) -> None:
        flat = torch.arange(10.0)[:, None].expand(10, 1 << 18)
        parts = chunks(flat)
        assert [(start, len(part)) for start, part in parts] == [(0, 4), (4, 4), (8, 2)]
        assert torch.equal(torch.cat([part[:, 0] for _, part in parts]), torch.arange(10.0))

    def test_a_row_is_never_divided(self) -> None:
        assert [len(part) for _, part in chunks(torch.zeros(2, 1 << 21))] == [1, 1]

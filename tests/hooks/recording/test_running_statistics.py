"""Running statistics against NumPy in float64."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchpeek.errors import InputError, NotFired
from torchpeek.hooks.recording.fine_bins import SAMPLED
from torchpeek.hooks.recording.running_statistics import RunningStatistics


def by_channel(batches: list[torch.Tensor], axis: int = 1) -> np.ndarray:
    """(C, everything), float64."""
    each = [np.moveaxis(batch.double().numpy(), axis, 0) for batch in batches]
    return np.concatenate([values.reshape(len(values), -1) for values in each], axis=1)


def running(batches: list[torch.Tensor], axis: int = 1) -> RunningStatistics:
    statistics = RunningStatistics(channel_axis=axis)
    for batch in batches:
        statistics.update(batch)
    return statistics


SHAPES = [(4, 5, 9, 7), (1, 5, 9, 7), (3, 5), (2, 5, 1, 1), (2, 5, 3), (1, 5, 2, 3, 4), (1, 5, 300, 400)]


class TestAgainstNumPy:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    def test_every_number(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        batches = [torch.randn(shape) * 3 + 2, torch.randn(shape).relu(), torch.randn(shape) - 5]
        batches = [batch.to(dtype) for batch in batches]
        batches[1][:, 2] = 0
        found, values = running(batches), by_channel(batches)
        close = {"rtol": 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(found.mean, values.mean(1), **close)
        np.testing.assert_allclose(found.var, values.var(1), **close)
        np.testing.assert_allclose(found.std, values.std(1), **close)
        np.testing.assert_array_equal(found.min, values.min(1))
        np.testing.assert_array_equal(found.max, values.max(1))
        np.testing.assert_allclose(found.zero_share, (values == 0).mean(1), rtol=1e-12)
        whole = found.summary()
        assert (whole.calls, whole.channels, whole.count) == (3, 5, values.size)
        assert (whole.min, whole.max) == (values.min(), values.max())
        np.testing.assert_allclose([whole.mean, whole.std], [values.mean(), values.std()], **close)

    @settings(max_examples=60, deadline=None)
    @given(
        arrays.arrays(
            np.float32,
            st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 3), st.integers(1, 9)),
            elements=st.floats(-1e6, 1e6, width=32),
        )
    )
    def test_any_values(self, drawn: np.ndarray) -> None:
        found, values = running([torch.from_numpy(drawn)] * 2), by_channel([torch.from_numpy(drawn)] * 2)
        if values.shape[1] == 0:
            assert found.mean.isnan().all()
            return
        scale = 1 + np.abs(values).max()
        np.testing.assert_allclose(found.mean, values.mean(1), atol=1e-6 * scale)
        np.testing.assert_allclose(found.std, values.std(1), atol=1e-4 * scale)
        np.testing.assert_allclose(found.zero_share, (values == 0).mean(1), rtol=1e-12)

    def test_a_mean_far_from_zero_cancels_nothing(self) -> None:
        """The mean of squares less the square of the mean would give nonsense in float32 here."""
        batches = [1e4 + torch.randn(2, 3, 16, 16) for _ in range(3)]
        naive = torch.cat(batches).square().mean() - torch.cat(batches).mean().square()
        truth = by_channel(batches).var(1)
        assert abs(float(naive) - truth.mean()) > 0.5
        np.testing.assert_allclose(running(batches).var, truth, rtol=1e-3)

    def test_by_another_axis(self) -> None:
        tokens = [torch.randn(2, 7, 5), torch.randn(3, 4, 5)]
        np.testing.assert_allclose(running(tokens, -1).mean, by_channel(tokens, -1).mean(1), rtol=1e-5)

    def test_layouts(self) -> None:
        x = torch.randn(2, 5, 6, 7)
        for laid_out in (
            x.contiguous(memory_format=torch.channels_last),
            x.transpose(2, 3),
            x.expand(3, 2, 5, 6, 7)[1],
        ):
            np.testing.assert_allclose(running([laid_out]).mean, by_channel([x]).mean(1), rtol=1e-5, atol=1e-7)


class TestNonFinite:
    def test_is_counted_and_left_out(self) -> None:
        x = torch.arange(24.0).view(2, 3, 4)
        y = x.clone()
        y[0, 1, 2], y[1, 1, 0], y[1, 2, 3] = math.nan, math.inf, -math.inf
        found = running([x, y, x])
        assert found.nan.tolist() == [0, 1, 0]
        assert found.inf.tolist() == [0, 1, 1]
        assert found.first_not_finite == 1
        values = by_channel([x, y, x])
        values[~np.isfinite(values)] = np.nan
        np.testing.assert_allclose(found.mean, np.nanmean(values, 1), rtol=1e-6)
        np.testing.assert_allclose(found.var, np.nanvar(values, 1), rtol=1e-6)
        assert found.max.tolist() == np.nanmax(values, 1).tolist()
        assert found.histogram(4)[0].sum() == 72 - 3

    def test_squares_that_overflow(self) -> None:
        x = torch.tensor([[[1e25, -1e25, 3e25, 0.0, 1.0]]])
        np.testing.assert_allclose(running([x]).std, by_channel([x]).std(1), rtol=1e-6)

    def test_all_of_them(self) -> None:
        found = running([torch.full((1, 2, 8), math.nan)])
        assert found.mean.isnan().all()
        assert found.summary().nan == 16
        assert not found.dead.any()


class TestDeadChannels:
    def test_zero_everywhere_in_every_call(self) -> None:
        x = torch.randn(2, 3, 4, 4)
        x[:, 1] = 0
        found = running([x, x])
        assert found.dead.tolist() == [False, True, False]
        x[1, 1, 3, 3] = 1e-30
        found.update(x)
        assert not found.dead.any()


class TestHistogram:
    def test_against_numpy_on_bins_that_fit(self) -> None:
        """Edges that are powers of two: no fine bin lies across them, so the counts are exact."""
        values = torch.cat([torch.rand(3000) * 8 - 4, torch.tensor([-4.0, 0.0, 0.0, 4.0])])
        counts, edges = running([values.view(1, 1, -1)]).histogram(4)
        assert edges.tolist() == pytest.approx([-4, -2, 0, 2, 4])
        expected, _ = np.histogram(values.numpy(), [-4, -2, 0, 2, 4])
        assert counts.tolist() == pytest.approx(expected.tolist(), abs=1)

    def test_of_any_range(self) -> None:
        for scale in (1e-30, 1.0, 1e30):
            counts, edges = running([torch.randn(1, 1, 10_000, dtype=torch.float64) * scale]).histogram(20)
            middle = counts[9:11].sum() / counts.sum()
            assert counts.sum() == 10_000
            assert edges[0] < 0 < edges[-1]
            assert 0.1 < middle < 0.5

    def test_samples_at_most_so_many_evenly(self) -> None:
        x = torch.zeros(1, 4, 256, 256)
        x[..., ::2] = 1  # every other column: a sample with an even step would see one kind alone
        counts, _ = running([x]).histogram(2)
        assert counts.sum() <= SAMPLED
        assert counts.sum() > SAMPLED / 2
        assert counts[0] / counts.sum() == pytest.approx(0.5, abs=0.01)

    def test_one_value(self) -> None:
        counts, edges = running([torch.full((1, 1, 5), 3.0)]).histogram(3)
        assert counts.sum() == 5
        assert edges[0] <= 3 <= edges[-1]
        assert running([torch.zeros(1, 1, 5)]).histogram(3)[0].sum() == 5


class TestMemory:
    def test_is_constant(self) -> None:
        found = RunningStatistics()
        sizes = set()
        for _ in range(4):
            found.update(torch.randn(2, 8, 32, 32))
            held = [getattr(found, name) for name in RunningStatistics.__slots__]
            sizes.add(sum(each.nbytes for each in held if isinstance(each, torch.Tensor)))
        assert len(sizes) == 1


class TestRefusals:
    def test_channels_that_change(self) -> None:
        with pytest.raises(InputError, match="channel_axis"):
            running([torch.randn(2, 3), torch.randn(2, 4)])

    def test_nothing_yet(self) -> None:
        with pytest.raises(NotFired, match="no value yet"):
            _ = RunningStatistics().mean
        assert "no call" in repr(RunningStatistics())

    def test_no_histogram(self) -> None:
        found = RunningStatistics(histogram=False)
        found.update(torch.randn(2, 3))
        with pytest.raises(InputError, match="no histogram"):
            found.histogram()
        with pytest.raises(NotFired, match="no finite value"):
            running([torch.full((1, 1), math.nan)]).histogram()

    def test_complex_numbers(self) -> None:
        with pytest.raises(InputError, match="abs"):
            running([torch.randn(2, 3, dtype=torch.complex64)])


class TestMagnitudes:
    """Against the same numbers of the values times a power of two, and against sums in exact arithmetic."""

    @pytest.mark.parametrize(
        ("dtype", "exponent"),
        [
            (torch.float32, -130),
            (torch.float32, -83),
            (torch.float32, 66),
            (torch.float32, 122),
            (torch.bfloat16, -100),
            (torch.bfloat16, 100),
            (torch.float64, -1000),
            (torch.float64, -660),
            (torch.float64, 660),
            (torch.float64, 1017),
        ],
    )
    @pytest.mark.parametrize("shape", [(4, 5, 9, 7), (3, 5), (2, 5, 300)])
    def test_values_of_any_size(self, dtype: torch.dtype, exponent: int, shape: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        plain = [torch.randn(shape).mul(64).round() / 64, torch.randn(shape).relu().mul(64).round() / 64]
        plain = [batch.to(dtype).double() for batch in plain]
        found = running([(batch * 2.0**exponent).to(dtype) for batch in plain])
        values = by_channel(plain)
        np.testing.assert_allclose(np.ldexp(found.mean.numpy(), -exponent), values.mean(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.ldexp(found.std.numpy(), -exponent), values.std(1), rtol=1e-5)
        whole = found.summary()
        assert math.ldexp(whole.std, -exponent) == pytest.approx(values.std(), rel=1e-5)
        assert math.ldexp(whole.mean, -exponent) == pytest.approx(values.mean(), rel=1e-4, abs=1e-6)
        assert (whole.nan, whole.inf) == (0, 0)
        counts, edges = found.histogram(8)
        assert float(counts.sum()) == values.size
        assert edges.isfinite().all()
        assert (edges.diff() > 0).all()

    @pytest.mark.parametrize("size", [1e-320, 1e-200, 1e200, 1.5e308])
    def test_rows_that_differ_from_each_other_alone(self, size: float) -> None:
        """Each call is constant, so that the spread is between the calls."""
        found = running([torch.full((1, 1, 8), each * size, dtype=torch.float64) for each in (1.0, -1.0, 1.0, -1.0)])
        assert found.mean.item() == pytest.approx(0, abs=size * 1e-9)
        assert found.std.item() == pytest.approx(size, rel=1e-3 if size < 1e-310 else 1e-12, abs=0)

    def test_channels_of_different_size(self) -> None:
        sizes = torch.tensor([1e-300, 1e-25, 1.0, 1e25, 1e300], dtype=torch.float64)
        values = torch.randn(4, 5, 30).double()
        found = running([values * sizes[:, None]])
        np.testing.assert_allclose(found.std, values.std((0, 2), correction=0) * sizes, rtol=1e-9)
        assert found.summary().max == float((values * sizes[:, None]).max())

    def test_constant_values_have_no_spread(self) -> None:
        for size in (0.1, 1e-200, 1e200, 0.0):
            found = running([torch.full((2, 3, 7), size, dtype=torch.float64)] * 3)
            assert found.std.tolist() == [0, 0, 0]
            assert found.mean.tolist() == [size] * 3

    def test_nan_and_infinity_among_them(self) -> None:
        values = torch.tensor([[[3e-200, -3e-200, math.nan, math.inf, 0.0]]], dtype=torch.float64)
        found = running([values])
        assert found.std.item() == pytest.approx(3e-200 * math.sqrt(2 / 3), rel=1e-12, abs=0)
        assert (found.nan.tolist(), found.inf.tolist(), found.first_not_finite) == ([1], [1], 0)


class TestChannelAxis:
    def test_pooled_channels_have_the_statistics_of_all_values(self) -> None:
        torch.manual_seed(0)
        x, y = torch.randn(3, 5, 4), torch.randn(2, 7, 4) + 3
        x[:, 1] = 0
        found = running([x])
        found.pool_channels()
        found.update(y)
        values = torch.cat([x.flatten(), y.flatten()]).double()
        assert found.channels == 1
        assert found.mean.item() == pytest.approx(values.mean().item(), rel=1e-6)
        assert found.std.item() == pytest.approx(values.std(correction=0).item(), rel=1e-6)
        assert (found.min.item(), found.max.item()) == (values.min().item(), values.max().item())
        assert found.count.item() == len(values)
        assert not found.dead.any()

    @pytest.mark.parametrize(("axis", "alternative"), [(1, -1), (-1, 1)])
    def test_the_axis_whose_length_does_not_vary_has_the_channels(self, axis: int, alternative: int) -> None:
        tokens = [torch.randn(4, length, 16) for length in (10, 12, 10)]
        found = RunningStatistics(channel_axis=axis, alternative_axis=alternative)
        for each in tokens:
            found.update(each)
        assert (found.channels, found.calls, found.channel_axis) == (16, 3, -1)
        np.testing.assert_allclose(found.mean, by_channel(tokens, -1).mean(1), atol=1e-6)
        assert float(found.histogram()[0].sum()) == sum(each.numel() for each in tokens)

    def test_excluded_axes(self) -> None:
        found = RunningStatistics(channel_axis=1, alternative_axis=-1)
        found.update(torch.randn(4, 10, 16))
        assert found.is_ambiguous
        found.exclude_axes({1})
        assert (found.channels, found.is_ambiguous) == (16, False)
        found.exclude_axes({2})
        assert found.channels == 1

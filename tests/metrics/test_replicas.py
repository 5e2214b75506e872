"""The replicas of the metrics against numbers worked out by hand, closed forms and other implementations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from replicas import metric_terms as terms
from replicas import metrics as replica

PICTURE = [[[0.8, 0.4], [0.2, 0.0]]]  # (1, 2, 2), its mean 0.35
UNTIED = range(4)
ZEROS = np.zeros((1, 2, 2))


def mean_model(x):
    """Class 0 has the mean of the picture as its probability, class 1 what is left."""
    p = x.flatten(1).mean(1)
    return torch.stack([p.log(), (1 - p).log()], 1)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


class TestTools:
    @pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 5), (7, 4), (16, 16)])
    @pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (7, 4), (16, 13)])
    def test_bilinear_is_torchs(self, grid, size):
        values = torch.tensor(numbers(*grid))
        expected = F.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        np.testing.assert_allclose(terms.bilinear(values, size), expected, rtol=1e-12, atol=1e-12)

    def test_bilinear_by_hand(self):
        np.testing.assert_allclose(terms.bilinear([[0.0, 4.0]], (1, 4)), [[0, 1, 3, 4]])

    def test_bilinear_keeps_equal_numbers_equal(self):
        assert set(terms.bilinear(np.full((3, 3), 0.3), (11, 7)).ravel()) == {0.3}

    def test_mask_is_rectified_and_scaled_before_it_is_interpolated(self):
        # Interpolated first, -4 would eat into the place beside it.
        np.testing.assert_allclose(terms.mask([[-4.0, 2.0]], (1, 4)), [[0, 0.25, 0.75, 1]])

    def test_mask_of_a_map_without_anything_positive(self):
        assert not terms.mask([[-1.0, 0.0]], (2, 4)).any()

    def test_mask_of_an_even_map(self):
        assert (terms.mask(np.full((2, 2), 0.3), (4, 4)) == 1).all()

    def test_probability_is_the_softmax(self):
        logits = numbers(5)
        for label in range(5):
            found = terms.probability(lambda x: torch.tensor(logits)[None], PICTURE, label)
            assert found == pytest.approx(torch.tensor(logits).softmax(0)[label].item(), rel=1e-14)

    def test_probability_of_large_logits(self):
        assert terms.probability(lambda x: torch.tensor([[1000.0, 1000.0]]), PICTURE, 0) == 0.5

    def test_model_is_asked_in_float64_with_one_picture(self):
        seen = []
        terms.probability(lambda x: seen.append(x) or torch.zeros(1, 2), PICTURE, 0)
        assert seen[0].shape == (1, 1, 2, 2)
        assert seen[0].dtype == torch.float64

    def test_order_takes_the_highest_first_and_ties_by_their_keys(self):
        assert terms.axis_order([[1, 3, 1], [3, 1, 2]], [[5, 1, 4], [0, 3, 9]]) == [3, 1, 5, 4, 2, 0]

    def test_order_wants_a_key_for_each(self):
        with pytest.raises(ValueError):
            terms.axis_order([1, 2], [0])

    def test_replaced_takes_all_channels_and_leaves_the_picture_alone(self):
        x = numbers(3, 2, 4)
        kept = x.copy()
        out = terms.replaced(x, np.full((3, 2, 4), 9.0), [1, 6])
        assert (x == kept).all()
        assert np.argwhere(out == 9.0).tolist() == [[c, *at] for c in range(3) for at in ([0, 1], [1, 2])]
        assert (out[out != 9.0] == np.delete(x.reshape(3, 8), [1, 6], 1).ravel()).all()

    @pytest.mark.parametrize(("part", "whole", "total", "expected"), [(1, 2, 5, 2), (3, 2, 5, 8), (1, 3, 7, 2)])
    def test_shares_round_a_half_to_the_even_number(self, part, whole, total, expected):
        assert terms.share_of(part, whole, total) == expected

    def test_pearson_is_numpys(self):
        a, b = numbers(4, 5, seed=1), numbers(4, 5, seed=2)
        assert terms.pearson(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], rel=1e-12)

    def test_spearman_is_scipys(self):
        a, b = numbers(5, 6, seed=1), numbers(5, 6, seed=2)
        expected = scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic
        assert terms.spearman(a, b) == pytest.approx(expected, rel=1e-12)

    def test_spearman_with_ties_is_scipys(self):
        a, b = numbers(5, 6, seed=1).round(), numbers(5, 6, seed=2).round()
        assert len(set(a.ravel())) < 10
        expected = scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic
        assert terms.spearman(a, b) == pytest.approx(expected, rel=1e-12)

    def test_average_ranks_by_hand(self):
        assert terms.average_ranks([3, 1, 3, 2, 3]) == [4, 1, 4, 2, 4]

    def test_correlation_with_a_constant_is_zero(self):
        assert terms.spearman([1, 2, 3], [0.1, 0.1, 0.1]) == 0.0
        assert terms.pearson([0.1, 0.1, 0.1], [1, 2, 3]) == 0.0


class TestFills:
    def test_zeros(self):
        assert not terms.fill_zeros(PICTURE).any()

    def test_mean_is_of_each_channel(self):
        fill = terms.fill_mean([[[1.0, 3.0]], [[-1.0, 0.0]]])
        np.testing.assert_allclose(fill, [[[2, 2]], [[-0.5, -0.5]]])

    @pytest.mark.parametrize("size", [(6, 6), (9, 13), (16, 6)])
    def test_blur_is_the_direct_sum_in_two_dimensions(self, size):
        x = numbers(2, *size)
        weights = np.array([[math.exp(-(u * u + v * v) / 50) for v in range(-5, 6)] for u in range(-5, 6)])
        weights /= weights.sum()
        padded = F.pad(torch.tensor(x)[None], (5, 5, 5, 5), mode="reflect")[0]
        expected = F.conv2d(padded[:, None], torch.tensor(weights)[None, None])[:, 0]
        np.testing.assert_allclose(terms.fill_blur(x), expected, rtol=1e-12, atol=1e-12)

    def test_blur_of_an_axis_of_two_has_three_taps(self):
        e = math.exp(-1 / 50)
        a, b = 1 / (1 + 2 * e), 2 * e / (1 + 2 * e)  # of itself, and of the other one, seen twice
        np.testing.assert_allclose(terms.fill_blur([[[1.0, 0.0]]]), [[[a, b]]], rtol=1e-14)
        np.testing.assert_allclose(terms.fill_blur([[[1.0], [0.0]]]), [[[a], [b]]], rtol=1e-14)

    def test_blur_of_an_even_picture_is_the_picture(self):
        np.testing.assert_allclose(terms.fill_blur(np.full((1, 4, 7), 0.7)), 0.7)


class TestMasks:
    # Makes the mask [[1, 0.5], [0, 0]] and the masked picture [[0.8, 0.2], [0, 0]], whose mean is 0.25.
    values = np.array([[2.0, 1.0], [0.0, -1.0]])

    def test_where_the_probability_falls(self):
        assert replica.average_drop(mean_model, PICTURE, self.values, 0) == pytest.approx(2 / 7)
        assert replica.increase(mean_model, PICTURE, self.values, 0) == 0
        assert replica.average_gain(mean_model, PICTURE, self.values, 0) == 0

    def test_where_it_rises(self):
        assert replica.average_drop(mean_model, PICTURE, self.values, 1) == 0
        assert replica.increase(mean_model, PICTURE, self.values, 1) == 1
        assert replica.average_gain(mean_model, PICTURE, self.values, 1) == pytest.approx(0.1 / 0.35)

    def test_where_it_stays(self):
        assert replica.increase(mean_model, PICTURE, np.ones((2, 2)), 0) == 0

    def test_adcc_of_the_same_map_again(self):
        found = replica.adcc(mean_model, PICTURE, self.values, 0, lambda x: self.values)
        assert found == pytest.approx(3 / (1 + 1 / 0.625 + 7 / 5))  # 0.75

    def test_adcc_of_the_map_turned_around(self):
        # Both masks have the sum of squared deviations 11/16; theirs together is -9/16: coherency (1 - 9/11) / 2.
        found = replica.adcc(mean_model, PICTURE, self.values, 0, lambda x: [[-1.0, 0.0], [1.0, 2.0]])
        assert found == pytest.approx(3 / (11 + 1 / 0.625 + 7 / 5))  # 3 / 14

    def test_adcc_explains_the_masked_picture(self):
        seen = []
        replica.adcc(mean_model, PICTURE, self.values, 0, lambda x: seen.append(x) or self.values)
        np.testing.assert_allclose(seen[0], [[[0.8, 0.2], [0, 0]]])

    def test_adcc_of_an_even_map_is_zero(self):
        assert replica.adcc(mean_model, PICTURE, np.ones((2, 2)), 0, lambda x: np.ones((2, 2))) == 0


class TestCurves:
    def test_deletion_by_hand(self):
        curve = replica.deletion_curve(mean_model, PICTURE, PICTURE[0], 0, 4, ZEROS, UNTIED)
        np.testing.assert_allclose(curve, [0.35, 0.15, 0.05, 0, 0], atol=1e-15)
        assert replica.area(curve) == pytest.approx(0.09375)

    def test_insertion_by_hand(self):
        curve = replica.insertion_curve(mean_model, PICTURE, PICTURE[0], 0, 4, ZEROS, UNTIED)
        np.testing.assert_allclose(curve, [0, 0.2, 0.3, 0.35, 0.35], atol=1e-15)
        assert replica.area(curve) == pytest.approx(0.25625)

    def test_an_even_picture_falls_on_a_line(self):
        x, keys = np.full((3, 4, 4), 0.6), np.random.default_rng(0).permutation(16)
        curve = replica.deletion_curve(mean_model, x, [[1.0]], 0, 8, np.zeros((3, 4, 4)), keys)
        np.testing.assert_allclose(curve, 0.6 * (1 - np.arange(9) / 8), atol=1e-15)
        assert replica.area(curve) == pytest.approx(0.3)

    def test_an_even_map_follows_the_tie_keys(self):
        curve = replica.deletion_curve(mean_model, PICTURE, [[1.0]], 0, 4, ZEROS, [3, 1, 0, 2])
        np.testing.assert_allclose(curve, [0.35, 0.3, 0.2, 0.2, 0], atol=1e-15)

    def test_the_fill_is_what_is_put_there(self):
        ones = np.ones((1, 2, 2))
        curve = replica.deletion_curve(mean_model, PICTURE, PICTURE[0], 0, 2, ones, UNTIED)
        np.testing.assert_allclose(curve, [0.35, 0.55, 1])
        curve = replica.insertion_curve(mean_model, PICTURE, PICTURE[0], 0, 2, ones, UNTIED)
        np.testing.assert_allclose(curve, [1, 0.8, 0.35])

    def test_steps_that_do_not_divide_the_positions(self):
        x = np.full((1, 1, 5), 0.5)
        curve = replica.deletion_curve(mean_model, x, [[5.0, 4, 3, 2, 1]], 0, 2, np.zeros((1, 1, 5)), range(5))
        np.testing.assert_allclose(curve, [0.5, 0.3, 0], atol=1e-15)  # 2.5 positions are two

    def test_the_map_is_interpolated_before_it_is_ranked(self):
        x = np.array([[[0.1, 0.2, 0.3, 0.4]]])
        curve = replica.deletion_curve(mean_model, x, [[0.0, 1.0]], 0, 4, np.zeros((1, 1, 4)), range(4))
        np.testing.assert_allclose(curve, [0.25, 0.15, 0.075, 0.025, 0], atol=1e-15)

    def test_area_is_of_trapezoids(self):
        curve = numbers(8)
        assert replica.area(curve) == pytest.approx(np.trapezoid(curve, np.linspace(0, 1, 8)))

    def test_patches_of_an_uneven_picture(self):
        assert replica.patches((3, 5), 2) == [[0, 1, 2, 5, 6, 7], [3, 4, 8, 9], [10, 11, 12], [13, 14]]

    def test_aopc_by_hand(self):
        # The losses are 0, 0.2 and 0.3.
        assert replica.aopc(mean_model, PICTURE, PICTURE[0], 0, 2, 2, ZEROS, UNTIED) == pytest.approx(0.5 / 3)

    def test_aopc_orders_by_the_sum(self):
        # Patch 0 has the highest value, patch 1 the highest sum; patches 2 and 3 follow by their keys.
        values = [[5.0, -4, 2, 2], [0, 0, 0, 0]]
        x = np.array([[[0.1, 0.1, 0.8, 0.8], [0.2, 0.2, 0.0, 0.0]]])
        losses = [0, 1.6 / 8, 1.8 / 8, 1.8 / 8, 2.2 / 8]
        found = replica.aopc(mean_model, x, values, 0, 2, 4, np.zeros((1, 2, 4)), [0, 1, 3, 2])
        assert found == pytest.approx(sum(losses) / 5)


class TestRoad:
    def test_the_middle_of_three_by_three(self):
        x = numbers(2, 3, 3)
        removed = np.zeros((3, 3), dtype=bool)
        removed[1, 1] = True
        beside = x[:, 0, 1] + x[:, 1, 0] + x[:, 1, 2] + x[:, 2, 1]
        across = x[:, 0, 0] + x[:, 0, 2] + x[:, 2, 0] + x[:, 2, 2]
        out = replica.linear_system_imputed(x, removed)
        np.testing.assert_allclose(out[:, 1, 1], beside / 6 + across / 12)
        assert (out[:, ~removed] == x[:, ~removed]).all()

    def test_at_a_corner_and_at_an_edge_the_weights_left_are_scaled_to_one(self):
        x = numbers(1, 3, 5)
        removed = np.zeros((3, 5), dtype=bool)
        removed[0, 0] = removed[0, 3] = True
        out = replica.linear_system_imputed(x, removed)[0]
        assert out[0, 0] == pytest.approx((2 * x[0, 0, 1] + 2 * x[0, 1, 0] + x[0, 1, 1]) / 5)
        edge = 2 * (x[0, 0, 2] + x[0, 0, 4] + x[0, 1, 3]) + x[0, 1, 2] + x[0, 1, 4]
        assert out[0, 3] == pytest.approx(edge / 8)

    def test_two_neighbours_by_hand(self):
        # On a row of four, a = (0 + b) / 2 and b = (a + 3) / 2.
        out = replica.linear_system_imputed([[[0.0, 7, 7, 3]]], [[False, True, True, False]])
        np.testing.assert_allclose(out, [[[0, 1, 2, 3]]])

    @pytest.mark.parametrize("slope", [(0.0, 1.0), (1.0, 0.0), (0.3, -2.0)])
    def test_a_plane_comes_back(self, slope):
        plane = slope[0] * np.arange(7.0)[:, None] + slope[1] * np.arange(9.0)[None]
        removed = np.zeros((7, 9), dtype=bool)
        removed[1:-1, 1:-1] = True
        spoilt = np.where(removed, 99.0, plane)
        np.testing.assert_allclose(replica.linear_system_imputed(spoilt[None], removed)[0], plane, atol=1e-12)

    def test_a_plane_comes_back_where_no_weight_crosses_the_edge_it_follows(self):
        # Linear in the column, all but the first and the last column removed: above and below nothing pulls sideways.
        plane = np.tile(np.arange(6.0), (4, 1))
        removed = np.zeros((4, 6), dtype=bool)
        removed[:, 1:-1] = True
        spoilt = np.where(removed, 99.0, plane)
        np.testing.assert_allclose(replica.linear_system_imputed(spoilt[None], removed)[0], plane, atol=1e-12)

    def test_each_imputed_pixel_is_the_mean_of_its_neighbours(self):
        x, removed = numbers(1, 8, 8), np.random.default_rng(3).random((8, 8)) < 0.8
        out = replica.linear_system_imputed(x, removed)[0]
        framed = np.pad(out, 1, constant_values=np.nan)
        weights = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]])
        for i, j in np.argwhere(removed):
            around = framed[i : i + 3, j : j + 3]
            known = ~np.isnan(around)
            assert out[i, j] == pytest.approx(np.average(around[known], weights=weights[known]))

    def test_nothing_and_everything_removed(self):
        x = numbers(1, 2, 2)
        assert (replica.linear_system_imputed(x, np.zeros((2, 2), dtype=bool)) == x).all()
        with pytest.raises(ValueError, match="no pixel is left"):
            replica.linear_system_imputed(x, np.ones((2, 2), dtype=bool))

    # A row of ten, 0 to 0.9, its map the picture itself: what is removed at an end becomes the last value that is left.
    row = np.arange(10.0)[None, None] / 10
    most = np.array([(sum(range(10 - k)) + k * (9 - k)) / 100 for k in range(1, 10)])
    least = np.array([(sum(range(k, 10)) + k * k) / 100 for k in range(1, 10)])

    def test_road_of_a_row(self):
        for last, expected in ((False, self.most), (True, self.least)):
            found = replica.road_percentages(mean_model, self.row, self.row[0], 0, range(10), last)
            np.testing.assert_allclose(found, expected, rtol=1e-12)
        most = replica.road_morf(mean_model, self.row, self.row[0], 0, range(10))
        least = replica.road_lerf(mean_model, self.row, self.row[0], 0, range(10))
        assert most == pytest.approx(sum(self.most) / 9)
        assert least == pytest.approx(sum(self.least) / 9)
        assert replica.road(mean_model, self.row, self.row[0], 0, range(10)) == pytest.approx((least - most) / 2)

    def test_noise_is_added_where_something_was_removed(self):
        noise = np.linspace(0.001, 0.01, 10)[None, None]
        found = replica.road_percentages(mean_model, self.row, self.row[0], 0, range(10), False, noise)
        added = [noise[0, 0, 10 - k :].sum() / 10 for k in range(1, 10)]
        np.testing.assert_allclose(found, np.add(self.most, added), rtol=1e-12)
        found = replica.road_lerf(mean_model, self.row, self.row[0], 0, range(10), noise)
        added = [noise[0, 0, :k].sum() / 10 for k in range(1, 10)]
        assert found == pytest.approx(np.add(self.least, added).mean())


class TestAdditiveMaps:
    subsets = np.array([[[1, 0], [0, 0]], [[0, 1], [0, 1]], [[1, 1], [0, 0]], [[0, 0], [1, 1]]], dtype=bool)

    def test_mufidelity_of_a_map_that_adds_up(self):
        x = np.random.default_rng(0).random((1, 4, 6))
        zeros = np.zeros(x.shape)
        assert replica.mufidelity(mean_model, x, x[0], 0, self.subsets, zeros) == pytest.approx(1)
        assert replica.mufidelity(mean_model, x, -3 * x[0], 0, self.subsets, zeros) == pytest.approx(-1)

    def test_mufidelity_by_hand(self):
        # Sums of the map 3, 2, 4, 1 (read by patch 3 1 / 0 1); the mean model loses 0.2, 0.1, 0.3, 0.05 of PICTURE.
        found = replica.mufidelity(mean_model, PICTURE, [[3.0, 1.0], [0.0, 1.0]], 0, self.subsets, ZEROS)
        assert found == pytest.approx(scipy.stats.pearsonr([3, 2, 4, 1], [0.2, 0.1, 0.3, 0.05]).statistic)
        assert found < 0.999

    def test_mufidelity_where_one_side_does_not_vary(self):
        assert replica.mufidelity(mean_model, PICTURE, ZEROS[0], 0, self.subsets, ZEROS) == 0.0
        assert replica.mufidelity(mean_model, PICTURE, PICTURE[0], 0, self.subsets, PICTURE) == 0.0
        assert replica.mufidelity(mean_model, PICTURE, PICTURE[0], 0, self.subsets[:1], ZEROS) == 0.0

    @pytest.mark.parametrize("scale", [1.0, 3.0, -0.5])
    def test_infidelity_of_a_map_that_adds_up(self, scale):
        x, w = numbers(1, 3, 4, seed=1), torch.tensor(numbers(3, 4, seed=2))
        subsets = np.random.default_rng(0).random((6, 3, 4)) < 0.4
        found = replica.infidelity(
            lambda x: (x[:, 0] * w).sum((1, 2)), x, scale * (x[0] * w.numpy()), subsets, np.zeros(x.shape)
        )
        assert found == pytest.approx(0, abs=1e-24)

    def test_infidelity_by_hand(self):
        # a = (1, 2), b = (1, 1): beta = 3/5, and ((0.6 - 1)^2 + (1.2 - 1)^2) / 2.
        subsets = np.array([[[1, 0]], [[0, 1]]], dtype=bool)
        found = replica.infidelity(lambda x: x.sum((1, 2, 3)), [[[1.0, 1.0]]], [[1.0, 2.0]], subsets, [[[0.0, 0.0]]])
        assert found == pytest.approx(0.1)

    def test_infidelity_of_a_map_of_zeros(self):
        subsets = np.array([[[1, 0]], [[1, 1]]], dtype=bool)
        found = replica.infidelity(lambda x: x.sum((1, 2, 3)), [[[1.0, 2.0]]], [[0.0, 0.0]], subsets, [[[0.0, 0.0]]])
        assert found == pytest.approx((1 + 9) / 2)

    def test_sensitivity_of_the_picture_itself(self):
        x, draws = np.array([[[3.0, 4.0]]]), np.array([[[[0.1, 0.0]]], [[[0.3, -0.4]]], [[[0.0, 0.2]]]])
        assert replica.max_sensitivity(lambda x: x[0], x, draws) == pytest.approx(0.5 / 5)
        assert replica.max_sensitivity(lambda x: 7 * x[0], x, draws) == pytest.approx(0.5 / 5)

    def test_sensitivity_of_a_map_that_does_not_look(self):
        assert replica.max_sensitivity(lambda x: [[1.0]], PICTURE, numbers(3, 1, 2, 2)) == 0


class TestRegions:
    region = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=bool)

    @pytest.mark.parametrize(("tolerance", "share"), [(0, 0.5), (1.41, 0.5), (1.5, 1.0)])
    def test_pointing_game_counts_every_maximum(self, tolerance, share):
        # One maximum lies in the region, the other at sqrt(2) from it.
        values = [[0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [0.0, -20.0, 0.0]]
        assert replica.pointing_game(values, self.region, tolerance) == share

    def test_pointing_game_at_exactly_the_tolerance(self):
        values = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 9.0, 0.0]]
        assert replica.pointing_game(values, self.region, 2) == 1
        assert replica.pointing_game(values, self.region, 1.99) == 0

    def test_energy_by_hand(self):
        values = [[1.0, 2.0, 0.0], [-5.0, 4.0, 0.0], [0.0, 0.0, 1.0]]
        assert replica.energy_pointing_game(values, self.region) == pytest.approx(3 / 8)
        assert replica.energy_pointing_game([[-7.0, 2.0, 0.0], *values[1:]], self.region) == pytest.approx(2 / 7)
        assert math.isnan(replica.energy_pointing_game([[-1.0]], self.region))

    def test_energy_is_of_the_interpolated_map(self):
        # [-1, 3] becomes -1, 0, 2, 3.
        region = np.array([[False, False, True, False]])
        assert replica.energy_pointing_game([[-1.0, 3.0]], region) == pytest.approx(2 / 5)

    @pytest.mark.parametrize("seed", range(8))
    def test_rank_accuracy_is_the_mean_over_all_orders_of_ties(self, seed):
        drawn = np.random.default_rng(seed)
        values, region = drawn.integers(0, 3, (2, 3)), drawn.permutation([1, 1, 1, 0, 0, 0]).reshape(2, 3) > 0
        inside, shares = region.ravel(), []
        for keys in itertools.permutations(range(6)):
            first = terms.axis_order(values, keys)[:3]
            shares.append(sum(inside[position] for position in first) / 3)
        assert replica.relevance_rank_accuracy(values, region) == pytest.approx(sum(shares) / len(shares))

    def test_rank_accuracy_by_hand(self):
        assert replica.relevance_rank_accuracy(np.ones((3, 3)), self.region) == pytest.approx(2 / 9)
        assert replica.relevance_rank_accuracy([[9.0, 1, 2], [0, 0, 0], [0, 0, 0]], self.region) == 0.5
        assert math.isnan(replica.relevance_rank_accuracy(np.ones((3, 3)), np.zeros((3, 3))))

    def test_iou_by_hand(self):
        values = [[4.0, 1.0, 0.0], [2.0, 3.0, -9.0], [0.0, 0.0, 0.0]]
        assert replica.iou(values, self.region, 0.4) == pytest.approx(1 / 4)
        assert replica.iou(values, self.region, 0.5) == pytest.approx(1 / 3)  # a half is not above a half
        assert replica.iou(values, self.region, 0.2) == pytest.approx(2 / 4)


class TestSparseness:
    @pytest.mark.parametrize("n", [2, 9, 16])
    def test_gini_of_one_hot_and_of_an_even_map(self, n):
        one = np.zeros((1, n))
        one[0, n // 2] = -3.0
        assert replica.gini(one) == pytest.approx(1 - 1 / n)
        assert replica.gini(np.full((1, n), 0.3)) == 0

    def test_gini_by_hand(self):
        # The pairs differ by 0, 1, 1, 3, 3 and 2, each counted twice: 20 / 16, over twice the mean.
        assert replica.gini([[0.0, -3.0], [1.0, 0.0]]) == pytest.approx(20 / 16 / 2)

    def test_gini_is_that_of_the_sorted_numbers(self):
        h = numbers(5, 7)
        ordered, n = np.sort(np.abs(h).ravel()), h.size
        expected = ((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * ordered.sum())
        assert replica.gini(h) == pytest.approx(expected)

    def test_entropy_of_one_hot_and_of_an_even_map(self):
        assert replica.entropy([[0.0, -2.0, 0.0]]) == 0
        assert replica.entropy(np.full((3, 4), -0.3)) == pytest.approx(math.log(12))

    def test_entropy_is_scipys(self):
        h = numbers(4, 4)
        assert replica.entropy(h) == pytest.approx(scipy.stats.entropy(np.abs(h).ravel()))

    def test_a_map_of_zeros_has_neither(self):
        assert math.isnan(replica.gini(np.zeros((2, 2))))
        assert math.isnan(replica.entropy(np.zeros((2, 2))))

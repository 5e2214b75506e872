"""Measurements of many samples: intervals, baselines and class averages."""

from __future__ import annotations

import pytest
import torch

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import InputError
from torchpeek.metrics import Measurement, joined


class TestManySamples:
    @pytest.mark.parametrize("higher", [True, False])
    def test_better_than_a_baseline(self, higher: bool) -> None:
        better = torch.rand(30, 1) + (2 if higher else -2)
        beaten, equal = torch.rand(30, 1), better + torch.randn(30, 1) * 0.01
        found = Measurement(
            "deletion", better, higher, {"random": beaten, "centre": equal - equal.mean() + better.mean()}
        )
        assert found.beats("random")
        assert not found.beats("centre")
        assert found.ahead_of("random").mean == pytest.approx(abs(float((better - beaten).mean())), rel=1e-5)
        with pytest.raises(InputError, match="'random', 'centre'"):
            found.beats("zeros")

    def test_the_scores_of_a_sample_count_as_one(self) -> None:
        """Otherwise five classes of two pictures would look like ten pictures."""
        found = Measurement("deletion", torch.tensor([[1.0, 1, 1], [3, 3, 3]]), True, {})
        assert found.interval().samples == 2

    def test_class_average(self) -> None:
        found = Measurement("pointing-game", torch.tensor([[1.0], [1.0], [1.0], [0.0]]), True, {})
        assert found.class_average(torch.tensor([[5], [5], [5], [9]])) == 0.5

    def test_joined(self) -> None:
        model, x = PooledNet().eval(), torch.randn(4, 3, 8, 8)
        heatmap = tp.explain(model, x, target=1)
        metrics = {"deletion": {"steps": 3}, "sparseness": {}}
        whole = tp.evaluate(model, x, heatmap, metrics=metrics)
        parts = [tp.evaluate(model, x[n : n + 2], heatmap[n : n + 2], metrics=metrics) for n in (0, 2)]
        again = joined(parts)
        for name in metrics:
            torch.testing.assert_close(again[name].values, whole[name].values, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(
                again[name].baselines["random"], whole[name].baselines["random"], rtol=1e-5, atol=1e-6
            )
        torch.testing.assert_close(again["deletion"].curve, whole["deletion"].curve, rtol=1e-5, atol=1e-6)
        with pytest.raises(InputError, match="same metrics"):
            joined([parts[0], tp.evaluate(model, x, heatmap, metrics=["entropy"])])
        with pytest.raises(InputError, match="different options"):
            joined([parts[0], tp.evaluate(model, x, heatmap, metrics={**metrics, "deletion": {"steps": 4}})])

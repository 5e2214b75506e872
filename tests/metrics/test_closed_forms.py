"""Metrics of heatmaps for which the result is known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.bright import Bright, Darker, made, rescored


@pytest.fixture
def bright() -> tuple[nn.Module, Tensor, tp.Heatmap]:
    """Everything is 0.8 bright, and the heatmap is highest on the left half."""
    model, x = Bright().double().eval(), torch.full((1, 3, 4, 4), 0.8, dtype=torch.float64)
    heatmap = tp.explain(model, x, method="random", layer="layer", target=0)
    return model, x, made(torch.tensor([4.0, 3.0, 0.0, 0.0], dtype=torch.float64).expand(4, 4), heatmap)


class TestClosedForms:
    """p is the mean brightness: what a metric says of it can be written down."""

    def test_deletion_and_insertion(self, bright: Any) -> None:
        model, x, heatmap = bright
        found = tp.evaluate(model, x, heatmap, metrics={"deletion": {"steps": 4}, "insertion": {"steps": 4}})
        line = torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64)
        torch.testing.assert_close(found["deletion"].curve[0, 0], line, rtol=0, atol=1e-9)
        torch.testing.assert_close(found["deletion"].values, torch.tensor([[0.4]], dtype=torch.float64))
        # Blurred it is as bright as before.
        torch.testing.assert_close(found["insertion"].curve[0, 0], torch.full((5,), 0.8, dtype=torch.float64))
        # Whatever is removed first, the same is lost: so random and centred heatmaps get the same.
        for each in found["deletion"].baselines.values():
            torch.testing.assert_close(each, found["deletion"].values)

    def test_drop_increase_and_gain(self, bright: Any) -> None:
        model, x, heatmap = bright
        found = tp.evaluate(model, x, heatmap, metrics=["average-drop", "increase", "average-gain"])
        # The mask's columns are 1, 3/4, 0, 0: so p falls to 1.75 / 4 of what it was.
        assert found["average-drop"].values.item() == pytest.approx(1 - 1.75 / 4, abs=1e-9)
        assert found["increase"].values.item() == 0
        darker = Darker(model)
        rising = tp.evaluate(darker, x, rescored(darker, x, heatmap), metrics=["increase", "average-gain"])
        assert rising["increase"].values.item() == 1
        assert rising["average-gain"].values.item() == pytest.approx((0.8 - 0.35) / 0.8, abs=1e-9)

    def test_an_all_ones_heatmap_loses_nothing(self, bright: Any) -> None:
        model, x, heatmap = bright
        ones = made(torch.ones(4, 4, dtype=torch.float64), heatmap)
        assert tp.evaluate(model, x, ones, metrics=["average-drop"])["average-drop"].values.item() == 0

    def test_road(self, bright: Any) -> None:
        """What is imputed from 0.8 is 0.8, but for the noise of a hundredth."""
        model, x, heatmap = bright
        found = tp.evaluate(model, x, heatmap, metrics=["road", "road-morf"])
        assert found["road-morf"].values.item() == pytest.approx(0.8, abs=0.01)
        assert found["road"].values.item() == pytest.approx(0, abs=0.01)

    def test_a_heatmap_that_adds_up(self) -> None:
        """Of an output that is linear and the very contributions to it: infidelity 0, correlation 1."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(3 * 8 * 8, 3)).double().eval()
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        heatmap = tp.explain(model, x, method="random", layer="0", target=tp.targets.Output([1]))
        parts = (x * model[2].weight[1].view(3, 8, 8)).sum(1, keepdim=True)  # (N, 1, H, W)
        right = replace(heatmap, values=parts.detach())
        found = tp.evaluate(model, x, right, metrics={"infidelity": {}, "mufidelity": {"cells": 4}})
        assert found["infidelity"].values.abs().max() < 1e-20
        assert found["mufidelity"].values.min() > 1 - 1e-9
        assert found["infidelity"].baselines["random"].min() > 1e-4
        half = tp.evaluate(model, x, replace(right, values=right.values / 2), metrics=["infidelity"])
        assert half["infidelity"].values.abs().max() < 1e-20, "its scale means nothing"

    def test_where(self, bright: Any) -> None:
        model, x, heatmap = bright
        left = torch.zeros(1, 4, 4, dtype=torch.bool)
        left[..., :1] = True
        metrics = {
            "pointing-game": {"tolerance": 0},
            "energy-pointing-game": {},
            "relevance-rank-accuracy": {},
            "iou": {},
        }
        found = tp.evaluate(model, x, heatmap, metrics=metrics, masks=left)
        assert [each.values.item() for each in found.values()] == pytest.approx([1, 4 / 7, 1, 0.5])
        right = tp.evaluate(model, x, heatmap, metrics=metrics, masks=left.flip(-1))
        # Of the zeros any may be among the four highest of the rest: none is, as four positions are higher.
        assert [each.values.item() for each in right.values()] == [0, 0, 0, 0]

    def test_ties_are_shared(self, bright: Any) -> None:
        model, x, heatmap = bright
        ones, left = made(torch.ones(4, 4, dtype=torch.float64), heatmap), torch.zeros(1, 4, 4, dtype=torch.bool)
        left[..., :1] = True
        metrics = {"pointing-game": {"tolerance": 0}, "relevance-rank-accuracy": {}}
        found = tp.evaluate(model, x, ones, metrics=metrics, masks=left)
        assert [each.values.item() for each in found.values()] == [0.25, 0.25]

    def test_sparseness_and_entropy(self, bright: Any) -> None:
        model, x, heatmap = bright
        one = torch.zeros(4, 4, dtype=torch.float64)
        one[1, 2] = -3
        for values, gini, entropy in ((one, 15 / 16, 0), (torch.ones_like(one), 0, math.log(16))):
            found = tp.evaluate(model, x, made(values, heatmap), metrics=["sparseness", "entropy"])
            assert found["sparseness"].values.item() == pytest.approx(gini)
            assert found["entropy"].values.item() == pytest.approx(entropy)

"""How many forward passes an evaluation takes, and what metrics share."""

from __future__ import annotations

from typing import Any

import torch

import torchpeek as tp
from networks import PooledNet


class TestPasses:
    def counted(self, metrics: Any, **more: Any) -> int:
        model, x = PooledNet().eval(), torch.randn(1, 3, 16, 16)
        heatmap = tp.explain(model, x, target=1)
        tp.evaluate(model, x, heatmap, metrics=metrics, **more)  # the first time a memory format is tried
        seen: list[int] = []
        handle = model.register_forward_hook(lambda module, args, output: seen.append(len(output)))
        tp.evaluate(model, x, heatmap, metrics=metrics, **more)
        handle.remove()
        return sum(seen)

    MAPS = 1 + 10 + 1  # the heatmap, the random ones, the centred one

    def test_road_is_one_clean_pass_and_eighteen(self) -> None:
        assert self.counted(["road"]) == 1 + 18 * self.MAPS
        assert self.counted(["road", "road-morf", "road-lerf"]) == 1 + 18 * self.MAPS

    def test_what_is_masked_once_serves_three_metrics(self) -> None:
        assert self.counted(["average-drop", "increase", "average-gain"]) == 1 + self.MAPS

    def test_both_ends_of_a_curve_are_shared(self) -> None:
        assert self.counted({"deletion": {"steps": 10}}) == 1 + 9 * self.MAPS + 1

    def test_subsets_are_the_same_for_every_heatmap(self) -> None:
        assert self.counted({"mufidelity": {"samples": 30}, "infidelity": {"samples": 20}}) == 1 + 30 + 20

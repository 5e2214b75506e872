"""evaluate on models and heatmaps at the edge: one logit, NaN, constant heatmaps, few samples."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import InputError, MetricNotApplicable, NotFinite
from torchpeek.metrics import METRICS, Measurement
from torchpeek.metrics.localization import widened


class TestEdgeCases:
    """Each of these once gave a wrong number, or torch's own error."""

    def test_an_all_ones_heatmap_never_increases_in_whatever_chunks(self) -> None:
        model, x = PooledNet().eval(), torch.randn(3, 3, 20, 20)
        heatmap = tp.explain(model, x, target=1)
        ones = replace(heatmap, values=torch.ones_like(heatmap.values))
        for batch in (1, 2, 7, None):
            found = tp.evaluate(model, x, ones, metrics=["increase"], batch=batch)
            assert found["increase"].values.flatten().tolist() == [0, 0, 0]

    @pytest.mark.parametrize("name", METRICS)
    def test_inside_autocast_and_inference_mode(self, name: str) -> None:
        """The passes run as the heatmap's did; a metric's own arithmetic does not."""
        model, x = PooledNet().eval(), torch.randn(2, 3, 12, 12)
        options = {"mufidelity": {"cells": 3}, "aopc": {"cells": 3, "steps": 3}}.get(name, {})
        masks = torch.ones(2, 12, 12, dtype=torch.bool)
        heatmap = tp.explain(model, x, target=1)
        plain = tp.evaluate(model, x, heatmap, metrics={name: options}, masks=masks)[name]
        with torch.inference_mode():
            found = tp.evaluate(model, x, heatmap, metrics={name: options}, masks=masks)[name]
        torch.testing.assert_close(found.values, plain.values)
        with torch.autocast("cpu", torch.bfloat16):
            half = tp.evaluate(model, x, tp.explain(model, x, target=1), metrics={name: options}, masks=masks)[name]
        assert half.values.dtype == plain.values.dtype
        if name == "randomisation":
            assert half.curve is not None
            assert len(half.curve[0, 0].unique()) == half.curve.shape[2], "the stages differ"

    def test_one_logit_has_no_softmax(self) -> None:
        pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
        model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *pooled).eval(), torch.randn(1, 3, 8, 8)
        heatmap = tp.explain(model, x)
        with pytest.raises(MetricNotApplicable, match="one logit"):
            tp.evaluate(model, x, heatmap, metrics=["deletion"])
        assert tp.evaluate(model, x, heatmap, metrics=["sparseness", "infidelity"])

    @pytest.mark.parametrize("name", METRICS)
    @pytest.mark.parametrize("one_logit", [True, False])
    def test_what_a_metric_reads_is_what_it_says(self, name: str, one_logit: bool, monkeypatch) -> None:
        """It is refused before any pass but the clean one, or can be had; also of one that forgot to say."""
        width = 1 if one_logit else 3
        pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, width)
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *pooled).eval(), torch.randn(1, 3, 24, 24)
        target = None if one_logit else tp.targets.Output([1])
        heatmap = tp.explain(model, x, target=target)
        few = {"steps": 2, "samples": 2, "cells": 3, "stages": 2}
        options = {key: value for key, value in few.items() if key in METRICS[name].options}
        passes: list[int] = []
        handle = model.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
        refused = METRICS[name].reads in (("p", "probability", "classes") if one_logit else ("probability", "classes"))
        given = {"metrics": {name: options}, "masks": torch.ones(1, 24, 24, dtype=torch.bool)}
        if refused:
            with pytest.raises(MetricNotApplicable, match=name):
                tp.evaluate(model, x, heatmap, **given)
            assert passes == [1], "the clean pass"
            if one_logit and name != "random-class":  # the guard behind it
                front = sys.modules["torchpeek.evaluation.api"]  # tp.evaluate is the function
                monkeypatch.setattr(front, "check_applies", lambda metric, trace: None)
                with pytest.raises(MetricNotApplicable, match="one logit"):
                    tp.evaluate(model, x, heatmap, **given)
        else:
            assert tp.evaluate(model, x, heatmap, **given)[name].values.shape == (1, 1)
        handle.remove()

    def test_what_never_changes_fails_the_sanity_checks(self) -> None:
        model, x = PooledNet().eval(), torch.randn(2, 3, 8, 8)
        heatmap = tp.explain(model, x, target=1)
        for values in (torch.ones_like(heatmap.values), heatmap.values):
            same = replace(heatmap, values=values)

            def explain(module: nn.Module, inputs: Tensor, question: Any, values: Tensor = values) -> Tensor:
                return values[: len(inputs)]

            found = tp.evaluate(model, x, same, metrics=["randomisation", "random-class"], explain=explain)
            for each in found.values():
                torch.testing.assert_close(each.values, torch.ones(2, 1))

    def test_as_many_stages_as_there_are_modules(self) -> None:
        """None of them draws nothing: the first, too, is another model."""
        model, x = PooledNet().eval(), torch.randn(1, 3, 8, 8)
        curve = tp.evaluate(model, x, tp.explain(model, x, target=1), metrics=["randomisation"])["randomisation"].curve
        assert curve is not None
        assert curve.shape[2] == 1 + 3
        assert len(curve[0, 0].unique()) == 4

    def test_a_heatmaps_scale_means_nothing_to_a_correlation(self) -> None:
        model, x = PooledNet().eval(), torch.randn(2, 3, 12, 12)
        heatmap = tp.explain(model, x, target=1)
        found = [
            tp.evaluate(model, x, replace(heatmap, values=heatmap.values * scale), metrics=["mufidelity"])["mufidelity"]
            for scale in (1.0, 1e-9, 1e9)
        ]
        for each in found[1:]:
            torch.testing.assert_close(each.values, found[0].values, rtol=1e-3, atol=1e-4)

    def test_not_a_number(self) -> None:
        model, x = PooledNet().eval(), torch.randn(1, 3, 8, 8)
        heatmap = tp.explain(model, x, target=1)
        values = heatmap.values.clone()
        values[0, 0, 0, 0] = torch.nan
        with pytest.raises(NotFinite, match="NaN"):
            tp.evaluate(model, x, replace(heatmap, values=values), metrics=["deletion"])

    @pytest.mark.parametrize("name", [name for name, each in METRICS.items() if each.needs == "explanations"])
    def test_what_explain_returns_is_looked_at(self, name: str) -> None:
        model, x = PooledNet().eval(), torch.randn(2, 3, 8, 8)
        heatmap = tp.explain(model, x, target=1)
        for returned in (heatmap.values[:1], heatmap.values[..., :4], heatmap.values.expand(-1, 2, -1, -1), "map"):
            with pytest.raises(InputError, match="explain returned"):
                tp.evaluate(model, x, heatmap, metrics=[name], explain=lambda m, i, q, r=returned: r)
        again = tp.evaluate(model, x, heatmap, metrics=[name], explain=lambda m, i, q: tp.explain(m, i, target=1))
        assert bool(again[name].values.isfinite().all())

    def test_explain_may_follow_gradients_on_its_own(self) -> None:
        """captum calls its explainer under no_grad."""
        model, x = PooledNet().eval(), torch.randn(2, 3, 8, 8)
        heatmap = tp.explain(model, x, target=1)

        def saliency(module: nn.Module, inputs: Tensor, question: Any) -> Tensor:
            inputs.requires_grad_()
            module(inputs)[:, 1].sum().backward(inputs=[inputs])
            assert inputs.grad is not None
            return inputs.grad.abs().sum(1, keepdim=True)

        own = replace(heatmap, values=saliency(model, x.clone(), None))
        found = tp.evaluate(model, x, own, metrics={"max-sensitivity": {"samples": 2}}, explain=saliency)
        again = [tp.evaluate(model, x, own, metrics=["random-class"], explain=saliency) for _ in range(2)]
        assert bool(found["max-sensitivity"].values.isfinite().all())
        assert bool((again[0]["random-class"].values > 0.999).all()), "it takes no notice of the class"

    def test_what_is_missing_is_said_before_anything_is_run(self) -> None:
        model, x = PooledNet().eval(), torch.randn(1, 3, 8, 8)
        heatmap = tp.explain(model, x, target=1)
        foreign = replace(heatmap, provenance=replace(heatmap.provenance, method="mine"))
        calls: list[int] = []
        handle = model.register_forward_pre_hook(lambda module, args: calls.append(1))
        for given, name in ((heatmap, "iou"), (foreign, "adcc")):
            with pytest.raises(MetricNotApplicable, match=name):
                tp.evaluate(model, x, given, metrics=["deletion", name])
        handle.remove()
        assert not calls

    def test_the_random_baseline_hangs_on_nothing_that_was_asked_before(self) -> None:
        model, x = PooledNet().eval(), torch.randn(1, 3, 8, 8)
        heatmap = tp.explain(model, x, target=1)
        alone = tp.evaluate(model, x, heatmap, metrics=["random-class"])["random-class"].baselines["random"]
        after = tp.evaluate(model, x, heatmap, metrics=["randomisation", "random-class"])["random-class"]
        assert torch.equal(alone, after.baselines["random"])

    def test_a_model_whose_truth_value_is_false(self) -> None:
        class Empty(PooledNet):
            def __len__(self) -> int:
                return 0

        model, x = Empty().eval(), torch.randn(1, 3, 8, 8)
        found = tp.evaluate(model, x, tp.explain(model, x, target=1), metrics=["randomisation"])["randomisation"]
        assert found.values.item() < 1

    @pytest.mark.parametrize("shape", [(9,), (7, 10), (4, 6, 5)])
    def test_so_far_from_a_region(self, shape: tuple[int, ...]) -> None:
        """Against each position's distance to each of the region's."""
        region = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(0)) > 0.8
        region[0, 1] = False
        places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), -1).view(-1, len(shape))
        inside = places[region[0, 0].flatten()].double()
        assert len(inside)
        for distance in (0, 1, 1.5, 3, 50):
            found = widened(region, distance)
            near = torch.cdist(places.double(), inside).amin(1) <= distance + 1e-9
            assert torch.equal(found[0, 0].flatten(), near)
            assert not found[0, 1].any()

    def test_of_few_samples_nothing_is_claimed(self) -> None:
        lucky = Measurement("deletion", torch.ones(5, 1), True, {"random": torch.zeros(5, 1)})
        assert not lucky.beats("random")
        many = Measurement("deletion", torch.ones(6, 1), True, {"random": torch.zeros(6, 1)})
        assert many.beats("random")

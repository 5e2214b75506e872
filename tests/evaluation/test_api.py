"""evaluate: what it takes, what it refuses, and what it returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, SplitNet, messy, state_of
from networks.bright import Bright, made
from torchpeek.errors import InputError, MetricNotApplicable, MetricNotFound, OptionError
from torchpeek.metrics import METRICS


@pytest.fixture
def bright() -> tuple[nn.Module, Tensor, tp.Heatmap]:
    """Everything is 0.8 bright, and the heatmap is highest on the left half."""
    model, x = Bright().double().eval(), torch.full((1, 3, 4, 4), 0.8, dtype=torch.float64)
    heatmap = tp.explain(model, x, method="random", layer="layer", target=0)
    return model, x, made(torch.tensor([4.0, 3.0, 0.0, 0.0], dtype=torch.float64).expand(4, 4), heatmap)


class TestEvaluate:
    def test_one_many_and_lists(self) -> None:
        model = PooledNet().eval()
        pictures = [torch.randn(1, 3, 8, 8), torch.randn(1, 3, 10, 6)]
        heatmaps = tp.explain(model, pictures, target=1)
        listed = tp.evaluate(model, pictures, heatmaps, metrics=["sparseness"], boxes=[[0, 0, 2, 2], [1, 1, 3, 3]])
        assert listed.method == "gradcam"
        assert listed["sparseness"].values.shape == (2, 1)
        for n in range(2):
            alone = tp.evaluate(model, pictures[n], heatmaps[n], metrics=["sparseness"])["sparseness"]
            torch.testing.assert_close(listed["sparseness"].values[n : n + 1], alone.values)
        compared = tp.compare(model, pictures, methods=["gradcam", "eigencam"], target=1)
        found = tp.evaluate(model, pictures, compared, metrics=["sparseness"])
        assert set(found) == {"gradcam", "eigencam"}
        torch.testing.assert_close(found["gradcam"]["sparseness"].values, listed["sparseness"].values)

    @pytest.mark.parametrize(
        ("change", "error", "said"),
        [
            (lambda h: {"metrics": ["delection"]}, MetricNotFound, "deletion"),
            (lambda h: {"metrics": []}, InputError, "empty"),
            (lambda h: {"metrics": 3}, InputError, "metrics is 3; allowed: names, or a dict from a name"),
            (lambda h: {"metrics": {"deletion": {"step": 3}}}, OptionError, "steps=50"),
            (lambda h: {"metrics": {"deletion": {"steps": 0}}}, OptionError, "1 to 1,000,000"),
            (lambda h: {"metrics": {"deletion": {"baseline": "grey"}}}, OptionError, "zeros"),
            (lambda h: {"metrics": {"aopc": {"cells": 99}}}, InputError, "the shortest axis"),
            (lambda h: {"metrics": {"aopc": {"cells": 2, "steps": 9}}}, OptionError, "up to 4"),
            (lambda h: {"metrics": ["iou"]}, MetricNotApplicable, "masks= or boxes="),
            (lambda h: {"heatmap": h.positive()}, InputError, "changed already"),
            (lambda h: {"heatmap": h.values}, InputError, "a Heatmap"),
            (lambda h: {"heatmap": {}}, InputError, "empty"),
            (lambda h: {"inputs": torch.zeros(2, 3, 8, 8)}, InputError, "made with"),
            (lambda h: {"heatmap": {"a": h, "b": h[0]}}, InputError, "another target|scores"),
            (lambda h: {"inputs": [torch.zeros(1, 3, 8, 8)]}, InputError, "list of 1 inputs"),
        ],
    )
    def test_what_does_not_fit(self, change: Any, error: type[Exception], said: str) -> None:
        model, x = PooledNet().eval(), torch.randn(2, 3, 8, 8)
        heatmap = tp.explain(model, x, target=1)
        given = {"inputs": x, "heatmap": heatmap, "metrics": ["sparseness"], **change(heatmap)}
        with pytest.raises(error, match=said):
            tp.evaluate(model, given.pop("inputs"), given.pop("heatmap"), **given)

    def test_probabilities_or_what_is_asked(self) -> None:
        """Masking metrics are of probabilities, whatever was asked of a class; of something else they say no."""
        model, x = PooledNet().eval(), torch.randn(2, 3, 8, 8)
        one, other = (
            tp.evaluate(model, x, tp.explain(model, x, target=target), metrics={"deletion": {"steps": 5}})
            for target in (tp.targets.Classes([1]), tp.targets.ClassProbability(tp.targets.Classes([1])))
        )
        torch.testing.assert_close(one["deletion"].curve[..., 0], model(x).softmax(1)[:, 1:2])
        torch.testing.assert_close(one["deletion"].curve[..., 0], other["deletion"].curve[..., 0])
        entry = tp.explain(model, x, target=tp.targets.Output([1]))  # whatever its numbers happen to be
        with pytest.raises(MetricNotApplicable, match="needs a probability"):
            tp.evaluate(model, x, entry, metrics=["average-drop"])

    def test_another_class_needs_classes(self) -> None:
        model, x = PooledNet().eval(), torch.randn(2, 3, 8, 8)
        entry = tp.explain(model, x, target=tp.targets.Output([1]))
        with pytest.raises(MetricNotApplicable, match="another class"):
            tp.evaluate(model, x, entry, metrics=["random-class"])

    def test_a_fused_heatmap_is_asked_again(self) -> None:
        """From its layers and its fusion; a smoothed one by its owner."""
        model, x = PooledNet().eval(), torch.randn(1, 3, 8, 8)
        fused = tp.explain(model, x, layer=["features.0", "act"], fuse="mean", target=1)

        def explain(module: nn.Module, inputs: Tensor, question: Any) -> Tensor:
            return tp.explain(module, inputs, layer=["features.0", "act"], fuse="mean", target=1).values

        found = tp.evaluate(model, x, fused, metrics=["max-sensitivity"], explain=explain)["max-sensitivity"]
        assert 0 < found.values.item() < 10
        again = tp.evaluate(model, x, fused, metrics=["max-sensitivity"])["max-sensitivity"]
        torch.testing.assert_close(again.values, found.values)
        smooth = tp.explain(model, x, layer=["features.0", "act"], target=1, smooth=tp.Smoothing())
        with pytest.raises(MetricNotApplicable, match="explain="):
            tp.evaluate(model, x, smooth, metrics=["max-sensitivity"])

    @pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
    def test_left_as_found_after_an_error(self, error: BaseException) -> None:
        model, x = messy(), torch.randn(2, 3, 8, 8)
        heatmap = tp.explain(model, x, target=1)
        model.train()
        before = state_of(model)
        model.fail_with = error
        with pytest.raises(type(error)):
            tp.evaluate(model, x, heatmap, metrics=["deletion"])
        assert state_of(model) == before

    def test_printed_it_is_a_table(self) -> None:
        model, x = PooledNet().eval(), torch.randn(3, 3, 8, 8)
        text = repr(tp.evaluate(model, x, tp.explain(model, x, target=1), metrics=["sparseness", "entropy"]))
        header, *lines = text.splitlines()
        assert header.split()[:4] == ["method", "metric", "better", "mean"]
        assert [line.split()[:3] for line in lines] == [
            ["gradcam", "sparseness", "higher"],
            ["gradcam", "entropy", "lower"],
        ]


def test_a_float64_model_a_half_one_and_volumes() -> None:
    for kind in (torch.float64, torch.bfloat16):
        model, x = SplitNet().eval().to(kind), torch.randn(1, 3, 8, 6).to(kind)
        heatmap = tp.explain(model, x, layer="prefix", target=1)
        for name in METRICS:
            if name not in ("mufidelity", "aopc"):
                found = tp.evaluate(model, x, heatmap, metrics=[name], masks=torch.ones(1, 8, 6, dtype=torch.bool))
                assert found[name].values.shape == (1, 1)
    volume = nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    x = torch.randn(1, 2, 6, 7, 8)
    heatmap = tp.explain(volume.eval(), x, layer="1", target=1)
    masks = torch.ones(1, 6, 7, 8, dtype=torch.bool)
    small = {
        "deletion": {"steps": 3},
        "insertion": {"steps": 3},
        "aopc": {"cells": 2, "steps": 3},
        "mufidelity": {"cells": 2},
    }
    found = tp.evaluate(volume, x, heatmap, metrics={name: small.get(name, {}) for name in METRICS}, masks=masks)
    assert all(bool(each.values.isfinite().all()) for each in found.values())

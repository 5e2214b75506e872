"""evaluate(): what it takes, what it refuses, where the object is, and what is said of many samples."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, SplitNet, messy, state_of
from torchpeek.errors import InputError, MetricNotApplicable, MetricNotFound, NotFinite, OptionError
from torchpeek.metrics import METRICS, Measurement, bootstrap, joined, mosaic, regions_of
from torchpeek.metrics.localization import widened


class Bright(nn.Module):
    """Class 0 is as probable as the mean of the input's first channel is large: p = mean, for inputs in (0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        mean = self.layer(x)[:, 0].mean((1, 2)).clamp(1e-12, 1 - 1e-12)
        return torch.stack([mean.log(), (1 - mean).log()], dim=1)


def made(values: Tensor, like: tp.Heatmap) -> tp.Heatmap:
    return replace(like, values=values.expand(*like.scores.shape, *values.shape[-2:]))


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


class Darker(nn.Module):
    """The other way round: p = 1 - mean."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x).flip(1)


def rescored(model: nn.Module, x: Tensor, heatmap: tp.Heatmap) -> tp.Heatmap:
    return replace(heatmap, scores=tp.explain(model, x, method="random", layer="inside.layer", target=0).scores)


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


class TestWhereTheObjectIs:
    def test_boxes_of_a_picture_are_in_its_own_pixels(self, photograph: Path) -> None:
        """Half as large and cropped: the box is where the crop shows it."""
        preprocess = tp.Preprocess(resize=None, crop=(100, 80), mean=(0.5,) * 3, std=(0.5,) * 3)
        loaded = tp.LoadedModel(PooledNet().eval(), preprocess, None)
        image = Image.new("RGB", (200, 150))
        picture = loaded.read(image)
        left, top, right, bottom = picture.geometry.box
        assert (right - left, bottom - top) == (80, 100)
        found = regions_of(
            None, [[left + 10, top + 20, left + 30, top + 50]], picture.tensor.shape, 1, picture.geometry
        )
        expected = torch.zeros(1, 1, 100, 80, dtype=torch.bool)
        expected[..., 20:50, 10:30] = True
        assert torch.equal(found, expected)
        mask = torch.zeros(150, 200, dtype=torch.bool)
        mask[int(top) + 20 : int(top) + 50, int(left) + 10 : int(left) + 30] = True
        assert torch.equal(regions_of(mask, None, picture.tensor.shape, 1, picture.geometry), expected)

    def test_several_boxes_and_masks_by_score(self) -> None:
        shape = torch.Size((2, 3, 4, 6))
        found = regions_of(None, [[[0, 0, 2, 1], [5, 3, 6, 4]], [1, 1, 2, 2]], shape, 1, None)
        assert found[0].sum() == 3
        assert found[1, 0].nonzero().tolist() == [[1, 1]]
        masks = torch.rand(2, 3, 4, 6) > 0.5
        assert torch.equal(regions_of(masks, None, shape, 3, None), masks)

    @pytest.mark.parametrize(
        ("masks", "boxes", "said"),
        [
            (torch.ones(2, 4, 5, dtype=torch.bool), None, "the size of the input, 4 x 6"),
            (torch.ones(2, 4, 6), None, "torch.bool"),
            (torch.ones(3, 4, 6, dtype=torch.bool), None, "N = 2"),
            (None, [[3, 0, 2, 1], [0, 0, 1, 1]], "sample 0"),
            (None, [[0, 0, 1, 1]], "batch of 2"),
            (torch.ones(2, 4, 6, dtype=torch.bool), [[0, 0, 1, 1]] * 2, "one of them"),
        ],
    )
    def test_what_does_not_fit(self, masks: Any, boxes: Any, said: str) -> None:
        with pytest.raises(InputError, match=said):
            regions_of(masks, boxes, torch.Size((2, 3, 4, 6)), 1, None)

    def test_an_empty_region_is_no_number(self) -> None:
        """Nothing was there to be found: neither hit nor miss, and left out of the mean."""
        model, x = PooledNet().eval(), torch.randn(2, 3, 6, 6)
        heatmap = tp.explain(model, x, target=1)
        masks = torch.zeros(2, 6, 6, dtype=torch.bool)
        masks[0, 2:4, 2:4] = True
        for name in ("pointing-game", "energy-pointing-game", "relevance-rank-accuracy", "iou"):
            found = tp.evaluate(model, x, heatmap, metrics=[name], masks=masks)[name]
            assert found.values.isnan().flatten().tolist() == [False, True]
            assert found.interval().samples == 1

    def test_a_mosaic(self) -> None:
        pictures = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 5, 6)
        cells = mosaic(pictures)
        assert cells.inputs.shape == (1, 3, 10, 12)
        for cell in range(4):
            assert set(cells.inputs[0, 0][cells.regions[0, cell]].tolist()) == {float(cell)}
            assert cells.regions[0, cell].sum() == 30
        assert (cells.inputs[0, 0, 0, 0], cells.inputs[0, 0, 0, -1], cells.inputs[0, 0, -1, 0]) == (0, 1, 2)
        with pytest.raises(InputError, match=r"\(4, C, H, W\)"):
            mosaic(pictures[:3])

    def test_the_grid_pointing_game(self) -> None:
        """Energy in the own cell: a quarter of a heatmap that is the same everywhere."""
        model = PooledNet().eval()
        cells = mosaic(torch.randn(4, 3, 6, 6))
        heatmap = tp.explain(model, cells.inputs, target=[[0, 1, 2, 3]])
        flat = replace(heatmap, values=torch.ones_like(heatmap.values))
        found = tp.evaluate(model, cells.inputs, flat, metrics=["grid-pointing-game"], masks=cells.regions)
        torch.testing.assert_close(found["grid-pointing-game"].values, torch.full((1, 4), 0.25))


class TestTheFrontDoor:
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
            (lambda h: {"metrics": 3}, InputError, "names"),
            (lambda h: {"metrics": {"deletion": {"step": 3}}}, OptionError, "steps=50"),
            (lambda h: {"metrics": {"deletion": {"steps": 0}}}, OptionError, "1 or more"),
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

    def test_a_fused_heatmap_is_asked_again_by_its_owner(self) -> None:
        model, x = PooledNet().eval(), torch.randn(1, 3, 8, 8)
        fused = tp.explain(model, x, layer=["features.0", "act"], fuse="mean", target=1)
        with pytest.raises(MetricNotApplicable, match="explain="):
            tp.evaluate(model, x, fused, metrics=["max-sensitivity"])

        def explain(module: nn.Module, inputs: Tensor, question: Any) -> Tensor:
            return tp.explain(module, inputs, layer=["features.0", "act"], fuse="mean", target=1).values

        found = tp.evaluate(model, x, fused, metrics=["max-sensitivity"], explain=explain)
        assert 0 < found["max-sensitivity"].values.item() < 10

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


class TestManySamples:
    def test_the_interval_is_that_of_the_mean(self) -> None:
        """Against the normal approximation, which holds for many samples."""
        values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
        found = bootstrap(values)
        spread = 1.96 * float(values.std()) / 400**0.5
        assert found.mean == pytest.approx(values.mean())
        assert found.low == pytest.approx(float(values.mean()) - spread, abs=0.2 * spread)
        assert found.high == pytest.approx(float(values.mean()) + spread, abs=0.2 * spread)
        assert bootstrap(values) == found
        narrow = bootstrap(values, confidence=0.5)
        assert found.low < narrow.low < narrow.high < found.high

    def test_of_one_nothing_is_said(self) -> None:
        found = bootstrap(torch.tensor([2.0, torch.nan]))
        assert (found.mean, found.samples) == (2.0, 1)
        assert math.isnan(found.low)
        assert str(found) == "2"

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


class TestHardCases:
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

    @pytest.mark.parametrize("name", ["max-sensitivity", "randomisation", "random-class", "adcc"])
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

"""Localisation, perturbation and sensitivity metrics for which the result is known by hand or in closed form."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from networks.bright import Bright, Darker, made, rescored
from replicas import further_metrics as further
from torchpeek.errors import MetricNotApplicable, OptionError
from torchpeek.metrics import METRICS
from torchpeek.metrics.fidelity import random_patches

LEFT = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64).expand(4, 4)
LEFT_COLUMN = torch.zeros(1, 4, 4, dtype=torch.bool)
LEFT_COLUMN[..., :1] = True
DRAWN = ("max-sensitivity", "average-sensitivity", "local-lipschitz")
RELATIVE = ("relative-input-stability", "relative-output-stability")


@pytest.fixture
def bright() -> tuple[nn.Module, Tensor, tp.Heatmap]:
    """Its columns are 0.8, 0.6, 0.4 and 0.2 bright, and so is the heatmap. p is the mean brightness."""
    model, x = Bright().double().eval(), (LEFT / 5).expand(1, 3, 4, 4).contiguous()
    return model, x, made(LEFT, tp.explain(model, x, method="random", layer="layer", target=0))


def linear(outputs: int, numbers: int, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(numbers, outputs, bias)).double().eval()


def heatmap_of(model: nn.Module, x: Tensor, values: Tensor, target: Any = 1) -> tp.Heatmap:
    heatmap = tp.explain(model, x, method="random", layer="0", target=target)
    return replace(heatmap, values=values.detach().expand(*heatmap.scores.shape, *values.shape[-2:]))


def one(model: nn.Module, x: Tensor, heatmap: tp.Heatmap, name: str, more: Any = None, **where: Any) -> Any:
    return tp.evaluate(model, x, heatmap, metrics={name: more or {}}, **where)[name]


def counted(model: nn.Module, x: Tensor, heatmap: tp.Heatmap, metrics: Any, **more: Any) -> int:
    """The number of inputs that pass through the model, besides those of the clean pass."""
    counts: list[int] = []
    tp.evaluate(model, x, heatmap, metrics=["average-drop"])  # what is checked once for a model is checked here
    handle = model.register_forward_pre_hook(lambda module, args: counts.append(len(args[0])))
    tp.evaluate(model, x, heatmap, metrics=metrics, **more)
    handle.remove()
    return sum(counts) - len(x)


class TestLocalization:
    def test_by_hand(self, bright: Any) -> None:
        model, x, heatmap = bright
        for values, auc, share in ((LEFT, 1, 1), (-LEFT, 0, 0), (LEFT.flip(1), 0, 0), (torch.ones(4, 4), 0.5, 1 / 4)):
            of = made(values.double(), heatmap)
            assert one(model, x, of, "auc", masks=LEFT_COLUMN).values.item() == pytest.approx(auc)
            assert one(model, x, of, "top-k", {"k": 3}, masks=LEFT_COLUMN).values.item() == pytest.approx(share)
        # The four highest are the region. Of the next four, all equal, three are drawn: none of them is in it.
        assert one(model, x, heatmap, "top-k", {"k": 7}, masks=LEFT_COLUMN).values.item() == pytest.approx(4 / 7)

    def test_a_whole_and_an_empty_region(self, bright: Any) -> None:
        model, x, heatmap = bright
        whole, empty = torch.ones(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
        assert one(model, x, heatmap, "auc", masks=whole).values.item() == 0.5
        assert one(model, x, heatmap, "top-k", masks=whole).values.item() == 1
        for name in ("auc", "top-k"):
            assert one(model, x, heatmap, name, masks=empty).values.isnan().all()

    def test_auc_is_that_of_scikit_learn(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        drawn = np.random.default_rng(0)
        for _ in range(5):
            values, region = drawn.integers(-3, 3, (6, 7)), drawn.random((6, 7)) > 0.6
            expected = metrics.roc_auc_score(region.ravel(), values.ravel())
            assert further.auc(values, region) == pytest.approx(expected)

    def test_top_k_is_the_mean_over_all_orders_of_ties(self) -> None:
        drawn = np.random.default_rng(1)
        for k in (1, 2, 4, 6):
            values, region = drawn.integers(0, 3, (2, 3)), drawn.permutation([1, 1, 1, 0, 0, 0]).reshape(2, 3) > 0
            shares = [
                region.ravel()[sorted(range(6), key=lambda at, keys=keys: (-values.ravel()[at], keys[at]))[:k]].mean()
                for keys in itertools.permutations(range(6))
            ]
            assert further.top_k(values, region, k) == pytest.approx(sum(shares) / len(shares))

    @pytest.mark.parametrize("k", [0, 17, 2.0, True])
    def test_k_is_a_number_of_positions(self, bright: Any, k: Any) -> None:
        model, x, heatmap = bright
        with pytest.raises(OptionError, match="option k"):
            one(model, x, heatmap, "top-k", {"k": k}, masks=LEFT_COLUMN)


def test_effective_complexity_by_hand(bright: Any) -> None:
    model, x, heatmap = bright
    values = torch.zeros(4, 4, dtype=torch.float64)
    values[0, :3] = torch.tensor([-4.0, 2.0, 1e-4])
    for threshold, share in ((0.0, 3), (1e-5, 3), (0.1, 2), (0.5, 1), (1.0, 0)):
        of, options = made(values, heatmap), {"threshold": threshold}
        assert one(model, x, of, "effective-complexity", options).values.item() == pytest.approx(share / 16)
        of = made(values * 1e-9, heatmap)
        assert one(model, x, of, "effective-complexity", options).values.item() == pytest.approx(share / 16)
    assert one(model, x, made(torch.zeros(4, 4), heatmap), "effective-complexity").values.item() == 1


class TestPatches:
    def test_selectivity_and_monotonicity_by_hand(self, bright: Any) -> None:
        """Patches of two columns by two rows: 0.7 and 0.3 bright. They go one by one, the bright ones first."""
        model, x, heatmap = bright
        curve = torch.tensor([2.0, 1.3, 0.6, 0.3, 0.0], dtype=torch.float64) / 4
        found = tp.evaluate(model, x, heatmap, metrics={name: {"cells": 2} for name in ("selectivity", "monotonicity")})
        torch.testing.assert_close(found["selectivity"].curve[0, 0], curve, rtol=0, atol=1e-9)
        torch.testing.assert_close(found["monotonicity"].curve[0, 0], curve.flip(0), rtol=0, atol=1e-9)
        assert found["selectivity"].values.item() == pytest.approx(float(curve.sum() - curve[0] / 2) / 4)
        assert found["monotonicity"].values.item() == 1
        darker = Darker(model)
        again = one(darker, x, rescored(darker, x, heatmap), "monotonicity", {"cells": 2})
        assert again.values.item() == 0
        even = one(model, x, heatmap, "monotonicity", {"cells": 2, "baseline": lambda inputs: inputs})
        assert even.values.item() == 1, "nothing falls"

    def test_monotonicity_counts_the_steps(self) -> None:
        """Each row of ones adds 1, 1, -1 and 1 to f. They are put in from the last to the first: one of them falls."""
        model, x = linear(1, 16, bias=False), torch.ones(1, 1, 4, 4, dtype=torch.float64)
        rows = torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=torch.float64) / 4
        model[2].weight.data = rows.repeat_interleave(4).view(1, 16)
        heatmap = heatmap_of(model, x, LEFT.mT, tp.targets.Output([0]))
        found = one(model, x, heatmap, "monotonicity", {"cells": 4})
        torch.testing.assert_close(found.curve[0, 0, ::4], torch.tensor([0.0, 1, 0, 1, 2], dtype=torch.float64))
        assert found.values.item() == 12 / 16

    def test_they_share_their_passes(self) -> None:
        model, x = PooledNet().eval(), torch.randn(2, 3, 12, 9)
        metrics = {"selectivity": {"cells": 3}, "monotonicity": {"cells": 3}}
        assert counted(model, x, tp.explain(model, x, target=1), metrics) == 2 * 12 * 9


class TestAdditive:
    """Of a linear output and a map of its contributions, every correlation is 1 and nothing is missing."""

    @pytest.mark.parametrize("baseline", ["zeros", 0.5, torch.tensor([0.1, -0.2, 2.0]).view(3, 1, 1), torch.ones_like])
    def test_completeness_and_sensitivity_n(self, baseline: Any) -> None:
        model, x = linear(3, 3 * 8 * 8), torch.randn(2, 3, 8, 8, dtype=torch.float64)
        fill = torch.zeros_like(x)
        if not isinstance(baseline, str):
            fill = baseline(x) if callable(baseline) else torch.as_tensor(baseline).expand_as(x)
        parts = ((x - fill) * model[2].weight[1].view(3, 8, 8)).sum(1, keepdim=True)  # (N, 1, H, W)
        heatmap = heatmap_of(model, x, parts)
        options = {"baseline": baseline}
        metrics = {"completeness": options, "sensitivity-n": options}
        found = tp.evaluate(model, x, heatmap, metrics=metrics)
        assert found["completeness"].values.max() < 1e-12
        assert found["sensitivity-n"].values.min() > 1 - 1e-9
        assert found["sensitivity-n"].curve.shape == (2, 1, 5)
        twice = tp.evaluate(model, x, replace(heatmap, values=-2 * heatmap.values), metrics=metrics)
        torch.testing.assert_close(twice["completeness"].values, 3 * parts.sum((2, 3)).abs())
        assert twice["sensitivity-n"].values.max() < -1 + 1e-9

    def test_completeness_is_of_the_score_that_is_explained(self) -> None:
        model, x = linear(3, 4 * 4), torch.randn(1, 1, 4, 4, dtype=torch.float64)
        values = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
        target = tp.targets.ClassProbability(tp.targets.Classes([1]))
        found = one(model, x, heatmap_of(model, x, values, target), "completeness")
        expected = (model(x).softmax(1) - model(0 * x).softmax(1))[:, 1].abs()
        torch.testing.assert_close(found.values[:, 0], expected.detach())

    def test_monotonicity_correlation(self) -> None:
        """Each weight is twice the one before: so is what the content of its position changes."""
        model, x = linear(1, 16), (torch.arange(16.0) % 2).double().view(1, 1, 4, 4)
        weights = 2.0 ** torch.arange(16, dtype=torch.float64).view(4, 4)
        model[2].weight.data = weights.view(1, 16)
        ranks = weights.flatten().argsort().argsort().double().view(4, 4) + 1
        for values, expected in ((ranks, 1), (-ranks, 1), (17 - ranks, -1), (torch.ones_like(ranks), 0)):
            heatmap = heatmap_of(model, x, values, tp.targets.Output([0]))
            found = one(model, x, heatmap, "monotonicity-correlation", {"cells": 4, "samples": 64})
            assert found.values.item() == pytest.approx(expected, abs=0.01)


class TestSufficiency:
    class Corner(nn.Module):
        """Class 1 if the upper left position is bright, else class 0."""

        def forward(self, x: Tensor) -> Tensor:
            corner = x[:, 0, 0, 0] - 0.5
            return torch.stack([-corner, corner, corner - 9], 1)

    def test_by_hand(self) -> None:
        model, x = nn.Sequential(nn.Identity(), self.Corner()).eval(), torch.ones(1, 1, 8, 8)
        corner = torch.zeros(1, 1, 8, 8)
        corner[..., 0, 0] = 1
        stays = 1 - random_patches(16, 0.5, 32, 0)[:, 0].float().mean().item()
        assert 0.3 < stays < 0.7
        options = {"cells": 4, "samples": 32, "share": 1 / 64, "baseline": "zeros"}
        for values, label, expected in (
            (corner, 1, 1.0),
            (-corner, 1, stays),
            (corner, 0, 0.0),
            (-corner, 0, 1 - stays),
        ):
            heatmap = heatmap_of(model, x, values, label)
            found = one(model, x, heatmap, "sufficiency", options)
            assert found.values.item() == pytest.approx(expected, abs=1e-6)
        whole = one(model, x, heatmap_of(model, x, -corner), "sufficiency", {**options, "share": 1.0})
        assert whole.values.item() == 1

    def test_under_a_sigmoid_a_class_is_predicted_by_itself(self) -> None:
        class Labels(nn.Module):
            """Class 0 is always there, and the largest. Class 1 is there if the upper left position is bright."""

            def forward(self, x: Tensor) -> Tensor:
                return torch.stack([0 * x[:, 0, 0, 0] + 5, x[:, 0, 0, 0] - 0.5], 1)

        model, x = nn.Sequential(nn.Identity(), Labels()).eval(), torch.ones(1, 1, 8, 8)
        corner = torch.zeros(1, 1, 8, 8)
        corner[..., 0, 0] = 1
        stays = 1 - random_patches(16, 0.5, 32, 0)[:, 0].float().mean().item()
        options = {"cells": 4, "samples": 32, "share": 1 / 64, "baseline": "zeros"}
        for values, target, expected in (
            (corner, tp.targets.SigmoidProbability(1), 1.0),
            (-corner, tp.targets.SigmoidLogOdds(1), stays),
            (-corner, tp.targets.SigmoidProbability(1, absent=True), 1 - stays),
            (corner, 1, 0.0),
        ):
            found = one(model, x, heatmap_of(model, x, values, target), "sufficiency", options)
            assert found.values.item() == pytest.approx(expected, abs=1e-6)

    def test_only_of_several_classes(self) -> None:
        model, x = linear(3, 64), torch.rand(1, 1, 8, 8, dtype=torch.float64)
        entry = heatmap_of(model, x, x, tp.targets.Output([1]))
        with pytest.raises(MetricNotApplicable, match="sufficiency"):
            one(model, x, entry, "sufficiency")


class TestSensitivity:
    @staticmethod
    def itself(module: nn.Module, inputs: Tensor, question: Any) -> Tensor:
        return inputs[:, :1]

    def test_a_map_that_is_the_input(self) -> None:
        """norm(d / x) over norm(d / x) is 1; and where the logits are the input, norm(d / x) / norm(d) is 1 / x."""
        model, x = nn.Sequential(nn.Identity(), nn.Flatten()).eval(), torch.full((2, 1, 4, 4), 0.25).double()
        x[:, 0, 0, 0] = 1  # is predicted, and is not reached
        heatmap, options = heatmap_of(model, x, x), {"samples": 5, "radius": 0.1}
        found = one(model, x, heatmap, "relative-input-stability", options, explain=self.itself)
        torch.testing.assert_close(found.values, torch.ones(2, 1, dtype=torch.float64))
        found = one(model, x, heatmap, "relative-output-stability", options, explain=self.itself)
        assert bool(((found.values > 3.5) & (found.values < 4)).all())

    def test_what_never_changes_is_zero(self) -> None:
        model, x = PooledNet().eval(), torch.randn(2, 3, 8, 8)
        heatmap = tp.explain(model, x, target=1)
        for values in (heatmap.values, torch.zeros_like(heatmap.values)):
            same = replace(heatmap, values=values)
            found = tp.evaluate(
                model, x, same, metrics=[*DRAWN, *RELATIVE], explain=lambda m, i, q, values=values: values[: len(i)]
            )
            for each in found.values():
                assert each.values.flatten().tolist() == [0, 0]

    def test_a_map_of_zeros_that_changes_is_infinite_or_finite_but_never_nan(self) -> None:
        model, x = PooledNet().eval(), torch.randn(1, 3, 8, 8)
        for inputs in (x, torch.zeros_like(x)):
            heatmap = tp.explain(model, inputs, target=1)
            nothing = replace(heatmap, values=torch.zeros_like(heatmap.values))
            found = tp.evaluate(model, inputs, nothing, metrics=[*DRAWN, *RELATIVE], explain=self.itself)
            for name, each in found.items():
                assert each.values.item() == (pytest.approx(each.values.item()) if "lipschitz" in name else torch.inf)
            assert 0 < found["local-lipschitz"].values.item() < torch.inf

    def test_the_scale_of_the_heatmap_means_nothing(self) -> None:
        model, x = PooledNet().eval(), torch.randn(2, 3, 8, 8)
        heatmap = tp.explain(model, x, target=1)
        found = []
        for scale in (1.0, 1e-9, 1e9):
            scaled = replace(heatmap, values=heatmap.values * scale)

            def explain(module: nn.Module, inputs: Tensor, question: Any, scale: float = scale) -> Tensor:
                return scale * tp.explain(module, inputs, target=1).values

            found.append(tp.evaluate(model, x, scaled, metrics=[*DRAWN, *RELATIVE], explain=explain))
        for name in (*DRAWN, *RELATIVE):
            for each in found[1:]:
                torch.testing.assert_close(each[name].values, found[0][name].values, rtol=1e-3, atol=1e-6)

    def test_the_mean_is_at_most_the_maximum(self) -> None:
        model, x = PooledNet().eval(), torch.randn(2, 3, 8, 8)
        found = tp.evaluate(model, x, tp.explain(model, x, target=1), metrics=DRAWN)
        assert bool((found["average-sensitivity"].values < found["max-sensitivity"].values).all())

    def test_draws_that_change_the_prediction_do_not_count(self) -> None:
        model, x = linear(3, 16, bias=False), torch.rand(1, 1, 4, 4, dtype=torch.float64)
        model[2].weight.data[1:] = model[2].weight.data[:1] + 0.02 * torch.randn(2, 16, dtype=torch.float64)
        heatmap = heatmap_of(model, x, x, 0)
        generator = tp.metrics.CleanPass(tp.trace(model, x, layer="0", target=0)).generators(salt=2)[0]
        each = [torch.rand(1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(12)]
        draws = (2 * torch.stack(each) - 1) * 0.5
        labels = model(x + draws).argmax(1)
        assert 0 < int((labels == model(x).argmax()).sum()) < 12
        explain = {"explain": lambda module, inputs, question: inputs**3}
        heatmap = replace(heatmap, values=x**3)
        for name in RELATIVE:
            found = one(model, x, heatmap, name, {"samples": 12, "radius": 0.5}, **explain)
            compute = getattr(further, name.replace("-", "_"))
            assert found.values.item() == pytest.approx(compute(lambda picture: picture[0] ** 3, model, x[0], draws))

    def test_nan_where_every_draw_changes_the_prediction(self) -> None:
        class Odd(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                same = (x.flatten(1) == 0.5).all(1).double()
                return torch.stack([same, 0.5 + 0 * same], 1) + 0 * x.sum()

        model, x = nn.Sequential(nn.Identity(), Odd()).eval(), torch.full((1, 1, 4, 4), 0.5).double()
        found = tp.evaluate(model, x, heatmap_of(model, x, x, 0), metrics=RELATIVE, explain=self.itself)
        assert all(bool(each.values.isnan().all()) for each in found.values())

    def test_under_a_sigmoid_the_class_itself_must_stay(self) -> None:
        class Odd(nn.Module):
            """Class 0 is the largest in any case. Class 1 is there for the picture alone, class 2 in any case."""

            def forward(self, x: Tensor) -> Tensor:
                same = (x.flatten(1) == 0.5).all(1).double()
                return torch.stack([5 + 0 * same, same - 0.5, 1 + 0 * same], 1) + 0 * x.sum()

        model, x = nn.Sequential(nn.Identity(), Odd()).eval(), torch.full((1, 1, 4, 4), 0.5).double()
        heatmap = heatmap_of(model, x, x, tp.targets.SigmoidProbability(torch.tensor([[1, 2]])))
        explain = lambda model, inputs, question: inputs.expand(1, 2, 4, 4)  # noqa: E731
        found = tp.evaluate(model, x, heatmap, metrics=RELATIVE, explain=explain)
        assert all(each.values.isnan().tolist() == [[True, False]] for each in found.values())

    @pytest.mark.parametrize("name", [*RELATIVE, "sufficiency"])
    def test_the_logits_are_read_from_the_part_of_the_target(self, name: str) -> None:
        class Several(nn.Module):
            def __init__(self, inside: nn.Module) -> None:
                super().__init__()
                self.inside = inside

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return x.flatten(1)[:, :5], self.inside(x)

        model, x = linear(3, 64), torch.rand(2, 1, 8, 8, dtype=torch.float64)
        several = nn.Sequential(nn.Identity(), Several(model)).eval()
        in_part = tp.targets.Classes([1], part="1")
        explain = {} if name == "sufficiency" else {"explain": self.itself}
        expected = one(model, x, heatmap_of(model, x, x), name, **explain)
        assert torch.equal(one(several, x, heatmap_of(several, x, x, in_part), name, **explain).values, expected.values)

    @pytest.mark.parametrize("target", [None, tp.targets.Output([0])])
    def test_one_logit_and_other_targets(self, target: Any) -> None:
        model, x = linear(1, 16), torch.rand(2, 1, 4, 4, dtype=torch.float64) + 0.5
        model[2].bias.data += 10 - model(x).min()  # above zero in every draw
        heatmap = heatmap_of(model, x, x, target)
        found = one(model, x, heatmap, "relative-output-stability", {"samples": 3}, explain=self.itself).values
        generators = tp.metrics.CleanPass(tp.trace(model, x, layer="0")).generators(salt=2)
        for n in range(2):
            each = [torch.rand(1, 4, 4, generator=generators[n], dtype=torch.float64) for _ in range(3)]
            draws = (2 * torch.stack(each) - 1) * 0.02
            expected = further.relative_output_stability(lambda picture: picture[0], model, x[n], draws)
            assert found[n].item() == pytest.approx(expected)

    def test_they_share_their_explanations_and_passes(self) -> None:
        model, x = PooledNet().eval(), torch.randn(2, 3, 8, 8)
        heatmap, calls = tp.explain(model, x, target=1), []

        def explain(module: nn.Module, inputs: Tensor, question: Any) -> Tensor:
            calls.append(len(inputs))
            return heatmap.values

        metrics = {name: {"samples": 4} for name in (*DRAWN, *RELATIVE)}
        assert counted(model, x, heatmap, metrics, explain=explain) == 2 * 4
        assert calls == [2] * 4


@pytest.mark.parametrize("name", [name for name, each in METRICS.items() if each.needs == "passes"])
def test_the_cost_that_is_listed_is_what_runs(name: str) -> None:
    model, x = PooledNet().eval(), torch.randn(1, 3, 12, 12)
    options = {key: 3 for key in ("cells", "steps", "samples", "sizes") if key in METRICS[name].options}
    found = counted(model, x, tp.explain(model, x, target=1), {name: options})
    listed = METRICS[name].passes({**METRICS[name].options, **options})
    expected = {
        "deletion": 12 * (listed - 1) + 1,  # one end is the clean pass, and the other is the same for all heatmaps
        "insertion": 12 * (listed - 1) + 1,
        "road-morf": 12 * 18,  # with those of road-lerf
        "road-lerf": 12 * 18,
    }.get(name, listed * (1 if METRICS[name].shared else 12))
    assert found == expected


def test_the_logits_are_those_of_the_part_that_the_target_names() -> None:
    class WithFeatures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = PooledNet()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.net(x)
            return logits, logits.detach().repeat(1, 3)

    torch.manual_seed(0)
    model, x, names = WithFeatures().double().eval(), torch.rand(3, 3, 8, 8).double(), ("sufficiency", *RELATIVE)
    heatmaps = [
        tp.explain(each, x, method="layercam", layer=layer, target=tp.targets.Predicted(part=part))
        for each, layer, part in ((model, "net.act", "0"), (model.net, "act", ""))
    ]
    got, expected = (
        tp.evaluate(each, x, heatmap, metrics=names) for each, heatmap in zip((model, model.net), heatmaps, strict=True)
    )
    for name in names:
        torch.testing.assert_close(got[name].values, expected[name].values, equal_nan=True)

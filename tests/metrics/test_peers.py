"""Cases in which other implementations of the same metrics are wrong, and torchpeek is right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from torchpeek.metrics import Case, CleanPass
from torchpeek.metrics.stability import randomised

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return PooledNet().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(2))


def with_values(heatmap: tp.Heatmap, values: Tensor) -> tp.Heatmap:
    return replace(heatmap, values=values)


def case_of(model: nn.Module, x: Tensor, values: Tensor) -> Case:
    trace = tp.trace(model, x, layer="act", target=1, gradients=False)
    return Case(CleanPass(trace), values)


class TestDrop:
    def test_it_is_divided_by_the_clean_probability(self, model: nn.Module, x: Tensor) -> None:
        """grad-cam's is not: that of a picture that the model is unsure of is too small."""
        multiply = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image").DropInConfidence()
        targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
        heatmap = tp.explain(model, x, target=1)
        ours = tp.evaluate(model, x, heatmap, metrics=["average-drop"])["average-drop"].values[:, 0]
        mask = heatmap.positive().unit().resized(x.shape[2:]).values[:, 0]
        with torch.no_grad():
            clean, left = model(x).softmax(1)[:, 1], model(x * mask[:, None]).softmax(1)[:, 1]
        torch.testing.assert_close(ours, (clean - left).clamp(min=0) / clean)
        asked = [targets.ClassifierOutputSoftmaxTarget(1)] * len(x)
        theirs = multiply(x, mask.numpy(), asked, model)
        np.testing.assert_allclose(theirs, (clean - left).clamp(min=0).numpy(), atol=1e-6)
        assert (ours > torch.as_tensor(theirs) + 1e-4).any()

    def test_logits_below_zero_do_not_turn_it_round(self, model: nn.Module, x: Tensor) -> None:
        """torchcam divides by whatever score it is given; of a logit below zero a loss becomes a gain."""
        with torch.no_grad():
            model.head.bias -= 50  # the probabilities stay
        heatmap = tp.explain(model, x, target=1)
        assert bool((heatmap.scores < 0).all())
        ours = tp.evaluate(model, x, heatmap, metrics=["average-drop", "average-gain"])
        assert bool((ours["average-drop"].values >= 0).all())
        assert bool((ours["average-drop"].values <= 1).all())


class TestRoad:
    def test_of_equal_values_exactly_as_many_are_removed_as_are_meant(self, model: nn.Module, x: Tensor) -> None:
        """grad-cam compares with a percentile: of a map that is zero in most places it removes all, or far too many."""
        road = pytest.importorskip("pytorch_grad_cam.metrics.road")
        perturb = pytest.importorskip("pytorch_grad_cam.metrics.perturbation_confidence")
        values = torch.zeros(1, 1, 12, 10)
        values[..., :2, :10] = torch.rand(2, 10)  # five sixths are zero
        case = case_of(model, x[:1], values)
        for percent in (10, 50, 90):
            count = round(percent * 120 / 100)
            assert int((case.ranks < count).sum()) == count
            assert int((case.ranks >= 120 - count).sum()) == count
        removed = perturb.RemoveMostRelevantFirst(50, road.NoisyLinearImputer(noise=0))
        shown = removed(x[0], values[0, 0])
        theirs = float((shown != x[0]).all(0).float().mean())
        assert theirs > 0.9, "the defect is gone; this test may go"

    def test_among_equal_values_the_choice_is_no_pattern(self, model: nn.Module, x: Tensor) -> None:
        """Not the upper left first, as sorting has it: of a heatmap of ones half is anywhere."""
        ranks = case_of(model, x, torch.ones(3, 1, 12, 10)).ranks
        for sample in range(3):
            upper = int((ranks[sample, 0, :6] < 60).sum())
            assert 15 < upper < 45
        assert not torch.equal(ranks[0], ranks[1])

    def test_every_sample_of_every_batch_is_scored(self, model: nn.Module, x: Tensor) -> None:
        """Quantus scores its first batch, and says it is all."""
        heatmap = tp.explain(model, x, target=1)
        whole = tp.evaluate(model, x, heatmap, metrics=["road"], batch=1)["road"].values
        assert whole.shape == (3, 1)
        assert len(whole.unique()) == 3


class TestCurves:
    def test_there_is_a_curve_for_every_sample(self, model: nn.Module, x: Tensor) -> None:
        """xplique keeps the mean over the samples alone."""
        heatmap = tp.explain(model, x, target=[[0, 1], [1, 2], [3, 4]])
        found = tp.evaluate(model, x, heatmap, metrics={"insertion": {"steps": 6}})["insertion"]
        assert found.curve is not None
        assert found.curve.shape == (3, 2, 7)
        assert len(found.curve[..., 2].unique()) == 6

    def test_a_position_goes_with_all_its_channels(self, model: nn.Module) -> None:
        """Quantus flips each channel of a pixel on its own, 3 H W calls in all."""
        seen: list[Tensor] = []
        x = torch.ones(1, 3, 6, 6)
        heatmap = tp.explain(model, x, target=1)
        handle = model.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
        tp.evaluate(model, x, heatmap, metrics={"deletion": {"steps": 36}})
        handle.remove()
        pictures = torch.cat(seen)
        assert bool((pictures == pictures[:, :1]).all())


class TestLocalization:
    def test_an_empty_mask_is_no_hit(self, model: nn.Module, x: Tensor) -> None:
        """Quantus's pointing game says True."""
        heatmap = tp.explain(model, x, target=1)
        masks = torch.zeros(3, 12, 10, dtype=torch.bool)
        found = tp.evaluate(model, x, heatmap, metrics=["pointing-game"], masks=masks)["pointing-game"]
        assert bool(found.values.isnan().all())
        assert found.interval().samples == 0

    def test_colour_pictures_with_one_map(self, model: nn.Module, x: Tensor) -> None:
        """Quantus's ROAD raises IndexError, captum's infidelity refuses (N, 1, H, W)."""
        heatmap = tp.explain(model, x, target=1)
        for name in ("road", "infidelity"):
            assert bool(tp.evaluate(model, x, heatmap, metrics=[name])[name].values.isfinite().all())


class Bare(nn.Module):
    """A parameter of its own, attention with packed weights, and two layers of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.attention(x * self.scale, x, x)[0]))


class TestRandomisation:
    def test_every_parameter_is_drawn_and_none_as_another(self) -> None:
        """Quantus leaves packed and bare parameters as they were, and makes layers of one shape identical."""
        model = Bare()
        before = {name: each.detach().clone() for name, each in model.named_parameters()}
        *_, last = randomised(model, 3, 0)
        after = dict(last.named_parameters())
        assert all(not torch.equal(after[name], each) for name, each in before.items())
        assert not torch.equal(after["first.weight"], after["second.weight"])
        assert all(torch.equal(each, before[name]) for name, each in model.named_parameters()), "the model itself stays"

    def test_it_goes_from_the_end_and_never_back(self) -> None:
        model, before = Bare(), None
        for stage in randomised(model, 5, 0):
            changed = {
                name
                for (name, one), other in zip(stage.named_parameters(), model.parameters(), strict=True)
                if not torch.equal(one, other)
            }
            if before is None:
                assert changed == {"second.weight", "second.bias"}
            else:
                assert before < changed
            before = changed
        assert len(before or ()) == len(list(model.parameters()))

    @pytest.mark.parametrize("values", [torch.full((7,), 0.1), torch.linspace(-1e-199, 3e-200, 7, dtype=torch.float64)])
    def test_the_spread_is_neither_rounding_nor_lost(self, values: Tensor) -> None:
        """Equal values in float64 have a spread of rounding by a plain formula, and very small ones none."""
        model = nn.Linear(7, 1, bias=False).double()
        model.weight.data[0] = values.double() if values.dtype == torch.float64 else 0.1
        [last] = randomised(model, 1, 0)
        change = (last.weight - model.weight).detach().abs().max() / model.weight.detach().abs().max()
        assert 1e-2 < float(change) < 10


class TestInfidelity:
    def test_against_captum(self, model: nn.Module, x: Tensor) -> None:
        """Their normalised one, in the form for attributions that are contributions, with our squares."""
        captum = pytest.importorskip("captum.metrics")
        from torchpeek.metrics.fidelity import random_squares

        heatmap = tp.explain(model, x, method="hirescam", layer="act", target=1)
        ours = tp.evaluate(model, x, heatmap, metrics={"infidelity": {"samples": 40}})["infidelity"].values[:, 0]
        squares, drawn = random_squares(x.shape[2:], 40, 0), iter(range(40))
        maps = heatmap.resized(x.shape[2:]).values  # (N, 1, H, W)

        def removed(inputs: Tensor) -> tuple[Tensor, Tensor]:
            gone = squares[next(drawn)].expand_as(inputs)
            # They multiply the change with the attribution: it has to be one where something is removed.
            return gone.float() / 3, torch.where(gone, 0, inputs)

        theirs = captum.infidelity(
            model,
            removed,
            x,
            maps.expand_as(x),
            target=1,
            n_perturb_samples=40,
            max_examples_per_batch=3,
            normalize=True,
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


class TestSensitivity:
    def test_against_captum_with_the_same_draws(self, model: nn.Module, x: Tensor) -> None:
        captum: Any = pytest.importorskip("captum.metrics")
        heatmap = tp.explain(model, x[:1], method="hirescam", layer="act", target=1)
        options = {"samples": 1, "radius": 0.1}
        ours = tp.evaluate(model, x[:1], heatmap, metrics={"max-sensitivity": options})["max-sensitivity"].values
        generator = CleanPass(tp.trace(model, x[:1], layer="act", target=1)).generators(salt=2)[0]
        draw = (2 * torch.rand(x.shape[1:], generator=generator, dtype=torch.float64).float() - 1) * 0.1

        def explained(inputs: Any, **more: Any) -> Tensor:
            inputs = inputs if isinstance(inputs, tuple) else (inputs,)
            with torch.enable_grad():  # which they turn off
                return tp.explain(model, inputs[0], method="hirescam", layer="act", target=1).values

        theirs = captum.sensitivity_max(
            explained, x[:1], perturb_func=lambda inputs, radius: inputs + draw, n_perturb_samples=1
        )
        torch.testing.assert_close(ours[:, 0], theirs, rtol=1e-4, atol=1e-6)

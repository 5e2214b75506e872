"""Methods that need many forward passes: identities, cases by hand, and options that are refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, SplitNet
from networks.split import X
from torchpeek.cam.algebra import gaussian_blur
from torchpeek.errors import InputError, MethodNotApplicable


class TestIdentities:
    def test_iscam_in_one_step_and_sscam_without_noise_are_scorecam(self, net: SplitNet) -> None:
        expected = tp.explain(net, X, method="scorecam", layer="prefix", target=[[0, 1], [2, 3]]).values
        for method, options in (("iscam", {"steps": 1}), ("sscam", {"sigma": 0.0, "samples": 2})):
            got = tp.explain(net, X, method=method, layer="prefix", target=[[0, 1], [2, 3]], **options).values
            torch.testing.assert_close(got, expected)

    def test_smoothgradcam_without_noise_is_gradcam_plus_plus(self, net: SplitNet) -> None:
        got = tp.explain(net, X, method="smoothgradcam++", layer="prefix", target=1, noise_level=0.0, samples=3)
        expected = tp.explain(net, X, method="gradcam++", layer="prefix", target=1)
        torch.testing.assert_close(got.values, expected.values)

    @pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")
    def test_integrated_gradcam_in_one_step_is_positive_gradcam(self, net: SplitNet) -> None:
        got = tp.explain(net, X, method="integrated-gradcam", layer="prefix", target=[[0, 1], [2, 3]], steps=1)
        expected = tp.explain(net, X, layer="prefix", target=[[0, 1], [2, 3]]).positive()
        torch.testing.assert_close(got.values, expected.values)

    def test_shapleycam_where_the_score_is_piecewise_linear_is_gradcam(self) -> None:
        model = PooledNet().double().eval()
        got = tp.explain(model, X, method="shapleycam", layer="features.0", target=[[0, 1], [2, 3]])
        expected = tp.explain(model, X, layer="features.0", target=[[0, 1], [2, 3]])
        torch.testing.assert_close(got.values, expected.values)

    def test_shapleycam_of_a_quadratic_score_by_hand(self) -> None:
        """y = (sum a)^2 / 2: g is sum a everywhere, H A as well, so that g - H A / 2 is (sum a) / 2, here 5."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Identity()

            def forward(self, x: Tensor) -> Tensor:
                return self.layer(x).sum((1, 2, 3)).square().unsqueeze(1) / 2

        a = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        got = tp.explain(Net(), a, method="shapleycam", layer="layer", target=0).values
        torch.testing.assert_close(got, 5.0 * a)

    def test_ablationcam_where_the_head_is_linear(self) -> None:
        """Without channel c the score falls by w_c mean(A_c), so the map is the sum of that, over |y|, times A_c."""
        model = PooledNet().double().eval()
        trace = tp.trace(model, X, layer="act", target=2)
        a = trace.activations.squeeze(1)
        weights = model.head.weight[2].detach() * a.mean((2, 3)) / trace.scores.abs()
        expected = (weights[:, :, None, None] * a).sum(1, keepdim=True)
        torch.testing.assert_close(tp.explain(trace, method="ablationcam").values, expected)

    def test_a_negative_score_does_not_turn_ablationcam_over(self) -> None:
        """As it does where the fall is divided by the score itself."""
        model = PooledNet().double().eval()
        before = tp.explain(model, X, method="ablationcam", layer="act", target=2)
        with torch.no_grad():
            model.head.bias[2] -= 2 * before.scores.max() + 10
        after = tp.explain(model, X, method="ablationcam", layer="act", target=2)
        assert (before.scores * after.scores).max() < 0 or after.scores.max() < 0
        ratio = before.scores.abs() / after.scores.abs()
        torch.testing.assert_close(after.values, before.values * ratio[:, :, None, None])

    def test_recipro_cam_where_the_head_is_linear_is_cam(self) -> None:
        """One position alone scores its part of the class map's mean, plus the bias."""
        model = PooledNet().double().eval()
        got, cam = (tp.explain(model, X, method=each, layer="act", target=2) for each in ("recipro-cam", "cam"))
        torch.testing.assert_close(got.values, cam.values / 48 + model.head.bias[2])

    def test_scorecam_adds_up(self, net: SplitNet) -> None:
        """The weights are shares: with one live channel the map is that channel."""

        class OneAlive(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * torch.tensor([0.0, 1.0, 0.0], dtype=x.dtype).view(1, 3, 1, 1) + 2

        model = nn.Sequential(OneAlive(), nn.Flatten(), nn.Linear(3 * 48, 4)).double()
        calls: list[int] = []
        tp.explain(model, X, method="scorecam", layer="0", target=0)  # tries out the memory format, once
        model[0].register_forward_hook(lambda module, args, output: calls.append(len(output)))
        got = tp.explain(model, X, method="scorecam", layer="0", target=[[0, 1], [2, 3]]).values
        torch.testing.assert_close(got, (X[:, 1:2] + 2).expand(-1, 2, -1, -1))
        assert sum(calls) == 2 + 2  # the clean pass, and one masked input for each picture

    def test_groupcam_of_one_group_that_is_kept_whole(self) -> None:
        """One group, nothing cut off: the mask is Grad-CAM's, scaled, and the map that times what it brings."""
        model = PooledNet().double().eval()
        got = tp.explain(model, X, method="groupcam", layer="act", target=2, groups=1, keep=1.0, kernel=3, sigma=1.0)
        mask = tp.explain(model, X, layer="act", target=2).positive()
        flat = mask.values.flatten(2)
        low, high = flat.amin(2)[..., None, None], flat.amax(2)[..., None, None]
        mask = (torch.where(mask.values > low, mask.values, 0) - 0) / high
        blurred = gaussian_blur(X, 3, 1.0)
        gain = model(X * mask + blurred * (1 - mask))[:, 2] - model(blurred)[:, 2]
        torch.testing.assert_close(got.values, gain.detach()[:, None, None, None] * mask)

    def test_opticam_of_samples_that_see_each_other(self) -> None:
        """Each picture and class goes alone where a layer normalises with the batch at hand."""
        norm = nn.BatchNorm2d(4, track_running_stats=False)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).double()
        both = tp.explain(model, X[:1], method="opticam", layer="2", target=[[0, 1]], steps=5).values
        each = [tp.explain(model, X[:1], method="opticam", layer="2", target=k, steps=5).values for k in (0, 1)]
        torch.testing.assert_close(both, torch.cat(each, dim=1))

    def test_opticam_in_halves_where_memory_does_not_suffice(self, net: SplitNet) -> None:
        expected = tp.explain(net, X, method="opticam", layer="prefix", target=[[0, 1], [2, 3]], steps=3).values

        def refuse(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if len(args[0]) > 1 and torch.is_grad_enabled():
                raise torch.OutOfMemoryError("no")

        trace = tp.trace(net, X, layer="prefix", target=tp.targets.ClassesPerSample(torch.tensor([[0, 1], [2, 3]])))
        net.register_forward_pre_hook(refuse)
        torch.testing.assert_close(tp.explain(trace, method="opticam", steps=3).values, expected)

    def test_kpcacam_of_too_many_positions(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 100 * 100, 2))
        with pytest.raises(MethodNotApplicable, match="has 10000, allowed: up to 8192"):
            tp.explain(model, torch.randn(1, 3, 100, 100), method="kpcacam", layer="0")

    def test_opticam_raises_the_score_of_what_its_mask_shows(self, net: SplitNet) -> None:
        def shown(values: Tensor) -> Tensor:
            mask = F.interpolate(values, size=(8, 6), mode="bilinear")
            flat = mask.flatten(2)
            mask = (mask - flat.amin(2)[..., None, None]) / (flat.amax(2) - flat.amin(2))[..., None, None]
            return net(X * mask)[:, 1].detach()

        first, last = (
            tp.explain(net, X, method="opticam", layer="prefix", target=1, steps=steps).values for steps in (1, 60)
        )
        assert (shown(last) > shown(first)).all()

    @pytest.mark.parametrize("method", ["smoothgradcam++", "sscam"])
    def test_noise_is_seeded_and_in_the_provenance(self, net: SplitNet, method: str) -> None:
        state = torch.get_rng_state().tolist()
        one, same, other = (
            tp.explain(net, X, method=method, layer="prefix", target=1, seed=seed, samples=2) for seed in (1, 1, 2)
        )
        assert torch.get_rng_state().tolist() == state
        assert torch.equal(one.values, same.values)
        assert not torch.equal(one.values, other.values)
        assert one.provenance.options["seed"] == 1

    @pytest.mark.parametrize(
        ("method", "options", "message"),
        [
            ("sscam", {"samples": 0}, "option samples is 0; allowed: a whole number, 1 to 1,000,000"),
            ("iscam", {"steps": 2.5}, "option steps is 2.5"),
            ("groupcam", {"keep": 2}, "option keep is 2; allowed: a number, 0 to 1"),
            ("smoothgradcam++", {"noise_level": -1}, "option noise_level is -1; allowed: a number, 0 or more"),
            ("opticam", {"rate": "fast"}, "option rate is 'fast'"),
            ("scorecam", {"precision": "int8"}, "precision is 'int8'"),
            ("scorecam", {"precision": "bfloat16"}, "is for models in float32"),
            ("groupcam", {"kernel": 4}, "option kernel is 4; allowed: an odd number"),
            ("kpcacam", {"gamma": "x"}, "option gamma is 'x'"),
        ],
    )
    def test_options_that_make_no_sense(self, net: SplitNet, method: str, options: dict, message: str) -> None:
        with pytest.raises(InputError, match=message):
            tp.explain(net, X, method=method, layer="prefix", **options)

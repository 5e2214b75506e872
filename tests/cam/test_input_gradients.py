"""The methods that follow gradients to the input: replicas, captum, completeness, and every spelling of a ReLU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchpeek as tp
from networks import SplitNet, state_of
from networks.split import X
from replicas.input_level import guided_backprop, guided_gradcam
from torchpeek.errors import GradUnavailable, InputError, MethodNotApplicable, NotConnected, Notice, OptionError

GRADIENTS = ("saliency", "input-x-gradient", "smoothgrad", "integrated-gradients", "guided-backprop", "guided-gradcam")


class Rectified(nn.Module):
    """Two convolutions with ReLUs, and a linear head; `relu` spells the ReLU."""

    def __init__(self, relu: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.last = nn.Identity()
        self.head = nn.Linear(6 * 4 * 3, 4)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.relu(self.two(self.relu(self.one(x))))).flatten(1))

    @property
    def linear_parts(self) -> list[Callable[[Tensor], Tensor]]:
        return [self.one, self.two, lambda a: self.head(a.flatten(1))]


@pytest.fixture
def rectified() -> Rectified:
    return Rectified().double().eval()


class TestGuided:
    LABELS = ([2, 0, 3], [1, 3, 0])

    def test_guided_backprop(self, rectified: Rectified) -> None:
        values = tp.explain(rectified, X, method="guided-backprop", target=self.LABELS).values
        for n in range(2):
            for k in range(3):
                expected = guided_backprop(rectified.linear_parts, X[n : n + 1], self.LABELS[n][k])
                np.testing.assert_allclose(values[n, k].numpy(), expected, rtol=1e-10, atol=1e-14)

    @pytest.mark.filterwarnings("ignore:.*maps are exactly zero everywhere")  # where Grad-CAM is nowhere positive
    @pytest.mark.parametrize(("layer", "part"), [("last", 1), ("two", None)])
    def test_guided_gradcam(self, rectified: Rectified, layer: str, part: int | None) -> None:
        values = tp.explain(rectified, X, method="guided-gradcam", layer=layer, target=self.LABELS).values
        assert values.shape == (2, 3, 8, 6)
        guided = tp.explain(rectified, X, method="guided-backprop", target=self.LABELS).values
        coarse = tp.explain(rectified, X, method="gradcam", layer=layer, target=self.LABELS).positive()
        torch.testing.assert_close(values, guided * coarse.resized((8, 6)).values)
        if part is None:
            return
        for n in range(2):
            for k in range(3):
                expected = guided_gradcam(rectified.linear_parts, X[n : n + 1], self.LABELS[n][k], part)
                np.testing.assert_allclose(values[n, k].numpy(), expected, rtol=1e-10, atol=1e-14)

    @pytest.mark.parametrize(
        "relu",
        [
            nn.ReLU(),
            nn.ReLU(inplace=True),
            F.relu,
            F.relu_,
            Tensor.relu,
            Tensor.relu_,
            lambda a: F.relu(a, inplace=True),
            lambda a: a.clamp(min=0),
            lambda a: a.clamp_(min=0),
            lambda a: a.clamp_min(0),
            lambda a: torch.maximum(a, torch.zeros_like(a)),
            lambda a: torch.max(torch.zeros((), dtype=a.dtype), a),
            lambda a: torch.clip(a, 0.0),
            lambda a: F.threshold(a, 0.0, 0.0),
            nn.Threshold(0.0, 0.0, inplace=True),
            nn.Sequential(nn.ReLU(), nn.ReLU()),
            lambda a: checkpoint(F.relu, a, use_reentrant=False),
        ],
    )
    def test_every_spelling_of_a_relu(self, relu: Callable[[Tensor], Tensor], rectified: Rectified) -> None:
        """One reused module, a function, in place: the same map, and the model as it was."""
        expected = tp.explain(rectified, X, method="guided-backprop", target=1).values
        model = Rectified(relu).double().train()
        model.load_state_dict(rectified.state_dict())
        before = state_of(model)
        values = tp.explain(model, X, method="guided-backprop", target=1).values
        assert state_of(model) == before
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("relu", [nn.ReLU6(), F.relu6, nn.Hardtanh(0, 6), lambda a: a.clamp(0, 6)])
    def test_capped_at_six(self, relu: Callable[[Tensor], Tensor], rectified: Rectified) -> None:
        """The derivative above six is zero, as it is without guidance."""
        model = Rectified(relu).double()
        model.load_state_dict(rectified.state_dict())
        with torch.no_grad():
            model.one.weight.mul_(20)
        got = tp.explain(model, X, method="guided-backprop", target=1).values
        a = model.one(X).detach().requires_grad_()
        b = model.two(a.clamp(0, 6)).detach().requires_grad_()
        (g,) = torch.autograd.grad(model.head(b.clamp(0, 6).flatten(1))[:, 1].sum(), b)
        g = (model.head.weight[1].view(6, 4, 3) * ((b > 0) & (b < 6))).clamp(min=0).detach()
        assert bool((a > 6).any())
        (g,) = torch.autograd.grad(model.two(a.clamp(0, 6)), a, g)
        capped = ((a > 0) & (a < 6)) * torch.autograd.grad(model.two(a), a, _guided_at(b, model))[0].clamp(min=0)
        x = X.clone().requires_grad_()
        (g,) = torch.autograd.grad(model.one(x), x, capped.detach())
        torch.testing.assert_close(got[:, 0], g.abs().amax(1))

    def test_only_relus_from_the_picture_to_the_score_count(self) -> None:
        """A ReLU in the branch of another input guides nothing."""

        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Linear(2, 4)

            def forward(self, x: Tensor, other: Tensor) -> Tensor:
                return F.gelu(self.conv(x)).mean((2, 3)) + self.other(other).relu()

        call = tp.Arguments((torch.randn(1, 3, 6, 6), torch.randn(1, 2)), picture="0")
        with pytest.raises(MethodNotApplicable, match=r"no ReLU lies between.*its activation functions are GELU"):
            tp.explain(Two(), call, method="guided-backprop")

    @pytest.mark.parametrize("act", [nn.GELU(), nn.SiLU(), nn.LeakyReLU(), nn.Hardswish(), nn.Hardtanh()])
    def test_a_network_without_relus(self, act: nn.Module) -> None:
        with pytest.raises(MethodNotApplicable, match="Next: choose a method for any network, such as saliency"):
            tp.explain(Rectified(act).double(), X, method="guided-backprop")

    def test_other_activations_beside_relus_are_named(self) -> None:
        convolutions = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.SiLU()]
        model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(96, 2))
        with pytest.warns(Notice, match="SiLU in the same model has plain gradients"):
            tp.explain(model.double(), X, method="guided-backprop")

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
    def test_a_scripted_part_hides_its_relus(self) -> None:
        model = Rectified(torch.jit.script(lambda_relu)).double()
        for _ in range(3):
            model(X.requires_grad_())
        X.requires_grad_(False)
        with pytest.raises(MethodNotApplicable, match="a part of the model is scripted"):
            tp.explain(model, X, method="guided-backprop", layer="one")

    def test_it_hardly_depends_on_the_class(self) -> None:
        """What docs/methods.md says with arXiv:1810.03292, on a network with many positive paths."""
        torch.manual_seed(1)
        model = nn.Sequential(
            *(layer for c in (3, 16, 16, 16) for layer in (nn.Conv2d(c, 16, 3, padding=1), nn.ReLU())),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 2),
        ).double()
        x = torch.randn(1, 3, 16, 16, dtype=torch.float64)

        def between_classes(method: str) -> float:
            both = tp.explain(model, x, method=method, target=[[0, 1]]).values[0].flatten(1)
            return float(torch.corrcoef(both)[0, 1])

        assert between_classes("guided-backprop") > 0.8


def lambda_relu(a: Tensor) -> Tensor:
    return torch.relu(a) * 2


def _guided_at(b: Tensor, model: Rectified) -> Tensor:
    arriving = model.head.weight[1].view(6, 4, 3).expand_as(b)
    return (arriving.clamp(min=0) * ((b > 0) & (b < 6))).detach()


class TestIntegratedGradients:
    @pytest.mark.parametrize("baseline", [0.0, 0.5, torch.linspace(-1, 1, 3, dtype=torch.float64).view(3, 1, 1)])
    def test_completeness(self, net: SplitNet, baseline: float | Tensor) -> None:
        """On a smooth network the midpoints are exact up to steps^-2."""
        errors = []
        for steps in (20, 40):
            heatmap = tp.explain(
                net, X, method="integrated-gradients", target=[[0, 2], [1, 3]], steps=steps, baseline=baseline
            )
            start = torch.zeros_like(X) + baseline
            clean, at_baseline = (net(x).detach().gather(1, torch.tensor([[0, 2], [1, 3]])) for x in (X, start))
            errors.append((heatmap.values.sum((2, 3)) - (clean - at_baseline)).abs())
        assert float(errors[1].max()) < 1e-4
        torch.testing.assert_close(errors[0] / errors[1], torch.full((2, 2), 4.0).double(), rtol=0.1, atol=0)

    def test_without_biases_it_is_input_times_gradient_and_the_score(self, rectified: Rectified) -> None:
        with torch.no_grad():
            for module in (rectified.one, rectified.two, rectified.head):
                module.bias.zero_()
        maps = tp.compare(rectified, X, methods=["integrated-gradients", "input-x-gradient"], target=2)
        for heatmap in maps.values():
            torch.testing.assert_close(heatmap.values, maps["input-x-gradient"].values)
            torch.testing.assert_close(heatmap.values.sum((2, 3)), heatmap.scores)

    def test_too_few_steps_are_noticed(self) -> None:
        class Steep(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.sigmoid(200 * (x.mean((1, 2, 3)) - 0.3)).unsqueeze(1)

        x = torch.full((1, 1, 4, 4), 1.0, dtype=torch.float64)
        with pytest.warns(Notice, match="3 steps are too few for this model. Next: steps=12"):
            tp.explain(Steep(), x, method="integrated-gradients", target=0, steps=3)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 0}, "option steps is 0"),
            ({"baseline": "black"}, "option baseline is 'black'"),
            ({"baseline": float("nan")}, "option baseline is nan"),
            ({"baseline": torch.full((), float("nan"))}, "with NaN or infinity"),
            ({"baseline": torch.zeros(1, dtype=torch.complex64)}, "allowed: real numbers"),
            ({"baseline": torch.zeros(5)}, r"option baseline is a tensor \(5,\)"),
        ],
    )
    def test_options_that_make_no_sense(self, net: SplitNet, options: dict, message: str) -> None:
        with pytest.raises(OptionError, match=message):
            tp.explain(net, X, method="integrated-gradients", **options)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
class TestCaptum:
    """The same by captum, which has no maps of one value for a position: its channels are reduced as the papers do."""

    def test_saliency(self, net: SplitNet) -> None:
        from captum.attr import Saliency

        theirs = Saliency(net).attribute(X.clone(), target=2)
        torch.testing.assert_close(tp.explain(net, X, method="saliency", target=2).values[:, 0], theirs.amax(1))

    def test_input_x_gradient(self, net: SplitNet) -> None:
        from captum.attr import InputXGradient

        theirs = InputXGradient(net).attribute(X.clone(), target=2).detach()
        ours = tp.explain(net, X, method="input-x-gradient", target=2).values[:, 0]
        torch.testing.assert_close(ours, theirs.sum(1))

    def test_integrated_gradients(self, net: SplitNet) -> None:
        from captum.attr import IntegratedGradients

        theirs = IntegratedGradients(net).attribute(X, baselines=0.2, target=2, n_steps=10, method="riemann_middle")
        ours = tp.explain(net, X, method="integrated-gradients", target=2, steps=10, baseline=0.2).values[:, 0]
        torch.testing.assert_close(ours, theirs.detach().sum(1))

    @pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
    def test_guided(self) -> None:
        """Only where no ReLU is in place, a function, or used twice, as it hooks modules."""
        from captum.attr import GuidedBackprop, GuidedGradCam

        model = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
        ).double()
        theirs = GuidedBackprop(model).attribute(X.clone(), target=1).detach()
        ours = tp.explain(model, X, method="guided-backprop", target=1).values[:, 0]
        torch.testing.assert_close(ours, theirs.abs().amax(1))
        theirs = GuidedGradCam(model, model[3]).attribute(X.clone(), target=1, interpolate_mode="bilinear").detach()
        ours = tp.explain(model, X, method="guided-gradcam", layer="3", target=1).values[:, 0]
        torch.testing.assert_close(ours, theirs.abs().amax(1))


class TestInputs:
    @pytest.mark.parametrize("name", GRADIENTS)
    def test_a_part_without_gradients(self, name: str) -> None:
        class Cut(Rectified):
            def forward(self, x: Tensor) -> Tensor:
                with torch.no_grad():
                    a = self.relu(self.one(x))
                return self.head(self.last(self.relu(self.two(a))).flatten(1))

        with pytest.raises(NotConnected, match=r"no gradient flows back to it.*such as occlusion or rise"):
            tp.explain(Cut().double(), X, method=name, layer="last")

    @pytest.mark.parametrize("name", GRADIENTS)
    def test_values_that_the_backward_pass_needs_are_overwritten(self, name: str) -> None:
        class Overwrites(Rectified):
            def forward(self, x: Tensor) -> Tensor:
                a = self.one(x).sigmoid()
                b = a * 2
                a.mul_(0)
                return self.head(self.last(self.two(b).relu()).flatten(1))

        with pytest.raises(GradUnavailable, match="overwrites values that the backward pass needs"):
            tp.explain(Overwrites().double(), X, method=name, layer="last")

    @pytest.mark.parametrize("name", [*GRADIENTS[:4], "occlusion", "rise"])
    def test_the_picture_of_the_call(self, name: str) -> None:
        """Of two inputs, the one that the call is about; the other stays as it is."""

        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.nets = nn.ModuleList([SplitNet(), SplitNet()])

            def forward(self, a: Tensor, b: Tensor) -> Tensor:
                return self.nets[0](a) + self.nets[1](b)

        model = Two().double()
        options = {"samples": 5} if name in ("smoothgrad", "rise") else {}
        for picture in (0, 1):
            call = tp.Arguments((X, X.flip(3)), picture=picture)
            got = tp.explain(model, call, method=name, target=1, **options).values
            if name == "rise":  # the other branch is an offset of each score
                other = model.nets[1 - picture]((X.flip(3), X)[picture])[:, 1].detach()
                masks = tp.explain(_One(), X, method=name, target=0, **options).values
                got = got - other.view(2, 1, 1, 1) * masks
            alone = tp.explain(model.nets[picture], (X, X.flip(3))[picture], method=name, target=1, **options).values
            torch.testing.assert_close(got, alone)

    @pytest.mark.parametrize("name", ["saliency", "integrated-gradients", "occlusion", "rise"])
    def test_inputs_without_a_grid(self, name: str) -> None:
        with pytest.raises(MethodNotApplicable, match=f"{name} needs floating-point inputs .*; got .*shape .2, 9."):
            tp.explain(nn.Linear(9, 3), torch.randn(2, 9), method=name)

    def test_the_model_needs_no_layer_with_a_grid(self) -> None:
        heatmap = tp.explain(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.randn(1, 3, 4, 4), method="saliency")
        assert heatmap.values.shape == (1, 1, 4, 4)
        assert heatmap.provenance.layer == "the input"
        assert heatmap.provenance.layer_reason == "the method looks at the input"
        assert heatmap.provenance.layout == ""

    def test_a_named_layer_is_ignored_and_said_to_be(self, net: SplitNet) -> None:
        heatmap = tp.explain(net, X, method="saliency", layer=["prefix", "head"])
        assert heatmap.provenance.layer_reason.endswith("the layer that was asked for is ignored")
        assert torch.equal(heatmap.values, tp.explain(net, X, method="saliency").values)
        with pytest.raises(tp.errors.LayerNotFound):  # still a mistake
            tp.explain(net, X, method="saliency", layer="prefiks")
        with pytest.raises(InputError, match="saliency looks at the input and not at a layer"):
            tp.explain(net, X, method="saliency", fuse="max")

    def test_no_layer_is_looked_for(self, net: SplitNet) -> None:
        calls = []
        net.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        tp.explain(net, X, method="saliency", target=[[0, 1, 2, 3]] * 2)
        assert calls == [2, 2]  # the clean pass, and one for all classes

    @pytest.mark.filterwarnings("ignore:polycam.*maps are exactly zero everywhere")
    def test_beside_methods_of_layers(self, net: SplitNet) -> None:
        alone = tp.explain(net, X, method="saliency").values
        for methods, layer in ((["gradcam", "saliency"], "prefix"), (["saliency", "polycam"], ["prefix", "mix"])):
            heatmap = tp.compare(net, X, methods=methods, layer=layer)["saliency"]
            torch.testing.assert_close(heatmap.values, alone)
            assert heatmap.provenance.layout == ""

    def test_a_target_at_an_inner_layer(self, net: SplitNet) -> None:
        target = tp.targets.Neuron("mix", channel=2, position=(0, 1))
        values = tp.explain(net, X, method="saliency", target=target).values
        x = X.clone().requires_grad_()
        (g,) = torch.autograd.grad(net.mix(net.prefix(x))[:, 2, 0, 1].sum(), x)
        torch.testing.assert_close(values[:, 0], g.abs().amax(1))

    def test_many_classes_in_chunks(self, net: SplitNet, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = tp.explain(net, X, method="smoothgrad", target=tp.targets.TopClasses(4), samples=5).values
        monkeypatch.setattr("torchpeek.engine.input_gradients._BYTES", 1)
        monkeypatch.setattr("torchpeek.engine.input_gradients.chunk_size", lambda sample: 4)
        torch.testing.assert_close(
            tp.explain(net, X, method="smoothgrad", target=tp.targets.TopClasses(4), samples=5).values, expected
        )

    def test_saved_with_a_tensor_as_baseline(self, net: SplitNet, tmp_path) -> None:
        heatmap = tp.explain(net, X, method="integrated-gradients", baseline=torch.zeros(3, 1, 1))
        tp.save(heatmap, tmp_path / "map.safetensors")
        assert torch.equal(tp.load(tmp_path / "map.safetensors").provenance.options["baseline"], torch.zeros(3, 1, 1))


class _One(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 1, dtype=x.dtype) + 0 * x.sum()


class Frames(nn.Module):
    """Reads (N, frames, C, H, W) frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.conv(x.flatten(0, 1))).mean((2, 3))
        return self.head(features.view(*x.shape[:2], -1).mean(1))


class Moved(nn.Module):
    """What the error says to write."""

    def __init__(self, model: nn.Module, axis: int) -> None:
        super().__init__()
        self.model, self.axis = model, axis

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.movedim(1, self.axis))


class TestTheAxisOfTheChannels:
    VIDEO = torch.rand(2, 5, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    @pytest.mark.parametrize("method", ["saliency", "input-x-gradient", "guided-backprop", "occlusion"])
    def test_frames_are_no_channels(self, method: str) -> None:
        model = Frames().double().eval()
        with pytest.raises(MethodNotApplicable, match=r"on axis 2. Next: give x.movedim\(2, 1\) to a module"):
            tp.explain(model, self.VIDEO, method=method, target=1)
        values = tp.explain(Moved(model, 2), self.VIDEO.movedim(2, 1), method=method, target=1).values
        assert values.shape == (2, 1, 5, 8, 6)
        if method == "saliency":
            x = self.VIDEO.clone().requires_grad_()
            [gradient] = torch.autograd.grad(model(x)[:, 1].sum(), x)
            torch.testing.assert_close(values[:, 0], gradient.abs().amax(2))

    def test_as_many_frames_as_channels(self) -> None:
        with pytest.warns(Notice, match=r"axis 1 of the inputs .* is read as the channels. If they are on axis 2"):
            tp.explain(Frames().double().eval(), self.VIDEO[:, :3], method="saliency", target=1)

    def test_channels_last(self) -> None:
        class ChannelsLast(Rectified):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.permute(0, 3, 1, 2))

        model = ChannelsLast().double().eval()
        with pytest.raises(MethodNotApplicable, match=r"the 3 channels .* are on axis 3"):
            tp.explain(model, X.permute(0, 2, 3, 1), method="saliency", target=1)
        assert tp.explain(Moved(model, 3), X, method="saliency", target=1).values.shape == (2, 1, *X.shape[2:])

"""Every method against an independent replica, identities and hand-computed cases."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch import nn

import torchpeek as tp
from networks import Attending, InPlaceNet, PooledNet, SplitNet, messy, state_of
from replicas.further_passes import REPLICAS_OF_PASSES
from replicas.one_pass import REPLICAS
from torchpeek.cam import METHODS, find_method
from torchpeek.cam.algebra import first_component
from torchpeek.engine import capture
from torchpeek.engine.attention.recorder import Attention
from torchpeek.errors import (
    GradUnavailable,
    InputError,
    MethodNotApplicable,
    MethodNotFound,
    NotFinite,
    Notice,
    OptionError,
    TargetError,
)

X = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
CHEAP = [name for name, method in METHODS.items() if method.cheap]

# Scaled, cut off or climbed along: rounding is carried further by these.
ROUGH = ("groupcam", "opticam", "polycam", "fullgrad")

# Fewer draws and steps than a user would take: the replicas are slow.
SMALL = {
    "smoothgradcam++": {"samples": 4},
    "sscam": {"samples": 3},
    "iscam": {"steps": 4},
    "groupcam": {"groups": 3, "kernel": 5, "sigma": 2.0},
    "integrated-gradcam": {"steps": 6},
    "opticam": {"steps": 8},
    "fem": {"k": 0.5},
}


def attention(name: str) -> bool:
    """Whether a network has to have attention for this method."""
    return METHODS[name].needs == "attention"


def test_every_method_has_an_oracle() -> None:
    """So that a new method is not without a test: a replica, or its own tests, here or in test_passes.py."""
    assert set(METHODS) - set(REPLICAS) - set(REPLICAS_OF_PASSES) == {
        "cam",
        "random",
        "fullgrad",
        "polycam",
        "refinecam",
        # test_attention.py
        "rollout",
        "legrad",
        "transformer-attribution",
    }


@pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")  # some of the small network's really are
@pytest.mark.parametrize("name", REPLICAS_OF_PASSES)
def test_replica_of_passes(net: SplitNet, name: str) -> None:
    """Two samples, three classes of each, a grid that is not square."""
    labels, options = [[2, 0, 3], [1, 3, 0]], SMALL.get(name, {})
    values = tp.explain(net, X, method=name, layer="prefix", target=labels, **options).values
    assert values.shape == (2, 3, 4, 3)
    assert values.dtype == torch.float64
    for n in range(2):
        for k in range(3):
            expected = REPLICAS_OF_PASSES[name](net, X[n : n + 1], labels[n][k], **options)
            largest = np.abs(expected).max()
            np.testing.assert_allclose(values[n, k].numpy(), expected, rtol=1e-7, atol=1e-9 * largest)


@pytest.mark.parametrize("name", REPLICAS)
@pytest.mark.parametrize("scale", [1.0, 1e-9], ids=["", "tiny scores"])
def test_replica(net: SplitNet, name: str, scale: float) -> None:
    """Two samples, three classes of each, a grid that is not square; gradients from the split network."""
    with torch.no_grad():
        net.head.weight.mul_(scale)
        net.head.bias.mul_(scale)
    labels = [[2, 0, 3], [1, 3, 0]]
    values = tp.explain(net, X, method=name, layer="prefix", target=labels).values
    assert values.shape == (2, 3, 4, 3)
    assert values.dtype == torch.float64
    for n in range(2):
        a = net.prefix(X[n : n + 1]).detach()
        for k in range(3):
            leaf = a.clone().requires_grad_()
            (g,) = torch.autograd.grad(net.suffix(leaf)[0, labels[n][k]], leaf)
            expected = REPLICAS[name](a[0].numpy(), g[0].numpy())
            np.testing.assert_allclose(values[n, k].numpy(), expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


class TestIdentities:
    @pytest.mark.parametrize(
        "name", ["gradcam", "xgradcam", "hirescam", "gradcam-elementwise", "layercam", "eigengradcam"]
    )
    def test_linear_in_the_score(self, net: SplitNet, name: str) -> None:
        before = tp.explain(net, X, method=name, layer="prefix", target=1).values
        with torch.no_grad():
            net.head.weight.mul_(3)
            net.head.bias.mul_(3)
        torch.testing.assert_close(tp.explain(net, X, method=name, layer="prefix", target=1).values, 3 * before)

    def test_gradcam_is_cam_divided_by_the_positions(self) -> None:
        model, x = PooledNet().double().eval(), X[:, :, :5]
        cam, gradcam = (
            tp.explain(model, x, method=name, layer="act", target=[[0, 1], [2, 4]]) for name in ("cam", "gradcam")
        )
        torch.testing.assert_close(gradcam.values, cam.values / (5 * 6), rtol=1e-12, atol=1e-15)

    def test_the_mean_of_cam_is_the_score_without_its_bias(self) -> None:
        model = PooledNet().double().eval()
        heatmap = tp.explain(model, X, method="cam", layer="act", target=tp.targets.TopClasses(3))
        bias = model.head.bias[heatmap.question.labels]
        torch.testing.assert_close(heatmap.values.mean((2, 3)) + bias, heatmap.scores, rtol=1e-12, atol=0)

    def test_hirescam_adds_up_to_the_score_where_it_is_linear(self) -> None:
        """Its completeness: gradient times activation of a linear function, plus the bias, is the function."""
        model = PooledNet().double().eval()
        heatmap = tp.explain(model, X, method="hirescam", layer="act", target=2)
        torch.testing.assert_close(heatmap.values.sum((2, 3)) + model.head.bias[2], heatmap.scores, rtol=1e-12, atol=0)

    def test_where_the_head_is_linear_these_are_one(self) -> None:
        model = PooledNet().double().eval()
        maps = tp.compare(model, X, methods=["gradcam", "xgradcam", "hirescam"], layer="act", target=3)
        for heatmap in maps.values():
            torch.testing.assert_close(heatmap.values, maps["gradcam"].values)

    def test_elementwise_is_never_negative_and_at_least_hirescam(self, net: SplitNet) -> None:
        maps = tp.compare(net, X, methods=["hirescam", "gradcam-elementwise"], layer="prefix")
        assert (maps["gradcam-elementwise"].values >= maps["hirescam"].values.clamp(min=0)).all()

    # random's numbers are drawn for the batch as a whole
    @pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
    def test_a_batch_is_as_one_by_one_and_many_classes_as_each(self, name: str) -> None:
        model = PooledNet(attention=attention(name)).double().eval()
        whole = tp.explain(model, X, method=name, layer="act", target=[[0, 1], [2, 3]]).values
        for n, row in enumerate([[0, 1], [2, 3]]):
            for k, label in enumerate(row):
                alone = tp.explain(model, X[n : n + 1], method=name, layer="act", target=label).values
                torch.testing.assert_close(whole[n : n + 1, k : k + 1], alone, rtol=1e-9, atol=1e-12)


class TestByHand:
    """One channel of activations 1, 2, 3, 4 and one of zeros; gradients set by the head."""

    class Net(nn.Module):
        def __init__(self, gradient: list[list[float]]) -> None:
            super().__init__()
            self.layer = nn.Identity()
            self.register_buffer("gradient", torch.tensor(gradient))

        def forward(self, x):
            return (self.layer(x) * self.gradient).sum((1, 2, 3), keepdim=True)[:, :, 0, 0]

    A = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            # gradients 2, 0, -1, 1; their mean .5
            ("gradcam", [[0.5, 1.0], [1.5, 2.0]]),
            # 2 * 1, 0 * 2, -1 * 3, 1 * 4
            ("hirescam", [[2.0, 0.0], [-3.0, 4.0]]),
            ("gradcam-elementwise", [[2.0, 0.0], [0.0, 4.0]]),
            ("layercam", [[2.0, 0.0], [0.0, 4.0]]),
            # (2 * 1 - 1 * 3 + 1 * 4) / 10 = .3
            ("xgradcam", [[0.3, 0.6], [0.9, 1.2]]),
            # sum(A) = 10: 2 / (2 + 20) + 1 / (2 + 10) = 1/11 + 1/12
            ("gradcam++", [[(1 / 11 + 1 / 12) * a for a in row] for row in [[1, 2], [3, 4]]]),
            # one channel: the first component is the channel itself
            ("eigencam", [[1.0, 2.0], [3.0, 4.0]]),
            ("eigengradcam", [[2.0, 0.0], [-3.0, 4.0]]),
        ],
    )
    def test_one_channel(self, name: str, expected: list[list[float]]) -> None:
        model = self.Net([[2.0, 0.0], [-1.0, 1.0]])
        values = tp.explain(model, self.A, method=name, layer="layer", target=0).values
        torch.testing.assert_close(values, torch.tensor([[expected]]), rtol=1e-6, atol=1e-6)

    def test_gradcam_plus_plus_is_not_the_sum_of_cubes(self) -> None:
        """torchcam 0.5 divides a copy, and so weighs by the sum of relu(g)^3: here 8 + 1 = 9."""
        model = self.Net([[2.0, 0.0], [-1.0, 1.0]])
        values = tp.explain(model, self.A, method="gradcam++", layer="layer", target=0).values
        assert float(values[0, 0, 0, 0]) == pytest.approx(1 / 11 + 1 / 12)
        assert float(values[0, 0, 0, 0]) != pytest.approx(9)

    def test_a_channel_that_is_zero_gets_no_weight(self) -> None:
        model = self.Net([[2.0, 0.0], [-1.0, 1.0]])
        two = torch.cat([self.A, torch.zeros_like(self.A)], dim=1)
        values = tp.explain(model, two, method="xgradcam", layer="layer", target=0).values
        torch.testing.assert_close(values, torch.tensor([[[[0.3, 0.6], [0.9, 1.2]]]]))


class TestFirstComponent:
    @pytest.mark.parametrize(
        "shape", [(2, 3, 7, 4, 5), (2, 3, 40, 4, 5), (1, 2, 3, 9), (1, 1, 4, 2, 3, 2), (1, 1, 3, 1, 2)]
    )
    def test_is_the_singular_value_decompositions(self, shape: tuple[int, ...]) -> None:
        tensor = torch.randn(shape, dtype=torch.float64)
        towards = torch.randn(*shape[:2], *shape[3:], dtype=torch.float64)
        got = first_component(tensor, towards)
        for n in range(shape[0]):
            for k in range(shape[1]):
                u, s, _ = np.linalg.svd(tensor[n, k].flatten(1).T.numpy(), full_matrices=False)
                expected = u[:, 0] * s[0]
                expected *= np.sign(expected @ towards[n, k].flatten().numpy())
                np.testing.assert_allclose(got[n, k].flatten().numpy(), expected, rtol=1e-8, atol=1e-10)

    def test_the_sign_does_not_hang_on_the_solver(self) -> None:
        """grad-cam takes it as it comes, then cuts off below zero: some blobs come out inverted."""
        for seed in range(60):
            generator = torch.Generator().manual_seed(seed)
            y, x = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
            centre = torch.rand(2, generator=generator) * 6
            blob = torch.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 4)
            strengths = torch.rand(32, generator=generator)[:, None, None]
            activations = (strengths * blob + 0.05 * torch.rand(32, 7, 7, generator=generator))[None, None]
            found = first_component(activations, towards=activations.sum(2))[0, 0]
            peak = int(found.argmax())
            assert (found >= 0).all()
            assert abs(peak // 7 - float(centre[0])) <= 1
            assert abs(peak % 7 - float(centre[1])) <= 1

    def test_of_zeros(self) -> None:
        assert (first_component(torch.zeros(1, 1, 4, 3, 3), torch.zeros(1, 1, 3, 3)) == 0).all()


class TestCam:
    def test_refuses_what_is_not_pooling_and_a_linear_head(self, net: SplitNet) -> None:
        with pytest.raises(MethodNotApplicable, match="global average pooling"):
            tp.explain(net, X, method="cam", layer="prefix")
        with pytest.raises(MethodNotApplicable):
            tp.explain(PooledNet(), X.float(), method="cam", layer="features.2")  # the ReLU lies between
        with pytest.raises(MethodNotApplicable, match="class logits"):
            tp.explain(PooledNet(), X.float(), method="cam", layer="act", target=tp.targets.ClassProbability())

    def test_without_a_bias(self) -> None:
        model = PooledNet(bias=False).double()
        heatmap = tp.explain(model, X, method="cam", target=1)
        torch.testing.assert_close(heatmap.values.mean((2, 3)), heatmap.scores)


class TestRandom:
    def test_is_seeded_and_leaves_the_global_generator_alone(self) -> None:
        model = PooledNet()
        state = torch.get_rng_state().tolist()
        first, same, other = (tp.explain(model, X.float(), method="random", seed=seed).values for seed in (1, 1, 2))
        assert torch.get_rng_state().tolist() == state
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
        assert 0 <= float(first.min()) < float(first.max()) < 1

    def test_the_seed_is_in_the_provenance(self) -> None:
        assert tp.explain(PooledNet(), X.float(), method="random", seed=7).provenance.options == {"seed": 7}
        assert tp.explain(PooledNet(), X.float(), seed=7).provenance.options == {}


@pytest.mark.filterwarnings("ignore:polycam.*are exactly zero everywhere")  # where no channel raises the score
@pytest.mark.parametrize("name", METHODS)
class TestContract:
    """What holds for every method, also for one that is registered tomorrow."""

    def test_the_model_is_left_as_found(self, name: str) -> None:
        model = messy(attention=attention(name))
        x = torch.randn(2, 3, 8, 8)
        before = state_of(model)
        tp.explain(model, x, method=name, layer="act", target=[[0, 1], [2, 3]])
        assert state_of(model) == before
        for error in (RuntimeError("broken"), KeyboardInterrupt()):
            model.fail_with = error
            with pytest.raises(type(error)):
                tp.explain(model, x, method=name, layer="act")
            assert state_of(model) == before

    def test_nothing_lives_on(self, name: str, monkeypatch) -> None:
        kept = []

        class Watched(capture.Capture):
            def __init__(self, layer, returned, handle, layout) -> None:
                super().__init__(layer, returned, handle, layout)
                kept.append(weakref.ref(returned))

        class WatchedAttention(Attention):
            def __init__(self, layer, block, weights, handle, after) -> None:
                super().__init__(layer, block, weights, handle, after)
                kept.append(weakref.ref(weights))

        monkeypatch.setattr(capture, "Capture", Watched)
        monkeypatch.setattr("torchpeek.engine.attention.recorder.Attention", WatchedAttention)
        heatmap = tp.explain(PooledNet(attention=attention(name)), X.float(), method=name, layer="act")
        assert kept
        assert all(reference() is None for reference in kept)
        assert heatmap.values.grad_fn is None

    def test_under_autocast(self, name: str) -> None:
        """The model runs in bfloat16, as the caller wants; the method's own mathematics does not."""
        model, x = PooledNet(attention=attention(name)).eval(), X.float()
        with torch.autocast("cpu", torch.bfloat16):
            half = tp.explain(model, x, method=name, layer="act", target=1)
        exact = tp.explain(model, x, method=name, layer="act", target=1)
        assert half.values.dtype == half.scores.dtype == torch.float32
        tolerance = 0.3 if name in ROUGH else 0.05
        assert (half.values - exact.values).abs().max() <= tolerance * exact.values.abs().max()

    def test_shape_type_and_provenance(self, name: str) -> None:
        model = PooledNet(attention=attention(name)).eval()
        heatmap = tp.explain(model, torch.randn(2, 3, 7, 5), method=name, target=tp.targets.TopClasses(3))
        assert heatmap.values.shape == (2, 3, 7, 5)
        assert heatmap.values.dtype == torch.float32
        assert not heatmap.values.requires_grad
        assert heatmap.scores.shape == heatmap.question.labels.shape == (2, 3)
        assert heatmap.provenance.method == name
        assert heatmap.provenance.layer == ("every layer" if METHODS[name].layers == "all" else "act")
        assert heatmap.provenance.paper == METHODS[name].paper

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, name: str, dtype: torch.dtype) -> None:
        """Peers: a TypeError, or NaN in a flat map."""
        model, x = PooledNet(attention=attention(name)).eval(), torch.randn(1, 3, 6, 6)
        exact = tp.explain(model, x, method=name, target=1).values
        half = tp.explain(model.to(dtype), x.to(dtype), method=name, target=1).values
        assert half.dtype == torch.float32
        error = (half - exact).abs().max() / exact.abs().max()
        if name in ROUGH:
            assert error < 0.3
        else:
            assert error < (0.02 if dtype == torch.float16 else 0.12)

    @pytest.mark.parametrize("shape", [(1, 3, 9), (1, 3, 5, 4, 3)], ids=["1D", "3D"])
    def test_signals_and_volumes(self, name: str, shape: tuple[int, ...]) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = (nn.Conv1d if len(shape) == 3 else nn.Conv3d)(3, 4, 3, padding=1)
                self.act = nn.ReLU()
                self.mix = Attending(4) if attention(name) else nn.Identity()
                self.head = nn.Linear(4, 3)

            def forward(self, x):
                return self.head(self.mix(self.act(self.conv(x))).flatten(2).mean(2))

        values = tp.explain(Net(), torch.randn(shape), method=name, target=[[0, 2]]).values
        assert values.shape == (1, 2, *shape[2:])
        assert torch.isfinite(values).all()

    @pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")  # blurred, it is the same
    def test_a_flat_picture_is_no_trouble(self, name: str) -> None:
        heatmap = tp.explain(PooledNet(attention=attention(name)), torch.full((1, 3, 6, 6), 0.5), method=name)
        assert torch.isfinite(heatmap.positive().unit().values).all()

    def test_in_place_after_the_layer(self, name: str) -> None:
        model = InPlaceNet(attention=attention(name)).double().eval()
        if METHODS[name].needs == "head":  # something lies between the layer and the head
            with pytest.raises(MethodNotApplicable):
                tp.explain(model, X, method=name, layer="conv", target=1)
            return
        wrong = tp.explain(model, X, method=name, layer="conv", target=1).values
        model.clean = True
        torch.testing.assert_close(wrong, tp.explain(model, X, method=name, layer="conv", target=1).values)

    def test_unknown_option(self, name: str) -> None:
        with pytest.raises(OptionError, match=f"method '{name.replace('+', '.')}' has no option 'nonsense'"):
            tp.explain(PooledNet(attention=attention(name)), X.float(), method=name, nonsense=1)


class TestCompare:
    def test_one_forward_and_one_backward_for_all(self) -> None:
        model = PooledNet().double().eval()
        tp.explain(model, X)  # the layer is suggested once
        forwards, backwards = [], []
        model.register_forward_hook(lambda *_: forwards.append(1))

        class Counted(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                backwards.append(1)
                return grad

        model.head.register_forward_pre_hook(lambda module, args: Counted.apply(*args))
        together = tp.compare(model, X, methods=CHEAP, layer="act", target=1)
        assert len(forwards) == 1
        assert len(backwards) == 1
        for name, heatmap in together.items():
            assert torch.equal(heatmap.values, tp.explain(model, X, method=name, layer="act", target=1).values)

    def test_without_a_gradient_method_no_graph_is_kept(self) -> None:
        model = PooledNet().eval()
        seen = []
        model.head.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
        tp.compare(model, X.float(), methods=["cam", "eigencam", "random"])
        assert seen[-1] is False

    def test_options_by_method(self) -> None:
        maps = tp.compare(PooledNet(), X.float(), methods={"random": {"seed": 3}, "gradcam": {}})
        assert maps["random"].provenance.options == {"seed": 3}

    def test_a_trace_in_place_of_model_and_inputs(self) -> None:
        model = PooledNet().double()
        trace = tp.trace(model, X)
        model.register_forward_hook(lambda *_: pytest.fail("a forward pass"))
        maps = tp.compare(trace, methods=["gradcam", "eigencam"], target=[[0, 1], [1, 2]])
        assert maps["gradcam"].values.shape == (2, 2, 8, 6)
        assert tp.explain(trace, method="layercam", target=4).question.labels.tolist() == [[4], [4]]
        with pytest.raises(InputError, match="give it alone"):
            tp.explain(trace, X)  # type: ignore[call-overload]
        with pytest.raises(GradUnavailable):
            tp.explain(tp.trace(PooledNet(), X.float(), gradients=False), method="gradcam")

    def test_lists_of_different_sizes(self) -> None:
        model = PooledNet().double()
        inputs = [X[:1], X[1:], torch.randn(1, 3, 9, 9).double(), X[:1, :, :5]]
        maps = tp.explain(model, inputs, target=[0, 1, 2, 3])
        assert [heatmap.values.shape[2:] for heatmap in maps] == [(8, 6), (8, 6), (9, 9), (5, 6)]
        for n, (heatmap, each) in enumerate(zip(maps, inputs, strict=True)):
            torch.testing.assert_close(heatmap.values, tp.explain(model, each, target=n).values)
        with pytest.raises(TargetError, match="2 entries for 4 inputs"):
            tp.explain(model, inputs, target=[0, 1])
        with pytest.raises(InputError, match="empty list"):
            tp.explain(model, [])

    def test_a_remembered_layer_that_does_not_fit_another_size(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 4, 3, 4, 1)
                self.head = nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.b(self.a(x)).mean((2, 3)))

        model = Net()
        assert tp.explain(model, torch.randn(1, 3, 64, 64)).provenance.layer == "b"
        assert tp.explain(model, torch.randn(1, 3, 16, 16)).provenance.layer == "a"  # where b has one position

    def test_bad_requests(self) -> None:
        with pytest.raises(MethodNotFound, match="closest: 'gradcam'"):
            tp.explain(PooledNet(), X.float(), method="grad-cam")
        with pytest.raises(MethodNotFound):
            tp.explain(PooledNet(), X.float(), method=["gradcam"])  # type: ignore[arg-type]
        with pytest.raises(InputError, match="methods is None"):
            tp.compare(PooledNet(), X.float(), methods=None)  # type: ignore[call-overload]
        with pytest.raises(InputError, match="methods is empty"):
            tp.compare(PooledNet(), X.float(), methods=[])
        with pytest.raises(TargetError, match="batch of 2"):
            tp.explain(PooledNet(), X.float(), target=[1])  # peers: silent zero maps
        with pytest.raises(InputError, match="does not say how it becomes a tensor"):
            tp.explain(PooledNet(), "cat.jpg")

    def test_zero_everywhere_is_a_notice_and_nan_an_error(self, monkeypatch) -> None:
        model = PooledNet()
        with torch.no_grad():
            model.head.weight[2] = 0
        with pytest.warns(Notice, match="2 of 4 maps are exactly zero"):
            tp.explain(model, X.float(), target=[[1, 2], [1, 2]])
        broken = find_method("gradcam")
        monkeypatch.setitem(
            METHODS,
            "gradcam",
            type(broken)("gradcam", "gradients", "", lambda trace: trace.scores[..., None, None] * torch.nan),
        )
        with pytest.raises(NotFinite, match="gradcam at 'act'"):
            tp.explain(model, X.float())


def test_registering_a_method() -> None:
    """CONTRIBUTING's example, and its refusals."""
    from torchpeek.cam import cam_method

    with pytest.raises(ValueError, match="registered already"):

        @cam_method("gradcam", needs="gradients")
        def again(trace):
            """Once more."""

    with pytest.raises(ValueError, match="docstring"):

        @cam_method("undocumented", needs="gradients")
        def undocumented(trace):
            return trace.gradients.sum(2)

    assert "undocumented" not in METHODS

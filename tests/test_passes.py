"""Methods of many passes and many layers: replicas where they need more than one layer, identities, cases by hand."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, SplitNet
from replicas_passes import adaptive_average, blur, fullgrad, fullgrad_terms, polycam, quantile, refinecam
from torchpeek.cam import fused
from torchpeek.cam.algebra import area_average, first_eigenpair, gaussian_blur, noise
from torchpeek.cam.algebra import quantile as our_quantile
from torchpeek.engine import bias_gradients
from torchpeek.errors import (
    GradUnavailable,
    InputError,
    MethodNotApplicable,
    MethodNotFound,
    NotConnected,
    Notice,
    OptionError,
    TargetError,
)
from torchpeek.progress import progress

X = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class TwoGrids(nn.Module):
    """(N, 4, 8, 6) at `fine`, (N, 5, 4, 3) at `coarse`, for an (N, 3, 8, 6) input; smooth."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Softplus())
        self.coarse = nn.Sequential(nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.Softplus())
        self.head = nn.Linear(5 * 4 * 3, 4)

    def after_coarse(self, a: Tensor) -> Tensor:
        return self.head(torch.tanh(a).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.after_coarse(self.coarse(self.fine(x)))

    def layers(self) -> list[tuple[object, object]]:
        """For the replicas: (input to activation, activation to logits), the finest first."""
        return [
            (self.fine, lambda a: self.after_coarse(self.coarse(a))),
            (lambda x: self.coarse(self.fine(x)), self.after_coarse),
        ]


@pytest.fixture
def grids() -> TwoGrids:
    return TwoGrids().double().eval()


class TestSeveralLayers:
    LABELS = [[2, 0], [1, 3]]  # noqa: RUF012

    @pytest.mark.parametrize(("name", "replica"), [("polycam", polycam), ("refinecam", refinecam)])
    @pytest.mark.parametrize("layers", [None, ["fine", "coarse"], ["coarse", "fine"]], ids=str)
    def test_replica(self, grids: TwoGrids, name: str, replica: object, layers: list[str] | None) -> None:
        heatmap = tp.explain(grids, X, method=name, layer=layers, target=self.LABELS)
        assert heatmap.values.shape == (2, 2, 8, 6)
        for n in range(2):
            for k in range(2):
                expected = replica(grids, X[n : n + 1], self.LABELS[n][k], grids.layers())
                largest = np.abs(expected).max()
                np.testing.assert_allclose(heatmap.values[n, k].numpy(), expected, rtol=1e-8, atol=1e-10 * largest)
        assert {name.split(".")[0] for name in heatmap.provenance.layer.split(", ")} == {"fine", "coarse"}
        assert ("sizes of grid" in heatmap.provenance.layer_reason) == (layers is None)

    def test_refinecam_of_another_method(self, grids: TwoGrids) -> None:
        heatmap = tp.explain(grids, X, method="refinecam", layer=["fine", "coarse"], target=1, base="layercam")
        parts = [tp.explain(grids, X, method="layercam", layer=each, target=1) for each in ("fine", "coarse")]
        expected = torch.stack([each.positive().unit().resized((8, 6)).values for each in parts]).prod(0)
        torch.testing.assert_close(heatmap.values, expected)
        with pytest.raises(MethodNotFound):
            tp.explain(grids, X, method="refinecam", base="layer-cam")
        with pytest.raises(OptionError, match="a method of one layer"):
            tp.explain(grids, X, method="refinecam", base="polycam")

    def test_refinecam_is_zero_where_a_layer_is(self, grids: TwoGrids) -> None:
        heatmap = tp.explain(grids, X, method="refinecam", target=1)
        single = tp.explain(grids, X, method="gradcam++", layer="fine", target=1)
        assert ((heatmap.values == 0) | (single.values > 0)).all()

    @pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")
    @pytest.mark.parametrize("how", ["max", "mean", "product"])
    def test_fusion(self, grids: TwoGrids, how: str) -> None:
        maps = [tp.explain(grids, X, layer=each, target=self.LABELS) for each in ("fine", "coarse")]
        each = torch.stack([one.positive().unit().resized((8, 6)).values for one in maps])
        expected = {"max": each.amax(0), "mean": each.mean(0), "product": each.prod(0)}[how]
        heatmap = tp.explain(grids, X, layer=["fine", "coarse"], target=self.LABELS, fuse=how)
        torch.testing.assert_close(heatmap.values, expected)
        assert how in heatmap.provenance.steps[0]
        by_pattern = tp.explain(grids, X, layer="[fc]*e", target=self.LABELS, fuse=how)  # fine and coarse
        torch.testing.assert_close(by_pattern.values, expected)
        by_suggestion = tp.explain(grids, X, target=self.LABELS, fuse=how)
        torch.testing.assert_close(by_suggestion.values, expected)

    def test_a_list_is_fused_by_its_maximum(self, grids: TwoGrids) -> None:
        heatmap = tp.explain(grids, X, layer=["fine", "coarse"], target=1)
        expected = tp.explain(grids, X, layer=["fine", "coarse"], target=1, fuse="max")
        assert torch.equal(heatmap.values, expected.values)
        kept = tp.trace(grids, X, layer=["fine", "coarse"], target=1)
        assert torch.equal(tp.explain(kept).values, expected.values)

    def test_of_one_layer_there_is_nothing_to_fuse(self, grids: TwoGrids) -> None:
        with pytest.raises(InputError, match="makes one map of several layers; got one, 'fine'"):
            tp.explain(grids, X, layer="fine", fuse="mean")
        with pytest.raises(OptionError, match="fuse is 'sum'; allowed: 'max', 'mean', 'product'"):
            tp.explain(grids, X, fuse="sum")

    def test_methods_that_combine_layers_are_not_fused_again(self, grids: TwoGrids) -> None:
        with pytest.raises(InputError, match="polycam looks at several by itself"):
            tp.explain(grids, X, method="polycam", fuse="max")
        by_pattern = tp.explain(grids, X, method="refinecam", layer="[fc]*e", target=1)
        assert by_pattern.provenance.layer == "fine, coarse"

    @pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")
    def test_of_two_layers_with_one_grid_the_later_is_the_base(self) -> None:
        class Same(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.head = (
                    nn.Conv2d(3, 4, 3, padding=1),
                    nn.Conv2d(4, 4, 3, padding=1),
                    nn.Linear(4, 3),
                )

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.b(torch.relu(self.a(x))).mean((2, 3)))

        model = Same().double().eval()
        both = tp.explain(model, X, method="polycam", layer=["a", "b"], target=1).values
        last = tp.explain(model, X, method="polycam", layer="b", target=1).values
        first = tp.explain(model, X, method="polycam", layer="a", target=1).values
        # On one grid a map over its own average is one where it is not zero: what is left is the base.
        torch.testing.assert_close(both, torch.where(first > 0, last, 0))

    def test_the_seed_of_the_base(self, grids: TwoGrids) -> None:
        one, same, other = (
            tp.explain(grids, X, method="refinecam", layer=["fine"], target=1, base="sscam", seed=s) for s in (1, 1, 2)
        )
        assert torch.equal(one.values, same.values)
        assert not torch.equal(one.values, other.values)
        assert one.provenance.options == {"base": "sscam", "seed": 1}

    def test_by_hand(self) -> None:
        one, two = torch.tensor([[[[0.0, 2.0], [4.0, -8.0]]]]), torch.tensor([[[[3.0, 6.0], [0.0, 6.0]]]])
        assert fused([one, two], "product").tolist() == [[[[0.0, 0.5], [0.0, 0.0]]]]
        assert fused([one, two], "max").tolist() == [[[[0.5, 1.0], [1.0, 1.0]]]]
        assert fused([one, two], "mean").tolist() == [[[[0.25, 0.75], [0.5, 0.5]]]]

    @pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")
    def test_compare_of_both_kinds(self, grids: TwoGrids) -> None:
        maps = tp.compare(grids, X, methods=["polycam", "gradcam", "refinecam"], target=1)
        assert list(maps) == ["polycam", "gradcam", "refinecam"]
        assert maps["gradcam"].provenance.layer == "coarse"
        assert torch.equal(maps["polycam"].values, tp.explain(grids, X, method="polycam", target=1).values)


class TestSmoothing:
    def test_is_the_mean_over_the_versions(self, grids: TwoGrids) -> None:
        how = tp.Smoothing(factors=(0.5, 1.0))
        heatmap = tp.explain(grids, X, layer="coarse", target=1, smooth=how)
        parts = [
            tp.explain(grids, version * factor, layer="coarse", target=1).values.flip(axes)
            for factor in (0.5, 1.0)
            for version, axes in ((X, []), (X.flip(-1), [-1]))
        ]
        torch.testing.assert_close(heatmap.values, torch.stack(parts).mean(0))
        assert heatmap.provenance.steps == ("the mean over mirrored and not, inputs times 0.5, 1",)
        torch.testing.assert_close(heatmap.scores, tp.explain(grids, X, layer="coarse", target=1).scores)

    def test_the_question_is_the_clean_pictures(self, grids: TwoGrids) -> None:
        """Also where the prediction of a version is another."""
        clean = tp.explain(grids, X, layer="coarse")
        smooth = tp.explain(grids, X, layer="coarse", smooth=tp.Smoothing(factors=(-5.0 * -1, 0.01)))
        assert torch.equal(smooth.question.labels, clean.question.labels)

    def test_of_a_mirrored_picture_it_is_the_mirrored_map(self, grids: TwoGrids) -> None:
        one, other = (
            tp.explain(grids, x, layer="coarse", target=1, smooth=tp.Smoothing()).values for x in (X, X.flip(-1))
        )
        torch.testing.assert_close(one, other.flip(-1))

    @pytest.mark.parametrize("method", ["scorecam", "ablationcam", "cam"])
    def test_with_other_methods(self, method: str) -> None:
        model = PooledNet().double().eval()
        heatmap = tp.explain(model, X, method=method, layer="act", target=2, smooth=tp.Smoothing(flip=False))
        parts = [
            tp.explain(model, X * factor, method=method, layer="act", target=2).values for factor in (0.9, 1.0, 1.1)
        ]
        torch.testing.assert_close(heatmap.values, torch.stack(parts).mean(0))

    def test_bad_requests(self, grids: TwoGrids) -> None:
        with pytest.raises(OptionError, match=r"smooth is True; allowed: tp\.Smoothing"):
            tp.explain(grids, X, smooth=True)  # type: ignore[call-overload]
        for factors in ((), "1", (0.0,), 1.0):
            with pytest.raises(OptionError, match="factors"):
                tp.Smoothing(factors=factors)  # type: ignore[arg-type]


class TestContrast:
    LOGITS = torch.tensor([[1.0, 5.0, 4.0, -2.0, 4.5], [0.0, 0.1, 3.0, 2.5, -9.0]])

    def test_by_hand(self) -> None:
        question = tp.targets.Contrast(against=2, strength=0.5).bind(self.LOGITS)
        assert question.labels.tolist() == [[1], [2]]
        assert question.others.tolist() == [[[4, 2]], [[3, 1]]]
        scores = question(self.LOGITS, torch.arange(2))
        torch.testing.assert_close(scores, torch.tensor([[5.0 - 0.5 * 4.25], [3.0 - 0.5 * 1.3]]))
        assert question(self.LOGITS[1:], torch.tensor([1])).tolist() == [scores[1].tolist()]

    def test_against_classes_by_index_and_name(self, net: SplitNet) -> None:
        loaded = tp.LoadedModel(net, tp.Preprocess(None, None), ["ant", "bee", "cat", "dog"])
        by_name = tp.explain(loaded, X, layer="prefix", target=tp.targets.Contrast("cat", ["ant", "dog"], 1.0))
        by_index = tp.explain(loaded, X, layer="prefix", target=tp.targets.Contrast(2, [0, 3], 1.0))
        assert torch.equal(by_name.values, by_index.values)
        assert by_name.provenance.score == "logit less 1 times the mean logit of 2 other classes"

    def test_gradcam_is_linear_in_it(self, net: SplitNet) -> None:
        """Grad-CAM of a difference is the difference of the Grad-CAMs, before the ReLU."""
        contrast = tp.explain(net, X, layer="prefix", target=tp.targets.Contrast(2, [0, 3], 0.6)).values
        own, one, other = (tp.explain(net, X, layer="prefix", target=each).values for each in (2, 0, 3))
        torch.testing.assert_close(contrast, own - 0.6 * (one + other) / 2)

    def test_without_strength_it_is_the_plain_class(self, net: SplitNet) -> None:
        for method in ("gradcam++", "scorecam", "ablationcam"):
            contrast = tp.explain(net, X, method=method, layer="prefix", target=tp.targets.Contrast(2, strength=0.0))
            plain = tp.explain(net, X, method=method, layer="prefix", target=2)
            torch.testing.assert_close(contrast.values, plain.values)

    def test_cam_is_exact_for_it_too(self) -> None:
        model = PooledNet().double().eval()
        heatmap = tp.explain(model, X, method="cam", layer="act", target=tp.targets.Contrast(2, [0, 3], 0.5))
        bias = model.head.bias.detach()
        mean = heatmap.values.mean((2, 3)) + bias[2] - 0.5 * (bias[0] + bias[3]) / 2
        torch.testing.assert_close(mean, heatmap.scores)

    def test_of_inputs_of_different_sizes(self) -> None:
        model = PooledNet().double().eval()
        for target in (tp.targets.Contrast, tp.targets.ClassProbability, tp.targets.ClassLogOdds):
            asked = target(torch.tensor([1, 2]))
            one, two = tp.explain(model, [X[:1], X[1:, :, :5]], layer="act", target=asked)
            torch.testing.assert_close(one.values, tp.explain(model, X[:1], layer="act", target=target(1)).values)
            torch.testing.assert_close(
                two.values, tp.explain(model, X[1:, :, :5], layer="act", target=target(2)).values
            )

    def test_several_classes_and_indexing(self, net: SplitNet) -> None:
        heatmap = tp.explain(net, X, layer="prefix", target=tp.targets.Contrast(tp.targets.TopClasses(2), 1))
        assert heatmap.question.others.shape == (2, 2, 1)
        assert heatmap[1, 0].question.others.tolist() == [[heatmap.question.others[1, 0].tolist()]]

    def test_saved_and_loaded(self, net: SplitNet, tmp_path) -> None:
        heatmap = tp.explain(net, X, layer="prefix", target=tp.targets.Contrast(2, [0, 3], 0.25))
        tp.save(heatmap, tmp_path / "contrast.safetensors")
        again = tp.load(tmp_path / "contrast.safetensors")
        assert torch.equal(again.values, heatmap.values)
        assert torch.equal(again.question.others, heatmap.question.others)
        assert again.question.strength == 0.25
        assert again.question.kind == heatmap.question.kind

    def test_bad_requests(self, net: SplitNet) -> None:
        for given in ({"against": 0}, {"against": []}, {"against": True}, {"against": "cat"}, {"strength": -1}):
            with pytest.raises(TargetError):
                tp.targets.Contrast(**given)
        with pytest.raises(TargetError, match="the model has 4 classes; there are 3 others"):
            tp.explain(net, X, layer="prefix", target=tp.targets.Contrast(against=4))
        with pytest.raises(TargetError, match="a class is not set against itself"):
            tp.explain(net, X, layer="prefix", target=tp.targets.Contrast(2, [2, 3]))
        with pytest.raises(TargetError, match="names classes"):
            tp.explain(net, X, layer="prefix", target=tp.targets.Contrast(tp.targets.ClassProbability()))


class TestFullGrad:
    @pytest.fixture
    def parts(self) -> list[nn.Module]:
        """Modules only, of every kind: with a bias, with an implicit one, without, curved, in place."""
        parts = [
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.GroupNorm(2, 4),
            nn.SiLU(inplace=True),
            nn.Conv2d(4, 5, 1, bias=False),
            nn.Hardtanh(-0.2, 0.4),
            nn.AvgPool2d((2, 1)),
            nn.Flatten(),
            nn.Linear(5 * 2 * 3, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 4),
        ]
        model = nn.Sequential(*parts).double()
        model.train()(torch.randn(16, 3, 8, 6, dtype=torch.float64))  # so that the statistics are some
        with torch.no_grad():
            for each in model.parameters():
                each.add_(0.1 * torch.randn_like(each))
        return list(model.eval())

    def test_replica_and_completeness(self, parts: list[nn.Module]) -> None:
        model, labels = nn.Sequential(*parts), [[2, 0, 3], [1, 3, 0]]
        heatmap = tp.explain(model, X, method="fullgrad", target=labels)  # no notice
        assert heatmap.values.shape == (2, 3, 8, 6)
        trace = tp.trace(model, X, target=tp.targets.ClassesPerSample(torch.tensor(labels)), gradients=False)
        [found] = bias_gradients(trace, lambda each: each)
        assert float(found.remainder.abs().max()) < 1e-10
        for n in range(2):
            for k in range(3):
                expected = fullgrad(parts, X[n : n + 1], labels[n][k])
                np.testing.assert_allclose(heatmap.values[n, k].numpy(), expected, rtol=1e-7, atol=1e-9)
                first, terms = fullgrad_terms(parts, X[n : n + 1], labels[n][k])
                assert float(found.inputs[n, k].sum()) == pytest.approx(first.sum(), abs=1e-10)
                ours = sorted(float(each[n, k].sum()) for each in found.biases)
                theirs = sorted(each.sum() for each in terms if np.abs(each).max() > 0)
                np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-10)

    def test_shared_modules_count_once_for_each_call(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.act, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Linear(3, 4)
                self.pool, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
                self.last = nn.Identity()

            def forward(self, x: Tensor) -> Tensor:
                twice = self.act(self.conv(self.act(self.conv(x)))) + x
                return self.head(self.flat(self.pool(self.last(twice))))

        trace = tp.trace(Twice().double(), X, layer="last", target=1, gradients=False)
        [found] = bias_gradients(trace, lambda each: each)
        assert len(found.biases) == 3  # the convolution's, twice, and the head's
        assert float(found.remainder.abs().max()) < 1e-12

    @pytest.mark.parametrize("kind", ["subclass", "with parts", "keywords", "view", "hardsigmoid", "weight norm"])
    def test_complete_also_for(self, kind: str) -> None:
        """What a type alone does not say: a forward of its own, an activation inside, what it was called with."""

        class ConvReLU(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                return F.relu(super().forward(x) + 0.3)

        class NormAct(nn.BatchNorm2d):
            def __init__(self, channels: int) -> None:
                super().__init__(channels)
                self.act = nn.SiLU(inplace=True)

            def forward(self, x: Tensor) -> Tensor:
                return self.act(super().forward(x))

        class Scaled(nn.Module):
            def forward(self, x: Tensor, *, by: float = 1.0) -> Tensor:
                return torch.sigmoid(x * by)

        class Calls(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scaled = Scaled()

            def forward(self, x: Tensor) -> Tensor:
                return self.scaled(x=x, by=3.0)

        first: list[nn.Module] = {
            "subclass": [ConvReLU(3, 4, 3, padding=1)],
            "with parts": [nn.Conv2d(3, 4, 3, padding=1), NormAct(4)],
            "keywords": [nn.Conv2d(3, 4, 3, padding=1), Calls()],
            "view": [nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True), nn.ReLU(inplace=True)],
            "hardsigmoid": [nn.Conv2d(3, 4, 3, padding=1), nn.Hardsigmoid()],
            "weight norm": [nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1)), nn.ReLU()],
        }[kind]
        model = nn.Sequential(*first, nn.Flatten(), nn.Linear(4 * 48, 4)).double().eval()
        trace = tp.trace(model, X, layer="0", target=tp.targets.Classes([0, 1]), gradients=False)
        [found] = bias_gradients(trace, lambda each: each)
        assert float(found.remainder.abs().max()) < 1e-10

    def test_a_model_that_overwrites_what_the_way_back_needs(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.act(self.conv(x)).mul_(2).mean((2, 3)))

        with pytest.raises(GradUnavailable, match="cannot be trained either"):
            tp.explain(Net(), X.float(), method="fullgrad")

    @pytest.mark.parametrize("axes", [1, 2])
    def test_channels_last_is_the_same_as_first(self, axes: int) -> None:
        """A linear layer over the last axis is a 1 x 1 convolution: in contributions, and so in the map."""

        class Last(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = (nn.Conv1d, nn.Conv2d)[axes - 1](3, 4, 3, padding=1)
                self.linear, self.act, self.head = nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)
                self.pointwise = (nn.Conv1d, nn.Conv2d)[axes - 1](4, 6, 1)
                self.pool, self.flat = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[axes - 1](1), nn.Flatten()
                self.last = True

            def forward(self, x: Tensor) -> Tensor:
                a = self.conv(x)
                if self.last:
                    return self.head(self.flat(self.pool(self.act(self.linear(a.movedim(1, -1))).movedim(-1, 1))))
                return self.head(self.flat(self.pool(self.act(self.pointwise(a)))))

        model = Last().double().eval()
        with torch.no_grad():
            model.pointwise.weight.copy_(model.linear.weight.view_as(model.pointwise.weight))
            model.pointwise.bias.copy_(model.linear.bias)
        x = X if axes == 2 else X[:, :, 0]
        last = tp.explain(model, x, method="fullgrad", target=[[0, 1], [2, 0]]).values
        model.last = False
        torch.testing.assert_close(last, tp.explain(model, x, method="fullgrad", target=[[0, 1], [2, 0]]).values)

    def test_smoothed(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 48, 3)).double()
        smooth = tp.explain(model, X, method="fullgrad", target=1, smooth=tp.Smoothing(factors=(1.0,))).values
        parts = [tp.explain(model, x, method="fullgrad", target=1).values for x in (X, X.flip(-1))]
        torch.testing.assert_close(smooth, (parts[0] + parts[1].flip(-1)) / 2)

    def test_of_a_model_that_cuts_its_graph(self) -> None:
        class Cut(PooledNet):
            def forward(self, x: Tensor) -> Tensor:
                with torch.no_grad():
                    return super().forward(x)

        with pytest.raises(NotConnected, match="no gradient flows back"):
            tp.explain(Cut(), X.float(), method="fullgrad")

    def test_of_what_has_no_grid(self) -> None:
        with pytest.raises(MethodNotApplicable, match="fullgrad needs floating-point inputs"):
            tp.explain(nn.Linear(4, 3), torch.randn(2, 4), method="fullgrad")

    def test_it_needs_no_layer_with_a_grid(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48, 5), nn.ReLU(), nn.Linear(5, 4)).double()
        heatmap = tp.explain(model, X, method="fullgrad", target=1)
        steps = list(model)
        np.testing.assert_allclose(heatmap.values[0, 0].numpy(), fullgrad(steps, X[:1], 1), rtol=1e-9)
        assert heatmap.provenance.layer == "every layer"
        assert heatmap.provenance.dtype == "float64"

    def test_the_order_of_definition_does_not_matter(self) -> None:
        """grad-cam pairs biases as defined with gradients as executed: there the map changes."""

        class Net(nn.Module):
            def __init__(self, *, reverse: bool) -> None:
                super().__init__()
                parts = {"one": nn.Conv2d(3, 4, 3, padding=1), "two": nn.Conv2d(4, 4, 3, padding=1), "act": nn.ReLU()}
                for name in reversed(parts) if reverse else parts:
                    self.add_module(name, parts[name])
                self.head = nn.Linear(4, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.act(self.two(self.act(self.one(x)))).mean((2, 3)))

        one, other = Net(reverse=False).double(), Net(reverse=True).double()
        other.load_state_dict(one.state_dict())
        first, second = (tp.explain(net, X, method="fullgrad", layer="two", target=1) for net in (one, other))
        torch.testing.assert_close(first.values, second.values)

    def test_what_is_out_of_sight_is_said(self, net: SplitNet) -> None:
        with torch.no_grad():
            net.mix.bias.fill_(2.0)  # so that the tanh in its forward, which is no module, matters
            net.head.bias.zero_()
        with pytest.warns(Notice, match="do not add up to the score of SplitNet"):
            tp.explain(net, X, method="fullgrad", layer="prefix", target=1)


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
            ("sscam", {"samples": 0}, "option samples is 0; allowed: a whole number, 1 or more"),
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


class TestAlgebra:
    @pytest.mark.parametrize(("kernel", "sigma"), [(3, 1.0), (5, 2.0), (51, 50.0)])
    def test_gaussian_blur(self, kernel: int, sigma: float) -> None:
        got = gaussian_blur(X[:1], kernel, sigma)[0].numpy()
        np.testing.assert_allclose(got, np.stack([blur(m, kernel, sigma) for m in X[0].numpy()]), rtol=1e-9)
        flat = torch.full((1, 2, 5, 4), 3.0)
        torch.testing.assert_close(gaussian_blur(flat, kernel, sigma), flat)

    def test_quantile(self) -> None:
        values = torch.randn(3, 2, 17, dtype=torch.float64)
        for share in (0.0, 0.3, 0.7, 1.0):
            torch.testing.assert_close(our_quantile(values, share), values.quantile(share, dim=2, keepdim=True))
            assert float(our_quantile(values, share)[0, 0]) == pytest.approx(quantile(values[0, 0].numpy(), share))

    def test_area_average(self) -> None:
        maps = torch.randn(1, 1, 7, 5, dtype=torch.float64)
        np.testing.assert_allclose(
            area_average(maps, (3, 2))[0, 0].numpy(), adaptive_average(maps[0, 0].numpy(), (3, 2))
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("gap", [1.5, 1.0001, 1.0])
    def test_the_first_eigenpair_of_a_large_matrix(self, dtype: torch.dtype, gap: float) -> None:
        """Also where the first two are so close together, or the same, that an iteration does not get there."""
        size = 700
        turned = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
        values = torch.linspace(0.01, 1, size, dtype=torch.float64)
        values[-1] = gap
        matrix = ((turned * values) @ turned.mT).to(dtype)
        value, vector = first_eigenpair(torch.stack([matrix, 2 * matrix]))
        tolerance = 1e-5 if dtype == torch.float32 else 1e-11
        torch.testing.assert_close(
            value.double(), torch.tensor([[gap], [2 * gap]], dtype=torch.float64), rtol=tolerance, atol=0
        )
        off = (torch.stack([matrix, 2 * matrix]) @ vector.unsqueeze(-1)).squeeze(-1) - value * vector
        assert float(off.norm(dim=-1).max()) < 100 * tolerance
        torch.testing.assert_close(vector.norm(dim=-1), torch.ones(2, dtype=dtype))

    def test_noise_in_any_order(self) -> None:
        draw, again = noise(3, 5, (2, 3), X), noise(3, 5, (2, 3), X)
        assert [draw(i).tolist() for i in (4, 0, 2)] == [again(i).tolist() for i in (4, 0, 2)]
        assert draw(0).dtype == torch.float64
        many = torch.stack([noise(0, 2000, (5,), X)(i) for i in range(2000)])
        assert abs(float(many.mean())) < 0.05
        assert abs(float(many.std()) - 1) < 0.05


class Terminal:
    """Stands for a terminal that can be read."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


class TestProgress:
    @pytest.fixture
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> Terminal:
        from torchpeek.progress import console

        monkeypatch.setenv("TERM", "xterm")
        console.cache_clear()
        yield Terminal()
        console.cache_clear()

    def test_shows_what_takes_long(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(sys, "stderr", terminal)  # here, not in the fixture: pytest sets its own after these
        with progress("changed inputs", 100) as advance:
            for _ in range(30):
                now[0] += 0.1
                advance(1)
        assert "changed inputs" in terminal.text
        assert "/100" in terminal.text

    def test_says_nothing_of_what_does_not(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(sys, "stderr", terminal)  # here, not in the fixture: pytest sets its own after these
        with progress("changed inputs", 10) as advance:
            for _ in range(10):
                now[0] += 0.15
                advance(1)
        assert terminal.text == ""

    def test_nor_where_nobody_watches(self, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        with progress("changed inputs", 10) as advance:
            for _ in range(10):
                now[0] += 5
                advance(1)
        assert capsys.readouterr() == ("", "")

    def test_stops_with_an_exception(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(sys, "stderr", terminal)  # here, not in the fixture: pytest sets its own after these
        with pytest.raises(KeyboardInterrupt), progress("changed inputs", 100) as advance:
            for _ in range(10):
                now[0] += 1
                advance(1)
            raise KeyboardInterrupt
        with progress("again", 100) as advance:  # a bar that had stayed would not let this one be
            for _ in range(10):
                now[0] += 1
                advance(1)
        assert "again" in terminal.text

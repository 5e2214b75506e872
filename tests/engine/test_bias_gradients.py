"""FullGrad: bias gradients against the replica, and that all terms add up to the score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, SplitNet
from networks.split import X
from replicas.further_passes import fullgrad, fullgrad_terms
from torchpeek.engine import bias_gradients
from torchpeek.errors import GradUnavailable, MethodNotApplicable, NotConnected, Notice


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
        [found] = bias_gradients(trace.forward_pass, lambda each: each)
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
        [found] = bias_gradients(trace.forward_pass, lambda each: each)
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
        [found] = bias_gradients(trace.forward_pass, lambda each: each)
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

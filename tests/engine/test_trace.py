"""Trace: activations, gradients and further passes against a network that is run by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, SplitNet
from networks.split import X, by_hand
from torchpeek.engine import inspectable_module
from torchpeek.engine.targets import Classes, Predicted, TopClasses
from torchpeek.errors import AmbiguousCall, GradUnavailable, InputError, LayerNotFound
from tracing import traced


class TestTrace:
    def test_activations_and_gradients_are_those_of_the_split_network(self, net: SplitNet) -> None:
        trace = traced(net, X, ["prefix"], Classes([2, 0, 3]))
        activations, gradients = by_hand(net, [[2, 0, 3]] * 2)
        assert trace.activations.shape == (2, 1, 5, 4, 3)
        torch.testing.assert_close(trace.activations.squeeze(1), activations, rtol=0, atol=0)
        torch.testing.assert_close(trace.gradients, gradients, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(trace.scores, net(X)[:, [2, 0, 3]].detach(), rtol=1e-13, atol=0)

    def test_gradients_are_finite_differences(self, net: SplitNet) -> None:
        """No autograd on the other side."""
        trace = traced(net, X, ["prefix"], Predicted())
        a, step = trace.activations.squeeze(1), 1e-6
        with torch.no_grad():
            for position in [(0, 0, 0), (1, 2, 1), (4, 3, 2)]:
                shift = torch.zeros_like(a)
                shift[(slice(None), *position)] = step
                difference = (net.suffix(a + shift) - net.suffix(a - shift)) / (2 * step)
                expected = difference.gather(1, trace.question.labels)
                torch.testing.assert_close(trace.gradients[(..., *position)], expected, rtol=1e-7, atol=1e-9)

    def test_each_sample_has_its_own_classes(self, net: SplitNet) -> None:
        from torchpeek.engine.targets import ClassesPerSample

        trace = traced(net, X, ["prefix"], ClassesPerSample(torch.tensor([[0, 1], [3, 2]])))
        torch.testing.assert_close(trace.gradients, by_hand(net, [[0, 1], [3, 2]])[1], rtol=1e-12, atol=1e-15)

    def test_several_layers_in_one_pass(self, net: SplitNet) -> None:
        """The first becomes the leaf; the second keeps the edge of the graph from there."""
        trace = traced(net, X, ["mix", "prefix"], Classes([1]))
        assert list(trace.at) == ["mix", "prefix"]
        for layer in ("mix", "prefix"):
            alone = traced(net, X, [layer], Classes([1]))
            torch.testing.assert_close(trace.gradients_at[layer], alone.gradients, rtol=1e-12, atol=0)
            torch.testing.assert_close(trace.only(layer).activations, alone.activations, rtol=0, atol=0)
        with pytest.raises(AmbiguousCall, match="holds 2 layers"):
            _ = trace.activations

    def test_layers_on_parallel_branches(self) -> None:
        class Branches(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

            def forward(self, x):
                return (self.a(x) * self.b(x)).mean((2, 3))

        for frozen in (False, True):
            model = Branches().requires_grad_(not frozen).eval()
            x = torch.randn(1, 3, 6, 6)
            trace = traced(model, x, ["a", "b"], Classes([0]))
            a, b = model.a(x).detach(), model.b(x).detach()
            expected = torch.zeros_like(b)
            expected[:, 0] = b[:, 0] / 16
            torch.testing.assert_close(trace.gradients_at["a"].squeeze(1), expected)
            expected[:, 0] = a[:, 0] / 16
            torch.testing.assert_close(trace.gradients_at["b"].squeeze(1), expected)

    def test_another_class_takes_no_forward_pass(self, net: SplitNet) -> None:
        passes = []
        net.register_forward_hook(lambda *_: passes.append(1))
        trace = traced(net, X, ["prefix"], Predicted())
        passes.clear()
        _ = trace.gradients
        again = trace.with_target(Classes([3]))
        torch.testing.assert_close(again.gradients, by_hand(net, [[3]] * 2)[1], rtol=1e-12, atol=1e-15)
        _ = trace.with_target(TopClasses(2)).gradients  # and once more: the graph is still there
        assert passes == []

    def test_a_batched_backward_in_chunks_is_the_same(self, net: SplitNet, monkeypatch) -> None:
        from torchpeek.engine import gradients

        whole = traced(net, X, ["prefix"], TopClasses(4)).gradients
        monkeypatch.setattr(gradients, "_BYTES", 3 * 2 * 5 * 4 * 3 * 8)  # three classes at once, then one
        torch.testing.assert_close(traced(net, X, ["prefix"], TopClasses(4)).gradients, whole, rtol=0, atol=0)

    def test_where_an_operation_has_no_batched_backward_it_goes_one_by_one(self) -> None:
        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x

            @staticmethod
            def backward(ctx, grad):
                (x,) = ctx.saved_tensors
                return grad * torch.from_numpy(2 * x.numpy()).to(x) * (1 if float(grad.sum()) < 1e9 else 0)

        class Net(PooledNet):
            def forward(self, x):
                return self.head(Square.apply(self.features(x)).mean((2, 3)))

        model = Net().eval()
        x = torch.randn(2, 3, 5, 5)
        trace = traced(model, x, ["features"], TopClasses(3))
        weights = model.head.weight[trace.question.labels]  # (N, K, C)
        a = trace.activations
        torch.testing.assert_close(trace.gradients, 2 * a * weights[..., None, None].detach() / 25)

    def test_gradients_not_kept(self, net: SplitNet) -> None:
        trace = traced(net, X, ["prefix"], Predicted(), gradients=False)
        assert not trace.output.requires_grad
        with pytest.raises(GradUnavailable, match="gradients=False"):
            _ = trace.gradients

    def test_again_asks_the_same_question_of_other_inputs(self, net: SplitNet) -> None:
        trace = traced(net, X, ["prefix"], Predicted())
        rows = torch.tensor([1, 0, 1])
        other = torch.randn(3, 3, 8, 6, dtype=torch.float64)
        again = trace.again(other, rows=rows)
        labels = trace.question.labels[rows]
        assert torch.equal(again.question.labels, labels)  # not what is predicted for the other inputs
        torch.testing.assert_close(again.scores, net(other).detach().gather(1, labels))
        assert again.gradients.shape == (3, 1, 5, 4, 3)

    def test_rescore_and_ablate_are_as_one_pass_each(self, net: SplitNet) -> None:
        trace = traced(net, X, ["prefix"], TopClasses(2))
        labels = trace.question.labels
        masks = torch.rand(5, 1, 8, 6, dtype=torch.float64)
        got = trace.rescore(lambda x, rows, trials: x * masks[trials], 5, batch=3)
        dropped = trace.ablate(
            lambda a, rows, trials: a * (torch.arange(5)[None] != trials[:, None])[..., None, None], 5, batch=4
        )
        assert got.shape == dropped.shape == (2, 5, 2)
        with torch.no_grad():
            for n in range(2):
                for t in range(5):
                    score = net(X[n : n + 1] * masks[t])[0, labels[n]]
                    torch.testing.assert_close(got[n, t], score)
                    a = net.prefix(X[n : n + 1]).clone()
                    a[:, t] = 0
                    torch.testing.assert_close(dropped[n, t], net.suffix(a)[0, labels[n]])

    def test_the_question_stays_while_the_prediction_moves(self) -> None:
        """Masking changes what is predicted; the score has to stay that of the class first asked for."""
        model = PooledNet().eval()
        x = torch.randn(1, 3, 6, 6)
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.weight[0] = 100
            model.head.bias.copy_(torch.tensor([-5.0, 1, 0, 0, 0]))  # without activation, class 1
            model.features[0].bias.zero_()
            model.features[2].bias.zero_()
        trace = traced(model, x, ["act"], Predicted())
        blank = trace.rescore(lambda given, rows, trials: given * 0, 1)
        assert trace.question.labels.tolist() == [[0]]
        assert model(x * 0).argmax() == 1
        assert blank.tolist() == [[[-5.0]]]


def test_requests_that_cannot_be(net: SplitNet) -> None:
    trace = traced(net, X, ["prefix"], Predicted())
    with pytest.raises(LayerNotFound, match="it holds 'prefix'"):
        trace.only("mix")
    with pytest.raises(InputError, match="rows= says"):
        trace.again(X[:1])
    with pytest.raises(InputError, match="0 to 1"):
        trace.again(X, rows=torch.tensor([0, 2]))
    for trials, batch in [(0, 8), (1, 0)]:
        with pytest.raises(InputError, match="at least 1"):
            trace.rescore(lambda x, rows, trials: x, trials, batch=batch)
    assert "SplitNet at 'prefix'" in repr(trace)
    assert len(repr(trace)) < 200
    with torch.device("meta"):
        nowhere = PooledNet()
    with pytest.raises(InputError, match="meta device"):
        inspectable_module(nowhere)


class Tokens(nn.Module):
    """A convolution whose output goes on as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("position", [None, (1, 2)])
def test_again_with_another_size_reads_the_inner_layer_on_its_new_grid(position: tuple[int, int] | None) -> None:
    model, target = Tokens().double().eval(), tp.targets.Neuron("norm", 1, position)
    small, large = torch.rand(1, 3, 12, 12).double(), torch.rand(1, 3, 16, 20).double()
    again = tp.trace(model, small, layer="conv", target=target).again(large)
    fresh = tp.trace(model, large, layer="conv", target=target)
    torch.testing.assert_close(again.scores, fresh.scores)
    torch.testing.assert_close(again.gradients, fresh.gradients)


class LayerMean:
    """A target of the user's own that reads an inner layer; its question does not repeat which."""

    layers = ("2",)

    def bind(self, output: Any) -> LayerMeanScores:
        return LayerMeanScores(torch.zeros(len(output.layers["2"]), 1, dtype=torch.long))


class LayerMeanScores:
    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        return output.layers["2"].flatten(1).mean(1, keepdim=True)

    def select(self, rows: Any, columns: slice) -> LayerMeanScores:
        return LayerMeanScores(self.labels[rows][:, columns])


def test_a_bound_target_keeps_the_inner_layers_that_it_reads() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 3)).double().eval()
    x = torch.rand(2, 3, 12, 12).double()
    trace = tp.trace(model, x, layer="0", target=LayerMean())
    again = tp.explain(model, x * 0.5, layer="0", target=trace.bound())
    fresh = tp.explain(model, x * 0.5, layer="0", target=LayerMean())
    torch.testing.assert_close(again.values, fresh.values)
    torch.testing.assert_close(again.scores, trace.again(x * 0.5).scores)


def test_again_with_no_layers_captures_none() -> None:
    trace = tp.trace(Tokens().eval(), torch.rand(1, 3, 12, 12), layer="conv")
    assert list(trace.again(trace.inputs, layers=[]).at) == []
    assert list(trace.again(trace.inputs).at) == ["conv"]

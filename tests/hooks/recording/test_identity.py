"""A layer that is recorded with gradients gets and returns the same objects as without: what is one stays one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp


class Identities(nn.Module):
    """Notes which of its inputs are the same object, and computes with all of them."""

    def forward(self, *args, **kwargs):
        tensors = list(self.tensors((args, kwargs)))
        self.same = [[a is b for b in tensors] for a in tensors]
        return sum(k * tensor for k, tensor in enumerate(tensors, 1))

    def tensors(self, value):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple, dict)):
            for member in value.values() if isinstance(value, dict) else value:
                yield from self.tensors(member)


class Net(nn.Module):
    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        self.result = self.call(self.layer, x)
        return self.result


CALLS: dict[str, Callable[[Any, Tensor], Any]] = {
    "positions": lambda layer, x: layer(x, x),
    "keywords": lambda layer, x: layer(a=x, b=x),
    "both": lambda layer, x: layer(x, skip=x),
    "a list": lambda layer, x: layer([x, x]),
    "nested": lambda layer, x: layer((x, [x]), more={"a": x}),
    "with another": lambda layer, x: layer(x, x * 1, x),
    "only a keyword after a number": lambda layer, x: layer(1, x=x),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_one_tensor_in_is_one_tensor_for_the_layer(name: str, frozen: bool) -> None:
    plain, net = (Net(Identities(), CALLS[name]) for _ in range(2))
    x = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=not frozen)
    expected = plain(x)
    with tp.record(net, "layer", inputs=True, gradients=True) as tape:
        output = net(x)
        output.sum().backward()
    assert net.layer.same == plain.layer.same
    assert torch.equal(output, expected)
    if frozen:
        return
    total = x.grad.clone()
    torch.testing.assert_close(total, torch.autograd.grad(expected.sum(), x)[0])
    leaves = list(tp.hooks.containers.leaves((tape["layer"].grad_input, tape["layer"].grad_kwargs)))
    if name == "with another":  # 1 + 3 for the tensor that stands twice, 2 for the other
        assert [gradient.tolist() for _, gradient in leaves] == [[4, 4], [2, 2], [4, 4]]
    else:  # each position has the gradient of the tensor that stands there, as torch.autograd.grad(score, [x, x])
        assert all(torch.equal(gradient, total) for _, gradient in leaves)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("keywords", [False, True])
def test_attention_takes_the_branch_of_self_attention(frozen: bool, training: bool, keywords: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double().train(training).requires_grad_(not frozen)
    call = (lambda m, x: m(query=x, key=x, value=x)[0]) if keywords else (lambda m, x: m(x, x, x)[0])
    net, x = Net(attention, call), torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    expected = net(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    with tp.record(net, "layer", inputs=True, gradients=True) as tape:
        output = net(x)
        output.square().sum().backward()
    assert torch.equal(output, expected)
    found = tape["layer"].grad_kwargs.values() if keywords else tape["layer"].grad_input
    assert len(found) == 3
    for each in found:
        torch.testing.assert_close(each, gradient)


def test_one_tensor_in_while_statistics_are_taken() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.same = Same(), []

        def forward(self, x):
            return self.attention(x, x).mean(1)

    class Same(nn.Module):
        def forward(self, q, k):
            same.append(q is k)
            return q * k

    same: list[bool] = []
    x = torch.randn(2, 3, 4, requires_grad=True)
    tp.statistics(Classifier(), [x], ["attention"], loss=lambda output: output.sum(), channel_axis=-1)
    assert same
    assert all(same)


@pytest.mark.parametrize("frozen", [False, True])
def test_one_tensor_out_is_one_tensor_for_the_caller(frozen: bool) -> None:
    class Twice(nn.Module):
        def forward(self, x):
            y = x * 2
            return y, [y], {"y": y}

    def call(layer, x):
        a, (b,), c = layer(x)
        return (a is b is c["y"]), a + 2 * b + 4 * c["y"]

    net, x = Net(Twice(), call), torch.ones(2, requires_grad=not frozen)
    with tp.record(net, "layer", gradients=True) as tape:
        same, score = net(x)
        score.sum().backward()
    assert same
    assert all(gradient.tolist() == [7, 7] for _, gradient in tp.hooks.containers.leaves(tape["layer"].grad_output))
    if not frozen:
        x.grad = None
        with tp.edit(net, gradients={"layer": lambda gradient: gradient * 10}):
            same, score = net(x)
            score.sum().backward()
        assert same
        assert x.grad.tolist() == [140, 140]  # edited once, not once for each place


def test_a_container_that_the_layer_changes_is_the_callers() -> None:
    class Appends(nn.Module):
        def forward(self, x, features, state):
            features.append(x * 2)
            state["sum"] = features[0] + x
            return x * 3

    def call(layer, x):
        features, state = [x], {"x": x}
        y = layer(x, features, state=state)
        return y + features[1] + state["sum"], features[0] is x and state["x"] is x

    net, x = Net(Appends(), call), torch.ones(2, requires_grad=True)
    with tp.record(net, "layer", gradients=True) as tape:
        score, same = net(x)
        score.sum().backward()
    assert same
    assert score.tolist() == [7, 7]
    assert x.grad.tolist() == [7, 7]
    assert tape["layer"].grad_input[0].tolist() == [7, 7]


def test_containers_are_put_right_when_a_layer_raises() -> None:
    class Raises(nn.Module):
        def forward(self, features):
            raise ValueError("the model's")

    features = [torch.ones(2, requires_grad=True) * 1]
    before = copy.copy(features)
    net = Net(Raises(), lambda layer, x: layer(x))
    with pytest.raises(ValueError, match="the model's"), tp.record(net, "*", gradients=True):
        net(features)
    assert features[0] is before[0]


def test_attributes_and_strides_of_a_tensor_reach_the_layer() -> None:
    class Reads(nn.Module):
        def forward(self, x):
            self.found = x.mask, x.stride()
            return x * 2

    def call(layer, x):
        x = x.permute(1, 0, 2)
        x.mask = "mask"
        strides.append(x.stride())
        return layer(x)

    strides: list[Any] = []
    net = Net(Reads(), call)
    with tp.record(net, "layer", gradients=True):
        net(torch.ones(6, 1, 5, requires_grad=True))
    assert net.layer.found == ("mask", strides[0])


def test_a_frozen_model_shares_memory_as_without_recording() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout()

        def forward(self, x):
            h = self.drop(x)
            h += 1
            return h + x  # `x` has changed, because the layer returned it

    model = Frozen().eval()
    with tp.record(model, "drop", gradients=True) as tape:
        output = model(torch.ones(2))
        output.sum().backward()
    assert output.tolist() == [4, 4]
    assert tape["drop"].grad_output.tolist() == [1, 1]


def test_a_sparse_input_has_a_gradient() -> None:
    class Multiplies(nn.Module):
        def forward(self, a, b):
            return torch.sparse.mm(a, b)

    b = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    net = Net(Multiplies(), lambda layer, a: layer(a, b))
    with tp.record(net, "layer", gradients=True) as tape:
        net(torch.eye(2).to_sparse().requires_grad_()).sum().backward()
    assert tape["layer"].grad_input[0].to_dense().diagonal().tolist() == [3, 7]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["positions", "a list"])
def test_an_input_that_needs_a_gradient_where_there_is_no_graph(mode: Any, name: str) -> None:
    net, x = Net(Identities(), CALLS[name]), torch.ones(2, requires_grad=True)
    with mode(), pytest.raises(tp.errors.GradUnavailable, match="no_grad"), tp.record(net, "*", gradients=True):
        net(x)

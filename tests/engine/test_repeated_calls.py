"""Whether the code around a layer shows that it is called once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from networks import PooledNet, Shared
from networks.several_calls import SharedAct, Siamese
from torchpeek.engine import may_be_called_again


class Spelled(nn.Module):
    """Layers that are called in many ways, by name: once_* once, others twice or more."""

    def __init__(self) -> None:
        super().__init__()
        self.once = nn.Identity()
        self.once_in_a_method = nn.Identity()
        self.once_in_a_property = nn.Identity()
        self.twice = nn.Identity()
        self.in_a_loop = nn.Identity()
        self.in_a_comprehension = nn.Identity()
        self.in_a_lambda = nn.Identity()
        self.in_a_method_in_a_loop = nn.Identity()
        self.in_a_method_called_twice = nn.Identity()
        self.unused = nn.Identity()

    def _method(self, x: Tensor) -> Tensor:
        return self.once_in_a_method(x)

    @property
    def _property(self) -> nn.Module:
        return self.once_in_a_property

    def _looped(self, x: Tensor) -> Tensor:
        return self.in_a_method_in_a_loop(x)

    def _doubled(self, x: Tensor) -> Tensor:
        return self.in_a_method_called_twice(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self._property(self._method(self.once(x)))
        x = self.twice(self.twice(x))
        x = self._sum(x)
        apply = lambda value: self.in_a_lambda(value)  # noqa: E731
        return self._doubled(self._doubled(apply(apply(x))))

    def _sum(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self._looped(self.in_a_loop(x))
        return sum([self.in_a_comprehension(x) for _ in range(3)])


class Unnamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "one")(self.one(x))  # noqa: B009


@pytest.mark.parametrize("name", [name for name, _ in Spelled().named_children()])
def test_however_it_is_called(name: str) -> None:
    model = Spelled()
    calls: list[str] = []
    model.get_submodule(name).register_forward_hook(lambda *hook_arguments: calls.append(name))
    model(torch.ones(1))
    if not may_be_called_again(model, model.get_submodule(name)):
        assert len(calls) == 1
        assert name.startswith("once")
    else:
        assert not name.startswith("once")


def test_of_networks() -> None:
    pooled = PooledNet()
    assert not may_be_called_again(pooled, pooled.features[1])
    assert not may_be_called_again(pooled, pooled.head)
    shared = Shared()
    assert may_be_called_again(shared, shared.act)
    assert not may_be_called_again(shared, shared.one)
    act = SharedAct()
    assert may_be_called_again(act, act.act)
    siamese = Siamese()
    assert any(may_be_called_again(siamese, each) for each in siamese.modules() if each is not siamese)
    unnamed = Unnamed()
    assert may_be_called_again(unnamed, unnamed.one)
    assert may_be_called_again(unnamed, unnamed.two)


def test_of_a_layer_with_two_places_and_a_patched_forward() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.Sequential(layer))
    assert may_be_called_again(model, layer)
    net = PooledNet()
    net.forward = lambda x: net.head(net.head(x))
    assert may_be_called_again(net, net.head)

"""Ways to write one linear projection."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class LoRA(nn.Module):
    """A linear layer with a low-rank adapter, whose second matrix is zero, as before training."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.dropout = base, nn.Dropout(0.1)
        self.a, self.b = nn.Linear(base.in_features, 3, bias=False), nn.Linear(3, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(self.dropout(x)))


class Wrapped(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base(input=hidden)


class Product(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.matrix, self.offset = base.weight, base.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", x, self.matrix) + self.offset


class Convolution(nn.Module):
    """A convolution of size 1 over the tokens."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.conv = nn.Conv1d(base.in_features, base.out_features, 1)
        self.conv.load_state_dict({"weight": base.weight.unsqueeze(2), "bias": base.bias})

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mT).mT


class FixedConvolution(nn.Module):
    """The same in two dimensions, for one number of tokens only."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.conv = nn.Conv2d(base.in_features, base.out_features, 1)
        self.conv.load_state_dict({"weight": base.weight[:, :, None, None], "bias": base.bias})

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mT.reshape(len(x), -1, 17, 1)).flatten(2).mT


class Own(nn.Linear):
    """A subclass."""


def _as(kind: type[nn.Linear], base: nn.Linear) -> nn.Linear:
    layer = kind(base.in_features, base.out_features)
    layer.load_state_dict(base.state_dict())
    return layer


SPELLINGS: dict[str, Callable[[Any], nn.Module]] = {
    "LoRA": LoRA,
    "weight_norm": lambda base: weight_norm(copy.deepcopy(base)),
    "a wrapper": Wrapped,
    "Sequential(qkv, Identity())": lambda base: nn.Sequential(base, nn.Identity()),
    "Sequential(qkv, Dropout())": lambda base: nn.Sequential(base, nn.Dropout(0.1)),
    "a product": Product,
    "a convolution": Convolution,
    "a convolution of one size": FixedConvolution,
    "a subclass": lambda base: _as(Own, base),
    "NonDynamicallyQuantizableLinear": lambda base: _as(nn.modules.linear.NonDynamicallyQuantizableLinear, base),
}
"""Name -> a function that writes a linear layer in another way. All give the same numbers."""


def respelled(model: nn.Module, names: tuple[str, ...], spelling: Callable[[Any], nn.Module]) -> nn.Module:
    """A copy of the model, with the linear layers whose names end with one of these written in another way."""
    model = copy.deepcopy(model)
    dtype = next(model.parameters()).dtype
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name.endswith(names):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, spelling(module).to(dtype))
    return model.eval()

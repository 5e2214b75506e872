"""In models of several inputs, the suggested layer has the positions of the input that is explained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp


def encoder(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()
    )


class TwoInputs(nn.Module):
    """A colour picture and a depth map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.colour, self.depth = encoder(3), encoder(1)
        self.fuse = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 4)


class Modulated(TwoInputs):
    """FiLM: a vector of the picture scales and shifts the features of the depth map (arXiv:1709.07871)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(8, 16)

    def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
        scale, shift = self.scale(self.colour(colour).mean((2, 3)))[..., None, None].chunk(2, 1)
        return self.head(self.fuse(self.depth(depth) * (1 + scale) + shift).mean((2, 3)))


class Attending(TwoInputs):
    """Cross-attention: the positions of the picture ask those of the depth map."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)

    def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
        queries, keys = self.colour(colour).flatten(2).mT, self.depth(depth).flatten(2).mT
        return self.head(self.norm(queries + self.attention(queries, keys, keys)[0]).mean(1))


class Added(TwoInputs):
    """The features of both, position by position."""

    def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
        return self.head(self.fuse(self.colour(colour) + self.depth(depth)).mean((2, 3)))


class Late(TwoInputs):
    """The means of both."""

    def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
        return self.head(self.colour(colour).mean((2, 3)) + self.depth(depth).mean((2, 3)))


def inputs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(count, channels, 16, 12, generator=generator).double() for channels in (3, 1))  # type: ignore[return-value]


def plain_gradcam(model: nn.Module, layer: str, *args: Tensor) -> Tensor:
    """(N, positions): by a hook of our own and autograd alone, of class 1."""
    returned: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: returned.append(output))
    score = model(*args)[:, 1].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, returned)
    if layer == "norm":  # (N, positions, C)
        return (gradient.mean(1, keepdim=True) * returned[0]).sum(2).detach()
    return (gradient.mean((2, 3), keepdim=True) * returned[0]).sum(1).flatten(1).detach()


@pytest.mark.parametrize(
    ("make", "picture", "layer"),
    [
        (Modulated, "0", "colour.4"),
        (Modulated, "1", "fuse"),
        (Attending, "0", "norm"),
        (Attending, "1", "depth.4"),
        (Added, "0", "fuse"),
        (Added, "1", "fuse"),
        (Late, "0", "colour.4"),
        (Late, "1", "depth.4"),
    ],
)
def test_each_input_gets_its_right_map(make: type[TwoInputs], picture: str, layer: str) -> None:
    model, args = make().double().eval(), inputs(1)
    count: list[int] = []
    handle = model.register_forward_hook(lambda *_: count.append(1))
    heatmap = tp.explain(model, tp.Arguments(args, picture=picture), target=1)
    assert heatmap.provenance.layer == layer
    torch.testing.assert_close(heatmap.values.flatten(1), plain_gradcam(model, layer, *args))
    assert len(count) == 3 + 1  # one of them is ours
    count.clear()
    tp.explain(model, tp.Arguments(args, picture=picture), target=2)
    assert len(count) == 1
    handle.remove()
    several = tp.explain(model, tp.Arguments(inputs(3), picture=picture), target=1)
    assert several.provenance.layer == layer
    torch.testing.assert_close(several.values.flatten(1), plain_gradcam(model, layer, *inputs(3)).view(3, -1))


class Towers(nn.Module):
    """Two transformers, each read by its class token. torch runs such layers in another way where gradients are off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, batch_first=True)
        for name, channels in (("colour", 3), ("depth", 1)):
            self.add_module(f"{name}_patches", nn.Conv2d(channels, 16, 4, 4))
            self.add_module(name, nn.TransformerEncoder(layer, 3, enable_nested_tensor=False))
        self.token, self.head = nn.Parameter(torch.randn(1, 1, 16)), nn.Linear(32, 4)

    def read(self, name: str, x: Tensor) -> Tensor:
        tokens = self.get_submodule(f"{name}_patches")(x).flatten(2).mT
        return self.get_submodule(name)(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))[:, 0]

    def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
        return self.head(torch.cat([self.read("colour", colour), self.read("depth", depth)], 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("picture", [0, 1])
def test_two_transformers(picture: int, dtype: torch.dtype) -> None:
    model, args = Towers().to(dtype).eval(), [each.to(dtype) for each in inputs(1)]
    heatmap = tp.explain(model, tp.Arguments(args, picture=str(picture)), target=1)
    assert heatmap.provenance.layer.startswith(("colour.", "depth.")[picture])
    args[picture] = args[picture].flip(3)
    assert not torch.equal(heatmap.values, tp.explain(model, tp.Arguments(args, picture=str(picture)), target=1).values)
    assert torch.backends.mha.get_fastpath_enabled()

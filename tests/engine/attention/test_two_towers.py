"""Attention methods on models of several inputs read the attention of the picture's own branch alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp


class Tower(nn.Module):
    """A small transformer that is read by its class token."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patches, self.token = nn.Conv2d(channels, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)
        for each in self.encoder.parameters():
            nn.init.normal_(each, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x).flatten(2).mT], 1)
        return self.head(self.encoder(tokens)[:, 0])


class Towers(nn.Module):
    """The sum of the logits of two towers, so that each contributes to a score what it does alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Tower(3, 0), Tower(1, 1)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return self.first(one) + self.second(two)


class Shared(nn.Module):
    """One tower for two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower(3, 0)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return self.tower(one) + self.tower(two)


@pytest.mark.parametrize("method", ["rollout", "legrad", "transformer-attribution"])
@pytest.mark.parametrize("picture", [0, 1])
@pytest.mark.parametrize("sizes", [(16, 16), (16, 24)], ids=["same size", "two sizes"])
def test_as_the_tower_alone(method: str, picture: int, sizes: tuple[int, int]) -> None:
    model = Towers().double().eval()
    args = [torch.rand(2, channels, size, size).double() for channels, size in zip((3, 1), sizes, strict=True)]
    heatmap = tp.explain(model, tp.Arguments(args, picture=str(picture)), method=method, target=1)
    alone = tp.explain((model.first, model.second)[picture], args[picture], method=method, target=1)
    torch.testing.assert_close(heatmap.values, alone.values)


@pytest.mark.parametrize("method", ["rollout", "legrad", "transformer-attribution"])
@pytest.mark.parametrize("picture", [0, 1])
def test_calls_of_a_shared_tower(method: str, picture: int) -> None:
    model, args = Shared().double().eval(), [torch.rand(1, 3, 16, 16).double() for _ in range(2)]
    heatmap = tp.explain(model, tp.Arguments(args, picture=str(picture)), method=method, target=1)
    torch.testing.assert_close(heatmap.values, tp.explain(model.tower, args[picture], method=method, target=1).values)

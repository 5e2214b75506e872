"""A small CNN and a small ViT with their input, and the distance between two heatmaps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import torchpeek as tp

METHODS = ["gradcam", "hirescam", "layercam", "recipro-cam", "integrated-gradcam"]
LAYERS = {"conv": "features.4", "tokens": "blocks.1.norm"}


class Pooled(nn.Module):
    """Two convolutions, global average pooling, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
        self.features = nn.Sequential(*stem, nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.ReLU())
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


class Block(nn.Module):
    """Attention and an MLP, each added to the tokens (N, T, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(x)


class Tokens(nn.Module):
    """A small vision transformer with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.class_token = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.randn(1, 1, 8))
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).mT
        return self.head(self.blocks(torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1))[:, 0])


X = torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(1))


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return {"conv": Pooled, "tokens": Tokens}[kind]().eval()


def off(got: tp.Heatmap, expected: tp.Heatmap) -> float:
    """The largest difference, relative to the largest value."""
    ours, theirs = got.values.double().cpu(), expected.values.double().cpu()
    return float((ours - theirs).abs().max() / theirs.abs().max())


# Fewer than sixteen roundings lie in a row on the way there and back, each by at most half an epsilon.
ROUNDINGS = 16

"""A model whose score is the brightness of the picture: every metric has a closed form."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

import torchpeek as tp


class Bright(nn.Module):
    """Class 0 is as probable as the mean of the input's first channel is large: p = mean, for inputs in (0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        mean = self.layer(x)[:, 0].mean((1, 2)).clamp(1e-12, 1 - 1e-12)
        return torch.stack([mean.log(), (1 - mean).log()], dim=1)


def made(values: Tensor, like: tp.Heatmap) -> tp.Heatmap:
    return replace(like, values=values.expand(*like.scores.shape, *values.shape[-2:]))


class Darker(nn.Module):
    """The other way round: p = 1 - mean."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x).flip(1)


def rescored(model: nn.Module, x: Tensor, heatmap: tp.Heatmap) -> tp.Heatmap:
    return replace(heatmap, scores=tp.explain(model, x, method="random", layer="inside.layer", target=0).scores)

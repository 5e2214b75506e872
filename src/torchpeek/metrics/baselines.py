"""The two heatmaps that every method is set beside: one of no meaning, one that has not seen the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchpeek.metrics.case import Explainer
from torchpeek.metrics.draws import fingerprint, generator


def centre(grid: Sequence[int], like: Tensor) -> Tensor:
    """(*grid): a Gaussian around the middle, its sigma a quarter of each side."""
    gaussian = torch.ones(tuple(grid), dtype=like.dtype, device=like.device)
    for axis, length in enumerate(grid):
        along = torch.arange(length, dtype=like.dtype, device=like.device) - (length - 1) / 2
        shape = (1,) * axis + (length,) + (1,) * (len(grid) - axis - 1)
        gaussian = gaussian * torch.exp(-((along / (length / 4)) ** 2) / 2).view(shape)
    return gaussian


def constant_explainer(heatmap: Tensor) -> Explainer:
    """What shows the same (K, *grid) of every input, model and class."""

    def explain(inputs: Tensor, rows: Tensor, *, draw: int = 0, **changes: Any) -> Tensor:
        return heatmap.expand(len(inputs), *heatmap.shape)

    return explain


def random_explainer(shape: Sequence[int], seed: int, number: int, like: Tensor) -> Explainer:
    """Uniform numbers (K, *grid), others for every input, and for every `draw`."""

    def explain(inputs: Tensor, rows: Tensor, *, draw: int = 0, **changes: Any) -> Tensor:
        generators = [generator(fingerprint(each), seed, 1000 + number, draw) for each in inputs]
        return torch.stack([torch.rand(tuple(shape), generator=each) for each in generators]).to(like)

    return explain

"""Baseline heatmaps: random numbers, and a centred Gaussian that ignores the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchpeek.draws import Fingerprints, generator
from torchpeek.keywords import checked_keywords
from torchpeek.metrics.explainer import Explainer


@checked_keywords
def centre(grid: Sequence[int], like: Tensor) -> Tensor:
    """Return a Gaussian around the middle of the grid. Its sigma along each axis is a quarter of the axis.

    Args:
        grid: Length of each axis.
        like: A tensor of the dtype and on the device to use.

    Returns:
        (*grid), 1 in the middle of a grid of odd lengths.

    Example:
        >>> baseline = tp.metrics.centre((3, 3), torch.zeros(1))
        >>> baseline.shape, float(baseline[1, 1])
        (torch.Size([3, 3]), 1.0)
    """
    gaussian = torch.ones(tuple(grid), dtype=like.dtype, device=like.device)
    for axis, length in enumerate(grid):
        along = torch.arange(length, dtype=like.dtype, device=like.device) - (length - 1) / 2
        shape = (1,) * axis + (length,) + (1,) * (len(grid) - axis - 1)
        gaussian = gaussian * torch.exp(-((along / (length / 4)) ** 2) / 2).view(shape)
    return gaussian


@checked_keywords
def constant_explainer(heatmap: Tensor) -> Explainer:
    """Return an explainer that gives the same heatmap for every input, model and class.

    Args:
        heatmap: (K, *grid).

    Returns:
        The Explainer.

    Example:
        >>> explain = tp.metrics.constant_explainer(torch.ones(1, 4, 4))
        >>> explain(torch.rand(2, 3, 8, 8), torch.arange(2)).shape
        torch.Size([2, 1, 4, 4])
    """

    def explain(inputs: Tensor, rows: Tensor, *, draw: int = 0, **changes: Any) -> Tensor:
        return heatmap.expand(len(inputs), *heatmap.shape)

    return explain


@checked_keywords
def random_explainer(
    shape: Sequence[int], seed: int, number: int, like: Tensor, fingerprints: Fingerprints | None = None
) -> Explainer:
    """Return an explainer that gives uniform random numbers, different for every input and every `draw`.

    Args:
        shape: (K, *grid), the shape of each heatmap.
        seed: The seed of the evaluation.
        number: The number of this explainer, which tells several random baselines apart.
        like: A tensor of the dtype and on the device to use.
        fingerprints: Shared by explainers that are asked for the same inputs, so that these are read once.

    Returns:
        The Explainer.

    Example:
        >>> explain = tp.metrics.random_explainer((1, 4, 4), 0, 0, torch.zeros(1))
        >>> x, rows = torch.rand(2, 3, 8, 8), torch.arange(2)
        >>> torch.equal(explain(x, rows), explain(x, rows))
        True
    """

    remembered = fingerprints or Fingerprints()

    def explain(inputs: Tensor, rows: Tensor, *, draw: int = 0, **changes: Any) -> Tensor:
        generators = [generator(each, seed, 1000 + number, draw) for each in remembered.of(inputs)]
        return torch.stack([torch.rand(tuple(shape), generator=each, dtype=torch.float32) for each in generators]).to(
            like
        )

    return explain

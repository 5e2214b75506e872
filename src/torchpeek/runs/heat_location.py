"""Where the heat of a map lies: its centre, spread, peak and entropy, its share at the border and in a region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from torchpeek.heatmap import upsample
from torchpeek.picture import Geometry

BORDER = 0.1
"""The width of the border, as a share of the width and the height of what the model sees."""


@dataclass(frozen=True)
class HeatLocation:
    """Numbers (N, K) of N x K maps. They are of the positive values alone: those that speak for the target.

    Positions are shares of the width and of the height of the original picture: 0 is its left or upper edge and 1 its
    right or lower edge. They are NaN where a map has no positive value.

    Args:
        centre_x: The mean position of the heat across the picture.
        centre_y: The mean position down the picture.
        spread: The standard deviation of the positions: the root of the sum of both variances.
        border: The share of the heat in the outer tenth, on each side, of what the model sees.
        peak_x: The position of the highest value, across.
        peak_y: The position of the highest value, down. Of equal values, the first by rows.
        entropy: The entropy of the heat over the positions of the grid, divided by its largest value, that of an even
            map: 0 to 1.
    """

    centre_x: Tensor
    centre_y: Tensor
    spread: Tensor
    border: Tensor
    peak_x: Tensor
    peak_y: Tensor
    entropy: Tensor

    def columns(self) -> dict[str, Tensor]:
        """Name -> numbers (N, K)."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def heat_location(values: Tensor, geometries: Sequence[Geometry]) -> HeatLocation:
    """Where the heat of maps lies.

    Args:
        values: (N, K, h, w), signed.
        geometries: Which part of its picture each input shows, N of them.
    """
    positive = values.detach().double().clamp(min=0).cpu()  # (N, K, h, w)
    height, width = values.shape[2:]
    total = positive.sum((2, 3))  # (N, K)
    share = positive / total.unsqueeze(-1).unsqueeze(-1)  # NaN without heat
    across, down = _centres(width), _centres(height)
    heat_x, heat_y = share.sum(2), share.sum(3)  # (N, K, w), (N, K, h)
    left, top, wide, high = _placed(geometries)  # each (N, 1)
    mean_x, mean_y = heat_x @ across, heat_y @ down
    variance_x = (heat_x @ across**2 - mean_x**2).clamp(min=0) * wide**2
    variance_y = (heat_y @ down**2 - mean_y**2).clamp(min=0) * high**2
    peak = positive.flatten(2).argmax(2)
    highest = torch.where(total > 0, 1.0, torch.nan)
    inner = torch.einsum("nkhw,h,w->nk", share, 1 - _border_share(height), 1 - _border_share(width))
    return HeatLocation(
        left + mean_x * wide,
        top + mean_y * high,
        (variance_x + variance_y).sqrt(),
        1 - inner,
        highest * (left + across[peak % width] * wide),
        highest * (top + down[peak // width] * high),
        _entropy(share),
    )


def inside(values: Tensor, region: Tensor) -> Tensor:
    """The share of the heat in a region, as the metric energy-pointing-game has it: of the interpolated map.

    Args:
        values: (N, K, h, w), signed.
        region: (N, 1, H, W), bool, over the positions of the input.

    Returns:
        (N, K): 0 where a map has no positive value, NaN where the region is empty.
    """
    positive = upsample(values.detach(), region.shape[2:]).clamp(min=0).double()
    total = positive.sum((2, 3))
    share = torch.where(total > 0, (positive * region).sum((2, 3)) / total, 0.0)
    return torch.where(region.flatten(2).any(2), share, torch.nan)


def _centres(count: int) -> Tensor:
    """The middles of the cells of an axis, as shares of its length."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _border_share(count: int) -> Tensor:
    """How much of each cell of an axis lies in the border."""
    edges = torch.arange(count + 1, dtype=torch.float64) / count
    within = edges.clamp(BORDER, 1 - BORDER)
    return 1 - (within[1:] - within[:-1]) * count


def _placed(geometries: Sequence[Geometry]) -> list[Tensor]:
    """Left and top edge, width and height of what each input shows, as shares of its picture, each (N, 1)."""
    rows = []
    for geometry in geometries:
        (width, height), (left, top, right, bottom) = geometry.size, geometry.box
        rows.append((left / width, top / height, (right - left) / width, (bottom - top) / height))
    return list(torch.tensor(rows, dtype=torch.float64).T.unsqueeze(-1))


def _entropy(share: Tensor) -> Tensor:
    positions = share.flatten(2)
    if positions.shape[2] == 1:
        return torch.where(positions.isnan(), torch.nan, 0.0).squeeze(2)
    entropy: Tensor = -torch.special.xlogy(positions, positions).sum(2)
    return entropy / math.log(positions.shape[2])

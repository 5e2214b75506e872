"""Whether the heatmap is where the object is; nothing is run."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from torchpeek.metrics.case import Case
from torchpeek.metrics.metric import MetricResult, metric
from torchpeek.registry import check_number

_AT_ONCE = 2**24  # numbers that are compared at once


@metric("pointing-game", needs="region", higher_is_better=True, paper="arXiv:1608.00507")
def pointing_game(case: Case, *, tolerance: float = 15.0) -> MetricResult:
    """Share of the heatmap's maxima in the region, or within `tolerance` positions of it (Zhang et al.)."""
    check_number("tolerance", tolerance)
    values = case.levels
    highest = values == values.amax(2, keepdim=True)
    hit = highest & case.region(partial(widened, distance=tolerance)).flatten(2)
    return _where_there_is_one(case, hit.sum(2) / highest.sum(2))


def widened(region: Tensor, distance: float) -> Tensor:
    """(N, R, *size), bool: with all positions at most so far from it, in a straight line."""
    squares = torch.where(region, 0.0, torch.inf)  # of the distance to the region, along the axes so far
    for axis in range(2, region.ndim):
        lines = squares.movedim(axis, -1)
        along = torch.arange(lines.shape[-1], dtype=torch.float32, device=region.device)
        steps = (along.unsqueeze(1) - along) ** 2  # (length, length)
        parts = torch.split(lines.flatten(0, -2), max(1, _AT_ONCE // steps.numel()))
        nearest = torch.cat([(part.unsqueeze(1) + steps).amin(2) for part in parts])
        squares = nearest.view(lines.shape).movedim(-1, axis)
    return squares <= distance**2


@metric("energy-pointing-game", needs="region", higher_is_better=True, paper="arXiv:1910.01279")
def energy_pointing_game(case: Case) -> MetricResult:
    """Share of the heatmap's positive energy that lies in the region (Score-CAM); 0 where there is none."""
    positive = case.signed.clamp(min=0).flatten(2)
    total = positive.sum(2)
    inside = (positive * case.region().flatten(2)).sum(2)
    return _where_there_is_one(case, torch.where(total > 0, inside / total, 0))


@metric("grid-pointing-game", needs="region", higher_is_better=True, paper="arXiv:2104.00032")
def grid_pointing_game(case: Case) -> MetricResult:
    """Share of the positive energy in the class's own cell of a mosaic of pictures (CoDA Nets).

    The inputs are those of `tp.metrics.mosaic`, and the region is the cell.
    """
    return energy_pointing_game(case)


@metric("relevance-rank-accuracy", needs="region", higher_is_better=True, paper="arXiv:2003.07258")
def relevance_rank_accuracy(case: Case) -> MetricResult:
    """Share of the highest positions, as many as the region has, that lie in it (CLEVR-XAI).

    Of equal values at the edge of these the share is taken that is expected if they are drawn at random.
    """
    values, region = case.levels, case.region().flatten(2)
    count = region.sum(2, keepdim=True)  # (N, J, 1)
    ordered = values.sort(dim=2, descending=True).values
    edge = ordered.gather(2, (count - 1).clamp(min=0))
    above, equal = values > edge, values == edge
    left = count - above.sum(2, keepdim=True)
    inside = (above & region).sum(2) + (left / equal.sum(2, keepdim=True)).squeeze(2) * (equal & region).sum(2)
    return _where_there_is_one(case, inside / count.squeeze(2))


@metric("iou", needs="region", higher_is_better=True, paper="arXiv:1512.04150")
def iou(case: Case, *, threshold: float = 0.2) -> MetricResult:
    """Overlap of the region with where the heatmap is above `threshold` of its maximum, over their union."""
    check_number("threshold", threshold, most=1.0)
    shown = case.mask > threshold
    both, either = (shown & case.region()).flatten(2).sum(2), (shown | case.region()).flatten(2).sum(2)
    return _where_there_is_one(case, both / either)


def _where_there_is_one(case: Case, values: Tensor) -> MetricResult:
    """NaN where the region is empty: nothing was there to be found."""
    there = case.region().flatten(2).any(2)
    return MetricResult(torch.where(there, values.to(case.values), torch.nan))

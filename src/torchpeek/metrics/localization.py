"""Localization metrics: whether the heatmap is where the object is. They run no pass."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from torchpeek.argument_types import NonNegative, Share, Whole
from torchpeek.errors import OptionError
from torchpeek.metrics.case import Case
from torchpeek.metrics.correlation import mean_ranks
from torchpeek.metrics.metric import MetricResult, metric

_AT_ONCE = 2**24  # numbers in a chunk of comparisons


@metric("pointing-game", needs="region", higher_is_better=True, paper="arXiv:1608.00507")
def pointing_game(case: Case, *, tolerance: NonNegative = 15.0) -> MetricResult:
    """Share of the heatmap's maxima in the region, or within `tolerance` positions of it (Zhang et al.).

    Args:
        tolerance: The largest distance from the region that counts as a hit, in positions of the input.
    """
    values = case.levels
    highest = values == values.amax(2, keepdim=True)
    hit = highest & case.region(partial(widened, distance=tolerance)).flatten(2)
    return _undefined_without_region(case, hit.sum(2) / highest.sum(2))


def widened(region: Tensor, distance: float) -> Tensor:
    """Add all positions within a Euclidean distance to each region, (N, R, *size), bool."""
    squares = torch.where(region, 0.0, torch.inf)  # squared distance to the region along the axes so far
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
    """Share of the heatmap's positive energy that lies in the region (Score-CAM); 0 if it has no positive energy."""
    positive = case.signed.clamp(min=0).flatten(2)
    total = positive.sum(2)
    inside = (positive * case.region().flatten(2)).sum(2)
    return _undefined_without_region(case, torch.where(total > 0, inside / total, 0))


@metric("grid-pointing-game", needs="region", higher_is_better=True, paper="arXiv:2104.00032")
def grid_pointing_game(case: Case) -> MetricResult:
    """Share of the positive energy in the class's own cell of a mosaic of pictures (CoDA Nets).

    The inputs are those of `tp.metrics.mosaic`, and the region is the cell.
    """
    return energy_pointing_game(case)


@metric("relevance-rank-accuracy", needs="region", higher_is_better=True, paper="arXiv:2003.07258")
def relevance_rank_accuracy(case: Case) -> MetricResult:
    """Share of the highest positions, as many as the region has, that lie in it (CLEVR-XAI).

    Equal values at the edge of this set count with the share that is expected when they are drawn at random.
    """
    region = case.region().flatten(2)
    return _undefined_without_region(case, _share_of_highest(case.levels, region, region.sum(2, keepdim=True)))


@metric("top-k", needs="region", higher_is_better=True, paper="arXiv:2104.14995")
def top_k(case: Case, *, k: Annotated[int | None, Whole()] = None) -> MetricResult:
    """Share of the k highest positions that lie in the region (Theiner et al., as in Quantus).

    Equal values at the edge of this set count with the share that is expected when they are drawn at random.

    Args:
        k: Number of positions. None is 2 % of the input's, at least one: about 1000 of 224 x 224.
    """
    positions = case.size.numel()
    k = max(1, round(positions / 50)) if k is None else k
    if k > positions:
        raise OptionError(f"option k is {k}; allowed: up to {positions}, the number of positions of the input")
    region = case.region().flatten(2)
    return _undefined_without_region(
        case, _share_of_highest(case.levels, region, torch.full_like(region[..., :1], k, dtype=torch.long))
    )


def _share_of_highest(values: Tensor, region: Tensor, count: Tensor) -> Tensor:
    """Return the share of the `count` highest values that lie in the region, (N, J). Of equal values, as expected.

    Args:
        values: (N, J, P).
        region: (N, J, P), bool.
        count: (N, J, 1).
    """
    ordered = values.sort(dim=2, descending=True).values
    edge = ordered.gather(2, (count - 1).clamp(min=0))
    above, equal = values > edge, values == edge
    left = count - above.sum(2, keepdim=True)
    inside = (above & region).sum(2) + (left / equal.sum(2, keepdim=True)).squeeze(2) * (equal & region).sum(2)
    return inside / count.squeeze(2)


@metric("auc", needs="region", higher_is_better=True, paper="doi:10.1016/j.patrec.2005.10.010")
def auc(case: Case) -> MetricResult:
    """Area under the ROC curve of the heatmap as a detector of the region's positions (Fawcett).

    That is the probability that a position in the region has a higher value than one outside. Equal values count as a
    half. It is 0.5 if the region is the whole input.
    """
    region = case.region().flatten(2)
    inside = region.sum(2).double()  # (N, J)
    outside = region.shape[2] - inside
    # One by one, because sorting takes much memory.
    of_samples = zip(torch.split(case.levels, 1), torch.split(region, 1), strict=True)
    ranks = torch.cat([(mean_ranks(levels) * there).sum(2) for levels, there in of_samples])
    higher = ranks - inside**2 / 2  # without the comparisons of the region's positions with each other
    return _undefined_without_region(case, torch.where(outside > 0, higher / (inside * outside), 0.5))


@metric("iou", needs="region", higher_is_better=True, paper="arXiv:1512.04150")
def iou(case: Case, *, threshold: Share = 0.2) -> MetricResult:
    """Intersection over union of the region and the positions above `threshold` of the heatmap's maximum.

    Args:
        threshold: Share of the maximum, 0 to 1.
    """
    shown = case.mask > threshold
    both, either = (shown & case.region()).flatten(2).sum(2), (shown | case.region()).flatten(2).sum(2)
    return _undefined_without_region(case, both / either)


def _undefined_without_region(case: Case, values: Tensor) -> MetricResult:
    """Set the value to NaN where the region is empty, because there is nothing to find."""
    there = case.region().flatten(2).any(2)
    return MetricResult(torch.where(there, values.to(case.values), torch.nan))

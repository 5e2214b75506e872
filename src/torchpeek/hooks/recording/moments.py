"""Mean and standard deviation of values and of groups of values, for every magnitude that float64 can hold."""

from __future__ import annotations

import torch
from torch import Tensor

from torchpeek.norms import power_of_two

_CHUNK_SIZE = 1 << 20  # values that are processed at a time, so that they stay in the cache


def combined(counts: Tensor, means: Tensor, stds: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of groups of values together, from those of each group.

    Everything is divided by the largest number of the channel, so that the squares are at most about 1.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm" (1979), eq. 2.1.

    Args:
        counts: (G, C) float64: how many values each group has.
        means: (G, C) float64: their mean; any finite number for an empty group.
        stds: (G, C) float64: their standard deviation.

    Returns:
        (C,) and (C,) float64. For a channel without values they are a finite number and 0.
    """
    share = counts / counts.sum(0).clamp(min=1)
    scale, back = scales(torch.maximum(means.abs(), stds).where(counts > 0, 0).amax(0))
    means, stds = times(means, scale[:, None]), times(stds, scale[:, None])
    first = means.gather(0, (counts > 0).int().argmax(0, keepdim=True))[0]  # equal means have exactly that mean
    mean = first + (share * (means - first)).where(counts > 0, 0).sum(0)
    var = (share * (stds.square() + (means - mean).square())).where(counts > 0, 0).sum(0)
    return times(mean, back), times(var.sqrt(), back)


def scales(largest: Tensor) -> tuple[Tensor, Tensor]:
    """The powers of two that bring these numbers to about 1, and back: (2, ...) each, to be multiplied one by one.

    One power alone may be too large for float64.
    """
    exponent = torch.frexp(largest).exponent.long()
    half = exponent.div(2, rounding_mode="floor")
    halves = torch.stack([half, exponent - half])
    return power_of_two(-halves), power_of_two(halves)


def times(values: Tensor, factors: Tensor) -> Tensor:
    """The values times both factors of `scales`."""
    return values * factors[0] * factors[1]


SAFE_RANGE = {torch.float32: (1e-15, 1e15), torch.float64: (1e-140, 1e140)}
"""The standard deviations for which no square of a deviation that matters overflows or underflows."""


def row_moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row, each (R, C).

    They are those of torch's group norm, which reads the values once and does not suffer from cancellation.
    """
    means, deviations = [], []
    for _, chunk in chunks(rows.view(-1, rows.shape[2])):
        size, length = chunk.shape
        _, mean, inverse = torch.native_group_norm(chunk[None], None, None, 1, size, length, size, 0.0)
        means.append(mean.flatten())
        deviations.append(inverse.flatten().reciprocal())
    return torch.cat(means).view(rows.shape[:2]), torch.cat(deviations).view(rows.shape[:2])


def chunks(flat: Tensor) -> list[tuple[int, Tensor]]:
    """The rows of `flat` in groups that fit into the cache, and the number of the first row of each."""
    size = max(1, _CHUNK_SIZE // flat.shape[1]) if flat.device.type == "cpu" else len(flat)
    return [(start, flat[start : start + size]) for start in range(0, len(flat), size)]

"""What the definitions of the metrics are made of: interpolation, masks, probabilities, ranks, correlations, fills.

As in replicas/metrics.py, everything is a float64 loop over one picture and one map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]
Model = Callable[[torch.Tensor], Any]


def numbers(given: Any) -> Array:
    """A tensor, an array or nested lists, as float64 numbers of their own."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().tolist()
    return np.array(given, dtype=np.float64)


def quotient(above: float, below: float) -> float:
    return above / below if below != 0 else math.nan


def share_of(part: int, whole: int, total: int) -> int:
    """round(part / whole * total), with no float on the way; a half goes to the even number, as in Python."""
    return round(Fraction(part * total, whole))


def bilinear(values: Any, size: Sequence[int]) -> Array:
    """Interpolated to `size` with half-pixel centres; beyond the outermost centres the edge goes on."""

    def between(i: int, old: int, new: int) -> tuple[int, int, float]:
        at = Fraction(2 * i + 1, 2) * Fraction(old, new) - Fraction(1, 2)  # exact, so that the floor is the right one
        at = min(max(at, Fraction(0)), Fraction(old - 1))
        low = math.floor(at)
        return low, min(low + 1, old - 1), float(at - low)

    v = numbers(values)
    out = np.zeros(tuple(size))
    for i in range(size[0]):
        top, bottom, down = between(i, v.shape[0], size[0])
        for j in range(size[1]):
            left, right, along = between(j, v.shape[1], size[1])
            # a + u (b - a), so that between equal numbers nothing is rounded, and equal stays equal
            above = v[top, left] + along * (v[top, right] - v[top, left])
            below = v[bottom, left] + along * (v[bottom, right] - v[bottom, left])
            out[i, j] = above + down * (below - above)
    return out


def signed(values: Any, size: Sequence[int]) -> Array:
    """s: the map on the positions of the input."""
    return bilinear(values, size)


def mask(values: Any, size: Sequence[int]) -> Array:
    """m: what is positive, divided by the maximum (a map without anything positive is zero), then interpolated."""
    v = numbers(values)
    h, w = v.shape
    highest = max(v[i, j] for i in range(h) for j in range(w))
    unit = np.zeros((h, w))
    if highest > 0:
        for i in range(h):
            for j in range(w):
                unit[i, j] = max(v[i, j], 0.0) / highest
    return bilinear(unit, size)


def masked(x: Any, m: Array) -> Array:
    """x * m, in every channel."""
    out = numbers(x)
    for c in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                out[c, i, j] *= m[i, j]
    return out


def probability(model: Model, x: Any, label: int) -> float:
    """exp(z_label) / sum_k exp(z_k)."""
    with torch.no_grad():
        logits = numbers(model(torch.tensor(numbers(x)[None], dtype=torch.float64)))[0]
    highest = max(logits)
    powers = [math.exp(z - highest) for z in logits]
    return powers[label] / math.fsum(powers)


def axis_order(s: Any, tie_keys: Any) -> list[int]:
    """Flat indices of `s`, highest first; of equal ones, the lower tie key first."""
    flat, keys = numbers(s).ravel(), numbers(tie_keys).ravel()
    if len(flat) != len(keys):
        raise ValueError(f"{len(keys)} tie keys for {len(flat)} values")
    return sorted(range(len(flat)), key=lambda i: (-flat[i], keys[i]))


def replaced(x: Any, fill: Any, positions: Iterable[int]) -> Array:
    """x[S]: the positions of all channels taken from the fill."""
    out, instead = numbers(x), numbers(fill)
    for position in positions:
        i, j = divmod(position, out.shape[2])
        for c in range(out.shape[0]):
            out[c, i, j] = instead[c, i, j]
    return out


def pearson(a: Any, b: Any) -> float:
    """Covariance over the product of the deviations; 0.0 where one side is constant."""
    u, v = numbers(a).ravel().tolist(), numbers(b).ravel().tolist()
    if len(u) != len(v):
        raise ValueError(f"{len(u)} numbers beside {len(v)}")
    if min(u) == max(u) or min(v) == max(v):
        return 0.0
    mean_u, mean_v = math.fsum(u) / len(u), math.fsum(v) / len(v)
    together = math.fsum((p - mean_u) * (q - mean_v) for p, q in zip(u, v, strict=True))
    spread_u = math.fsum((p - mean_u) ** 2 for p in u)
    spread_v = math.fsum((q - mean_v) ** 2 for q in v)
    return together / (math.sqrt(spread_u) * math.sqrt(spread_v))


def average_ranks(a: Any) -> list[float]:
    """1 for the lowest; equal numbers share the mean of the ranks that they would take."""
    flat = numbers(a).ravel().tolist()
    ranks = []
    for one in flat:
        lower = sum(other < one for other in flat)
        equal = sum(other == one for other in flat)  # itself among them
        ranks.append(lower + (equal + 1) / 2)
    return ranks


def spearman(a: Any, b: Any) -> float:
    return pearson(average_ranks(a), average_ranks(b))


# Fills


def fill_zeros(x: Any) -> Array:
    return np.zeros(numbers(x).shape)


def fill_mean(x: Any) -> Array:
    picture = numbers(x)
    out = np.zeros(picture.shape)
    for c in range(picture.shape[0]):
        out[c] = math.fsum(picture[c].ravel()) / picture[c].size
    return out


def reflected(i: int, size: int) -> int:
    """The place in 0 ... size - 1 that a place beyond an end is a mirror image of; the end itself is not repeated."""
    if i < 0:
        i = -i
    if i > size - 1:
        i = 2 * (size - 1) - i
    return i


def gaussian_taps(radius: int, sigma: float) -> list[float]:
    raw = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-radius, radius + 1)]
    total = math.fsum(raw)
    return [tap / total for tap in raw]


def fill_blur(x: Any, sigma: float = 5.0, radius: int = 5) -> Array:
    """A Gaussian of 2 * radius + 1 taps along the rows, then along the columns; fewer taps along an axis too short."""
    picture = numbers(x)
    C, H, W = picture.shape
    down, along = min(radius, H - 1), min(radius, W - 1)
    taps_down, taps_along = gaussian_taps(down, sigma), gaussian_taps(along, sigma)
    rows, out = np.zeros(picture.shape), np.zeros(picture.shape)
    for c in range(C):
        for i in range(H):
            for j in range(W):
                for k in range(-along, along + 1):
                    rows[c, i, j] += taps_along[k + along] * picture[c, i, reflected(j + k, W)]
        for i in range(H):
            for j in range(W):
                for k in range(-down, down + 1):
                    out[c, i, j] += taps_down[k + down] * rows[c, reflected(i + k, H), j]
    return out

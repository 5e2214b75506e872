"""Slow replicas of the metrics: float64 loops written from docs/metrics.md and the papers.

They share no code with src/. Each takes ONE picture and ONE map:

- `model`: from (n, C, H, W) float64 tensors to logits (n, classes); it is asked one picture at a time.
- `x`: (C, H, W), the picture; `label`: the class; `values`: (h, w), the raw signed map on its own grid.
- `fill`: (C, H, W), what takes the place of the replaced positions.
- `tie_keys`: numbers, one for each thing that is ranked; of equal values, the one with the lower key comes first.
- `region`: (H, W) of bool.

Positions are flat: row * W + column. A quotient that the definitions leave open (0 / 0) is NaN here, except that a
correlation is 0.0 where one side is constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from replicas.metric_terms import (
    Array,
    Model,
    axis_order,
    mask,
    masked,
    numbers,
    pearson,
    probability,
    quotient,
    replaced,
    share_of,
    signed,
)

ROAD_PERCENTAGES = (10, 20, 30, 40, 50, 60, 70, 80, 90)

# What a mask does to the probability


def average_drop(model: Model, x: Any, values: Any, label: int) -> float:
    """max(0, Y - O) / Y."""
    before, after = _before_and_after(model, x, values, label)
    return quotient(max(0.0, before - after), before)


def increase(model: Model, x: Any, values: Any, label: int) -> float:
    """1 where O > Y."""
    before, after = _before_and_after(model, x, values, label)
    return 1.0 if after > before else 0.0


def average_gain(model: Model, x: Any, values: Any, label: int) -> float:
    """max(0, O - Y) / (1 - Y)."""
    before, after = _before_and_after(model, x, values, label)
    return quotient(max(0.0, after - before), 1.0 - before)


def _before_and_after(model: Model, x: Any, values: Any, label: int) -> tuple[float, float]:
    m = mask(values, numbers(x).shape[1:])
    return probability(model, x, label), probability(model, masked(x, m), label)


def adcc(model: Model, x: Any, values: Any, label: int, explain: Callable[[torch.Tensor], Any]) -> float:
    """The harmonic mean of coherency, 1 - complexity and 1 - average drop; 0.0 where one of them is 0.

    `explain`: from (C, H, W) to the raw (h, w) map of the same class.
    """
    size = numbers(x).shape[1:]
    m = mask(values, size)
    again = mask(explain(torch.tensor(masked(x, m), dtype=torch.float64)), size)
    parts = [
        (1 + pearson(m, again)) / 2,
        1 - math.fsum(m.ravel()) / m.size,
        1 - average_drop(model, x, values, label),
    ]
    if any(part <= 0 for part in parts):
        return 0.0
    return 3 / sum(1 / part for part in parts)


# What replacing positions one after the other does


def deletion_curve(model: Model, x: Any, values: Any, label: int, steps: int, fill: Any, tie_keys: Any) -> list[float]:
    """p(x[S_t]) for t = 0 ... steps, S_t the first round(t / steps * |P|) positions."""
    _, H, W = numbers(x).shape
    order = axis_order(signed(values, (H, W)), tie_keys)
    curve = []
    for t in range(steps + 1):
        taken = order[: share_of(t, steps, H * W)]
        curve.append(probability(model, replaced(x, fill, taken), label))
    return curve


def insertion_curve(model: Model, x: Any, values: Any, label: int, steps: int, fill: Any, tie_keys: Any) -> list[float]:
    """The same where all positions but those in S_t are replaced."""
    _, H, W = numbers(x).shape
    order = axis_order(signed(values, (H, W)), tie_keys)
    curve = []
    for t in range(steps + 1):
        others = order[share_of(t, steps, H * W) :]
        curve.append(probability(model, replaced(x, fill, others), label))
    return curve


def area(curve: Sequence[float]) -> float:
    """Trapezoids, the axis from 0 to 1."""
    return sum((curve[t] + curve[t + 1]) / 2 for t in range(len(curve) - 1)) / (len(curve) - 1)


def patches(size: Sequence[int], cells: int) -> list[list[int]]:
    """The positions of each of cells x cells patches, row by row; some are empty where cells > H or W."""
    H, W = size
    out: list[list[int]] = [[] for _ in range(cells * cells)]
    for i in range(H):
        for j in range(W):
            out[(i * cells // H) * cells + j * cells // W].append(i * W + j)
    return out


def aopc(model: Model, x: Any, values: Any, label: int, cells: int, steps: int, fill: Any, tie_keys: Any) -> float:
    """Mean over t = 0 ... steps of p(x) - p(x[the first t patches]); one tie key for each of cells * cells patches."""
    _, H, W = numbers(x).shape
    s = signed(values, (H, W)).ravel()
    parts = patches((H, W), cells)
    sums = [math.fsum(s[position] for position in part) for part in parts]
    order = axis_order(sums, tie_keys)
    before = probability(model, x, label)
    total = 0.0
    for t in range(steps + 1):
        gone = [position for patch in order[:t] for position in parts[patch]]
        total += before - probability(model, replaced(x, fill, gone), label)
    return total / (steps + 1)


# ROAD (arXiv:2202.00449)


def imputation_neighbours(i: int, j: int, size: Sequence[int]) -> list[tuple[int, float]]:
    """(position, weight) of the neighbours in the picture: 1/6 beside, above and below, 1/12 across a corner."""
    H, W = size
    found = []
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            if (di, dj) != (0, 0) and 0 <= i + di < H and 0 <= j + dj < W:
                found.append(((i + di) * W + j + dj, 1 / 6 if di == 0 or dj == 0 else 1 / 12))
    return found


def linear_system_imputed(x: Any, removed: Any) -> Array:
    """Each removed pixel the weighted mean of its neighbours in the picture, removed ones among them; without noise.

    x_i * sum_j w_ij = sum_j w_ij x_j for every removed i, solved for all of them at once. `removed`: (H, W) of bool.
    """
    out = numbers(x)
    C, H, W = out.shape
    gone = [position for position in range(H * W) if removed[position // W][position % W]]
    if len(gone) == H * W:
        raise ValueError("no pixel is left to impute from")
    if not gone:
        return out
    unknown = {position: row for row, position in enumerate(gone)}
    matrix, right = np.zeros((len(gone), len(gone))), np.zeros((len(gone), C))
    for position, row in unknown.items():
        for neighbour, weight in imputation_neighbours(*divmod(position, W), (H, W)):
            matrix[row, row] += weight
            if neighbour in unknown:
                matrix[row, unknown[neighbour]] -= weight
            else:
                for c in range(C):
                    right[row, c] += weight * out[c, neighbour // W, neighbour % W]
    solution = np.linalg.solve(matrix, right)
    for position, row in unknown.items():
        for c in range(C):
            out[c, position // W, position % W] = solution[row, c]
    return out


def road_percentages(
    model: Model, x: Any, values: Any, label: int, tie_keys: Any, last: bool, noise: Any = None
) -> list[float]:
    """p for 10, 20 ... 90 % of the positions imputed, the first of the order or the last.

    `noise`: (C, H, W), added to what is imputed; the same numbers at each percentage.
    """
    _, H, W = numbers(x).shape
    order = axis_order(signed(values, (H, W)), tie_keys)
    found = []
    for q in ROAD_PERCENTAGES:
        count = share_of(q, 100, H * W)
        gone = order[len(order) - count :] if last else order[:count]
        removed = np.zeros((H, W), dtype=bool)
        for position in gone:
            removed[position // W, position % W] = True
        imputed = linear_system_imputed(x, removed)
        if noise is not None:
            imputed = replaced(imputed, imputed + numbers(noise), gone)
        found.append(probability(model, imputed, label))
    return found


def road_morf(model: Model, x: Any, values: Any, label: int, tie_keys: Any, noise: Any = None) -> float:
    """Most relevant first."""
    found = road_percentages(model, x, values, label, tie_keys, False, noise)
    return sum(found) / len(found)


def road_lerf(model: Model, x: Any, values: Any, label: int, tie_keys: Any, noise: Any = None) -> float:
    """Least relevant first."""
    found = road_percentages(model, x, values, label, tie_keys, True, noise)
    return sum(found) / len(found)


def road(model: Model, x: Any, values: Any, label: int, tie_keys: Any, noise: Any = None) -> float:
    least = road_lerf(model, x, values, label, tie_keys, noise)
    most = road_morf(model, x, values, label, tie_keys, noise)
    return (least - most) / 2


# Does the map add up to what the score loses


def mufidelity(model: Model, x: Any, values: Any, label: int, subsets: Any, fill: Any) -> float:
    """Pearson correlation of the sum of s over S with p(x) - p(x[S]). `subsets`: (samples, cells, cells) of bool."""
    _, H, W = numbers(x).shape
    s = signed(values, (H, W)).ravel()
    before = probability(model, x, label)
    parts = patches((H, W), len(subsets[0]))
    sums, drops = [], []
    for subset in subsets:
        chosen = [bool(cell) for row in subset for cell in row]
        gone = [position for part, taken in zip(parts, chosen, strict=True) if taken for position in part]
        sums.append(math.fsum(s[position] for position in gone))
        drops.append(before - probability(model, replaced(x, fill, gone), label))
    return pearson(sums, drops)


def infidelity(f: Model, x: Any, values: Any, subsets: Any, fill: Any) -> float:
    """Mean of (beta * sum of s over S - (f(x) - f(x[S])))^2 with the best beta; `subsets`: (samples, H, W) of bool.

    `f`: from (n, C, H, W) float64 to n scores.
    """

    def asked(picture: Any) -> float:
        with torch.no_grad():
            return float(numbers(f(torch.tensor(numbers(picture)[None], dtype=torch.float64))).ravel()[0])

    _, H, W = numbers(x).shape
    s = signed(values, (H, W)).ravel()
    before = asked(x)
    sums, drops = [], []
    for subset in subsets:
        gone = [position for position in range(H * W) if subset[position // W][position % W]]
        sums.append(math.fsum(s[position] for position in gone))
        drops.append(before - asked(replaced(x, fill, gone)))
    # The derivative by beta, 2 * sum a (beta a - b), is zero at sum a b / sum a^2.
    squares = math.fsum(a * a for a in sums)
    beta = math.fsum(a * b for a, b in zip(sums, drops, strict=True)) / squares if squares > 0 else 0.0
    return math.fsum((beta * a - b) ** 2 for a, b in zip(sums, drops, strict=True)) / len(sums)


def max_sensitivity(explain: Callable[[torch.Tensor], Any], x: Any, draws: Any) -> float:
    """Max over d of norm(h(x + d) - h(x)) / norm(h(x)). `draws`: (samples, C, H, W); `explain`: (C, H, W) to (h, w)."""

    def explained(picture: Array) -> Array:
        return numbers(explain(torch.tensor(picture, dtype=torch.float64)))

    def norm(h: Array) -> float:
        return math.sqrt(math.fsum(one**2 for one in h.ravel()))

    picture = numbers(x)
    h = explained(picture)
    return max(quotient(norm(explained(picture + numbers(d)) - h), norm(h)) for d in draws)


# Does it point at the region


def pointing_game(values: Any, region: Any, tolerance: float) -> float:
    """Share of the maxima of s with a pixel of the region at a Euclidean distance of at most `tolerance`."""
    inside = np.array(region, dtype=bool)
    H, W = inside.shape
    s = signed(values, (H, W))
    highest = max(s[i, j] for i in range(H) for j in range(W))
    maxima = [(i, j) for i in range(H) for j in range(W) if s[i, j] == highest]
    hits = 0
    for i, j in maxima:
        squares = [(i - k) ** 2 + (j - n) ** 2 for k in range(H) for n in range(W) if inside[k, n]]
        hits += any(square <= tolerance**2 for square in squares)
    return hits / len(maxima)


def energy_pointing_game(values: Any, region: Any) -> float:
    """Sum of max(s, 0) over the region, over its sum over all positions."""
    inside = np.array(region, dtype=bool)
    H, W = inside.shape
    s = signed(values, (H, W))
    everywhere = [max(s[i, j], 0.0) for i in range(H) for j in range(W)]
    there = [max(s[i, j], 0.0) for i in range(H) for j in range(W) if inside[i, j]]
    return quotient(math.fsum(there), math.fsum(everywhere))


def relevance_rank_accuracy(values: Any, region: Any) -> float:
    """Share of the |R| highest positions that lie in R, expected where the order of equal ones is drawn evenly."""
    inside = np.array(region, dtype=bool).ravel().tolist()
    s = signed(values, np.array(region).shape).ravel().tolist()
    count = sum(inside)
    if count == 0:
        return math.nan
    last = sorted(s, reverse=True)[count - 1]  # the lowest value that still gets a place
    above = sum(one > last for one in s)
    equal = sum(one == last for one in s)
    above_inside = sum(one > last and r for one, r in zip(s, inside, strict=True))
    equal_inside = sum(one == last and r for one, r in zip(s, inside, strict=True))
    # count - above places go to `equal` candidates, each as likely as the other.
    return float((above_inside + Fraction((count - above) * equal_inside, equal)) / count)


def iou(values: Any, region: Any, threshold: float) -> float:
    """|B and R| / |B or R|, B where m > threshold."""
    inside = np.array(region, dtype=bool)
    H, W = inside.shape
    m = mask(values, (H, W))
    both = either = 0
    for i in range(H):
        for j in range(W):
            bright = m[i, j] > threshold
            both += bool(bright and inside[i, j])
            either += bool(bright or inside[i, j])
    return quotient(both, either)


# How much of the map is used


def gini(values: Any) -> float:
    """Half of the mean absolute difference between two of the numbers |h|, over their mean."""
    flat = [abs(one) for one in numbers(values).ravel().tolist()]
    difference = math.fsum(abs(a - b) for a in flat for b in flat) / len(flat) ** 2
    return quotient(difference, 2 * math.fsum(flat) / len(flat))


def entropy(values: Any) -> float:
    """-sum q log q with q = |h| / sum |h|, in natural logarithms; 0 log 0 is 0."""
    flat = [abs(one) for one in numbers(values).ravel().tolist()]
    total = math.fsum(flat)
    if total == 0:
        return math.nan
    return -math.fsum(one / total * math.log(one / total) for one in flat if one / total > 0)

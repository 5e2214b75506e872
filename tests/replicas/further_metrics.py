"""Slow replicas of further metrics, in the terms of metric_terms.py: one picture and one map, in float64 loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from replicas.metric_terms import (
    Array,
    Model,
    average_ranks,
    axis_order,
    numbers,
    pearson,
    probability,
    replaced,
    signed,
)
from replicas.metrics import area, patches


def logits(model: Model, x: Any) -> list[float]:
    with torch.no_grad():
        found: list[float] = numbers(model(torch.tensor(numbers(x)[None], dtype=torch.float64)))[0].tolist()
    return found


def predicted(model: Model, x: Any) -> int:
    found = logits(model, x)
    return max(range(len(found)), key=lambda label: found[label])


# Does it point at the region


def auc(values: Any, region: Any) -> float:
    """The share of the pairs (a position in the region, one outside) that are in the right order; a tie is a half."""
    inside = numbers(region).ravel() > 0
    s = signed(values, numbers(region).shape).ravel().tolist()
    pairs = [(a, b) for a, i in zip(s, inside, strict=True) if i for b, o in zip(s, inside, strict=True) if not o]
    if not inside.any():
        return math.nan
    return math.fsum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs) if pairs else 0.5


def top_k(values: Any, region: Any, k: int) -> float:
    """The mean over k places of the chance that a position of the region has it."""
    inside = numbers(region).ravel() > 0
    s = signed(values, numbers(region).shape).ravel().tolist()
    if not inside.any():
        return math.nan
    total = 0.0
    for one, there in zip(s, inside, strict=True):
        above, equal = sum(other > one for other in s), sum(other == one for other in s)
        total += there * min(1.0, max(0.0, (k - above) / equal))
    return total / k


# How much of the map is used


def effective_complexity(values: Any, threshold: float) -> float:
    flat = [abs(one) for one in numbers(values).ravel().tolist()]
    largest = max(flat)
    return sum(one > threshold * largest or largest == 0 for one in flat) / len(flat)


# What replacing positions does


def patch_order(x: Any, values: Any, cells: int, tie_keys: Any) -> list[list[int]]:
    """The positions of each patch, the patch with the highest sum first."""
    size = numbers(x).shape[1:]
    s, parts = signed(values, size).ravel(), patches(size, cells)
    return [parts[number] for number in axis_order([math.fsum(s[at] for at in part) for part in parts], tie_keys)]


def selectivity(model: Model, x: Any, values: Any, label: int, cells: int, fill: Any, tie_keys: Any) -> float:
    """Remove the patches one after the other, the most relevant first; the area under p."""
    picture, curve = numbers(x), [probability(model, x, label)]
    for part in patch_order(x, values, cells, tie_keys):
        picture = replaced(picture, fill, part)
        curve.append(probability(model, picture, label))
    return area(curve)


def monotonicity(model: Model, x: Any, values: Any, label: int, cells: int, fill: Any, tie_keys: Any) -> float:
    """Begin with nothing, and add the patches, the least relevant first; the share of the steps without a fall of p."""
    picture = numbers(fill)
    p, steps = probability(model, picture, label), []
    for part in reversed(patch_order(x, values, cells, tie_keys)):
        picture = replaced(picture, x, part)
        before, p = p, probability(model, picture, label)
        steps.append(p >= before - 1e-5 * before)
    return sum(steps) / len(steps)


def monotonicity_correlation(model: Model, x: Any, values: Any, label: int, cells: int, contents: Any) -> float:
    """Spearman correlation of abs(sum of s) of a patch with the mean of (p - p')^2. `contents`: (draws, C, H, W)."""
    size = numbers(x).shape[1:]
    s, p = signed(values, size).ravel(), probability(model, x, label)
    sums, effects = [], []
    for part in patches(size, cells):
        sums.append(abs(math.fsum(s[at] for at in part)))
        changes = [(p - probability(model, replaced(x, drawn, part), label)) ** 2 for drawn in contents]
        effects.append(math.fsum(changes) / len(changes))
    return pearson(average_ranks(sums), average_ranks(effects))


def sufficiency(
    model: Model, x: Any, values: Any, label: int, share: float, subsets: Any, fill: Any, tie_keys: Any
) -> float:
    """The share of x' with argmax f(x') = label. `subsets`: (draws, cells, cells) of bool, the patches that go."""
    size = numbers(x).shape[1:]
    stay = set(axis_order(signed(values, size), tie_keys)[: round(share * size[0] * size[1])])
    hits = []
    for subset in subsets:
        chosen = [bool(cell) for row in subset for cell in row]
        parts = zip(patches(size, len(subset)), chosen, strict=True)
        gone = [at for part, taken in parts if taken for at in part if at not in stay]
        hits.append(predicted(model, replaced(x, fill, gone)) == label)
    return sum(hits) / len(hits)


def sensitivity_n(f: Model, x: Any, values: Any, subsets_of_size: Sequence[Any], fill: Any) -> list[float]:
    """For each n, Pearson correlation of the sum of s over S with f(x) - f(x[S]). `f`: (1, C, H, W) to a score."""
    size = numbers(x).shape[1:]
    s, before, found = signed(values, size).ravel(), logits(f, x), []
    for subsets in subsets_of_size:
        sums, losses = [], []
        for subset in subsets:
            gone = [at for at in range(size[0] * size[1]) if numbers(subset).ravel()[at]]
            sums.append(math.fsum(s[at] for at in gone))
            losses.append(before[0] - logits(f, replaced(x, fill, gone))[0])
        found.append(pearson(sums, losses))
    return found


def subset_sizes(positions: int, count: int) -> list[int]:
    """From 1 % to 80 % of the positions, each 80 ** (1 / (count - 1)) times the one before."""
    return [max(1, round(positions / 100 * 80 ** (i / max(1, count - 1)))) for i in range(count)]


def completeness(f: Model, x: Any, values: Any, fill: Any) -> float:
    """abs(sum h - (f(x) - f(fill))). `f`: (1, C, H, W) to a score."""
    return abs(math.fsum(numbers(values).ravel()) - (logits(f, x)[0] - logits(f, fill)[0]))


# How the map changes with the picture. `draws`: (draws, C, H, W); `explain`: (C, H, W) to (h, w).


def norm(values: Any) -> float:
    return math.sqrt(math.fsum(one**2 for one in numbers(values).ravel()))


def explained(explain: Callable[[torch.Tensor], Any], x: Any) -> Array:
    return numbers(explain(torch.tensor(numbers(x), dtype=torch.float64)))


def average_sensitivity(explain: Callable[[torch.Tensor], Any], x: Any, draws: Any) -> float:
    h = explained(explain, x)
    changes = [norm(explained(explain, numbers(x) + numbers(d)) - h) / norm(h) for d in draws]
    return math.fsum(changes) / len(changes)


def local_lipschitz(explain: Callable[[torch.Tensor], Any], x: Any, draws: Any) -> float:
    """Max over d of norm(u(x + d) - u(x)) / norm(d), u = h / max abs h."""

    def unit(picture: Any) -> Array:
        h = explained(explain, picture)
        return h / max(abs(one) for one in h.ravel())

    return max(norm(unit(numbers(x) + numbers(d)) - unit(x)) / norm(d) for d in draws)


def percent_change(before: Any, after: Any) -> float:
    """norm((after - before) / before), no divisor below a millionth of the largest."""
    b, a = numbers(before).ravel(), numbers(after).ravel()
    least = 1e-6 * max(abs(one) for one in b)
    return norm([(v - u) / max(abs(u), least) for u, v in zip(b, a, strict=True)])


def relative_input_stability(explain: Callable[[torch.Tensor], Any], model: Model, x: Any, draws: Any) -> float:
    return _relative_stability(explain, model, x, draws, lambda after: percent_change(x, after))


def relative_output_stability(explain: Callable[[torch.Tensor], Any], model: Model, x: Any, draws: Any) -> float:
    before = numbers(logits(model, x))
    return _relative_stability(explain, model, x, draws, lambda after: norm(numbers(logits(model, after)) - before))


def _relative_stability(
    explain: Callable[[torch.Tensor], Any], model: Model, x: Any, draws: Any, change: Callable[[Array], float]
) -> float:
    h, found = explained(explain, x), []
    for d in draws:
        after = numbers(x) + numbers(d)
        if predicted(model, after) == predicted(model, x):
            found.append(percent_change(h, explained(explain, after)) / max(change(after), 1e-6))
    return max(found) if found else math.nan

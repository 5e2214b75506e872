"""Curve metrics: the probability while the input is removed, or put back, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchpeek.argument_types import Cells, Count
from torchpeek.errors import OptionError
from torchpeek.metrics.case import Case, rounding_of
from torchpeek.metrics.fills import Baseline, fill_key, filled
from torchpeek.metrics.metric import MetricResult, metric
from torchpeek.metrics.patches import patch_sums, patches


def _steps(options: Mapping[str, Any]) -> int:
    return int(options["steps"])


def _patches(options: Mapping[str, Any]) -> int:
    return int(options["cells"]) ** 2  # of a picture


@metric("deletion", needs="passes", higher_is_better=False, paper="arXiv:1806.07421", passes=_steps, reads="p")
def deletion(case: Case, *, steps: Count = 50, baseline: Baseline = "zeros") -> MetricResult:
    """Area under the probability as the highest positions are removed first (RISE, section 4).

    Args:
        steps: Number of steps from the whole input to nothing of it.
        baseline: What replaces removed positions: "zeros", "mean", "blur", "noise", a number, a tensor or a function.
    """
    return _area(_replaced(case, steps, baseline, removed_first=True))


@metric("insertion", needs="passes", higher_is_better=True, paper="arXiv:1806.07421", passes=_steps, reads="p")
def insertion(case: Case, *, steps: Count = 50, baseline: Baseline = "blur") -> MetricResult:
    """Area under the probability as the highest positions are put back first (RISE, section 4).

    Args:
        steps: Number of steps from nothing of the input to the whole of it.
        baseline: What stands at positions that are not put back: "zeros", "mean", "blur", "noise", a number, a
            tensor or a function.
    """
    return _area(_replaced(case, steps, baseline, removed_first=False))


def _area(curve: Tensor) -> MetricResult:
    steps = curve.shape[2] - 1
    return MetricResult((curve.sum(2) - (curve[..., 0] + curve[..., -1]) / 2) / steps, curve)


def _replaced(case: Case, steps: int, baseline: Baseline, *, removed_first: bool) -> Tensor:
    """(N, J, steps + 1): the probability with the first round(t / steps * P) positions replaced, or all others."""
    fill = filled(case.clean, baseline)
    positions = case.size.numel()
    counts = [round(step * positions / steps) for step in range(steps + 1)]

    def replaced(inputs: Tensor, rows: Tensor, maps: Tensor, trials: Tensor) -> Tensor:
        taken = torch.tensor([counts[1 + trial] for trial in trials.tolist()], device=inputs.device)
        first = case.ranks[rows, maps] < taken.view(-1, *(1 for _ in case.size))  # (b, *size)
        gone = first if removed_first else ~first
        return torch.where(gone.unsqueeze(1), fill[rows].to(inputs), inputs)

    # Both ends are the same for every heatmap: the whole input, whose pass is the clean one, and nothing of it.
    empty = case.rescored_alike(("empty", fill_key(baseline)), lambda inputs, rows, trials: fill[rows].to(inputs), 1)
    whole = case.scores.unsqueeze(2)
    ends = (whole, empty) if removed_first else (empty, whole)
    between = [case.rescored(replaced, steps - 1)] if steps > 1 else []
    return torch.cat([ends[0], *between, ends[1]], dim=2)


@metric("aopc", needs="passes", higher_is_better=True, paper="arXiv:1509.06321", passes=_steps, reads="p")
def aopc(case: Case, *, cells: Cells = 8, steps: Count = 32, baseline: Baseline = "noise") -> MetricResult:
    """Mean fall of the probability as the highest patches are removed one by one (Samek et al.).

    Args:
        cells: Number of patches along each axis.
        steps: Number of patches to remove.
        baseline: What replaces removed patches: "zeros", "mean", "blur", "noise", a number, a tensor or a function.
    """
    number = cells ** len(case.size)
    if steps > number:
        raise OptionError(f"option steps is {steps}; allowed: up to {number}, the number of patches with cells={cells}")
    curve = _without_patches(case, cells, steps, baseline)
    return MetricResult((curve[..., :1] - curve).mean(2), curve)


@metric("selectivity", needs="passes", higher_is_better=False, paper="arXiv:1706.07979", passes=_patches, reads="p")
def selectivity(case: Case, *, cells: Cells = 6, baseline: Baseline = "zeros") -> MetricResult:
    """Area under the probability as all patches are removed, the highest ones first (Montavon et al.).

    Args:
        cells: Number of patches along each axis.
        baseline: What replaces removed patches: "zeros", "mean", "blur", "noise", a number, a tensor or a function.
    """
    return _area(_without_patches(case, cells, cells ** len(case.size), baseline))


@metric("monotonicity", needs="passes", higher_is_better=True, paper="arXiv:1909.03012", passes=_patches, reads="p")
def monotonicity(case: Case, *, cells: Cells = 6, baseline: Baseline = "zeros") -> MetricResult:
    """Share of the steps without a fall of the probability as the patches are put in, the lowest ones first (AIX360).

    It is 1 for the heatmaps that Arya et al. call monotonic. A fall has to exceed rounding.

    Args:
        cells: Number of patches along each axis.
        baseline: What stands at patches that are not put in yet: "zeros", "mean", "blur", "noise", a number, a tensor
            or a function.
    """
    # To put in the lowest first is to remove the highest first, seen from the end.
    curve = _without_patches(case, cells, cells ** len(case.size), baseline).flip(2)
    before, after = curve[..., :-1], curve[..., 1:]
    risen = after >= before - rounding_of(case.inputs) * before.abs()
    return MetricResult(risen.to(curve).mean(2), curve)


def _without_patches(case: Case, cells: int, steps: int, baseline: Baseline) -> Tensor:
    """(N, J, steps + 1): the probability with the first 0 ... steps patches removed, in descending order of their sum.

    It is computed once for all metrics that remove the same patches.
    """
    index = patches(case.size, cells).to(case.values.device)
    fill = filled(case.clean, baseline)

    def make() -> Tensor:
        ranks = case.ranked(patch_sums(case.signed, index, cells ** len(case.size)))[..., index]  # (N, J, *size)

        def removed(inputs: Tensor, rows: Tensor, maps: Tensor, trials: Tensor) -> Tensor:
            gone = ranks[rows, maps] <= trials.to(inputs.device).view(-1, *(1 for _ in case.size))
            return torch.where(gone.unsqueeze(1), fill[rows].to(inputs), inputs)

        return torch.cat([case.scores.unsqueeze(2), case.rescored(removed, steps)], dim=2)

    return case.once(("patches", cells, steps, fill_key(baseline)), make)

"""ROAD metrics: the probability while positions are imputed from their neighbours, which leaves no visible hole."""

from __future__ import annotations

import torch
from torch import Tensor

from torchpeek.engine.numerics import at_least_float32
from torchpeek.metrics.case import Case
from torchpeek.metrics.imputation import imputed
from torchpeek.metrics.metric import MetricResult, metric

_PERCENT = tuple(range(10, 100, 10))
_NOISE = 0.01  # standard deviation at imputed positions, as in the authors' code
_PAPER = "arXiv:2202.00449"


@metric(
    "road-morf", needs="passes", higher_is_better=False, paper=_PAPER, passes=lambda options: len(_PERCENT), reads="p"
)
def road_morf(case: Case) -> MetricResult:
    """Mean probability with the highest 10, 20 ... 90 % of the positions imputed."""
    curve = _imputed_scores(case)[..., : len(_PERCENT)]
    return MetricResult(curve.mean(2), curve)


@metric(
    "road-lerf", needs="passes", higher_is_better=True, paper=_PAPER, passes=lambda options: len(_PERCENT), reads="p"
)
def road_lerf(case: Case) -> MetricResult:
    """Mean probability with the lowest 10, 20 ... 90 % of the positions imputed."""
    curve = _imputed_scores(case)[..., len(_PERCENT) :]
    return MetricResult(curve.mean(2), curve)


@metric(
    "road", needs="passes", higher_is_better=True, paper=_PAPER, passes=lambda options: 2 * len(_PERCENT), reads="p"
)
def road(case: Case) -> MetricResult:
    """Half the difference of road-lerf and road-morf: how much more the highest positions matter than the lowest."""
    return MetricResult((road_lerf(case).values - road_morf(case).values) / 2)


def _imputed_scores(case: Case) -> Tensor:
    """(N, J, 18): the probability with the highest, then with the lowest 10 ... 90 % imputed.

    It is computed once for the three metrics.
    """
    positions = case.size.numel()
    counts = [round(percent * positions / 100) for percent in _PERCENT]
    noises = torch.stack(
        [torch.randn(case.inputs.shape[1:], generator=each, dtype=torch.float64) for each in case.clean.generators(4)]
    ).to(case.inputs)

    def change(inputs: Tensor, rows: Tensor, maps: Tensor, trials: Tensor) -> Tensor:
        taken = torch.tensor([counts[trial % len(counts)] for trial in trials.tolist()], device=inputs.device)
        taken = taken.view(-1, *(1 for _ in case.size))
        ranks, highest = case.ranks[rows, maps], (trials < len(counts)).to(inputs.device).view(taken.shape)
        removed = torch.where(highest, ranks < taken, ranks >= positions - taken)  # (b, *size)
        smooth = imputed(at_least_float32(inputs), removed).to(inputs)
        return smooth + _NOISE * noises[rows].to(inputs) * removed.unsqueeze(1)

    return case.once("road", lambda: case.rescored(change, 2 * len(counts)))

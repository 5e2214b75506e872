"""Sensitivity metrics: how the heatmap changes when the input changes a little. They explain anew.

All of them share their draws: the explanations run once for all metrics with the same options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchpeek.argument_types import Count, NonNegative
from torchpeek.engine.targets import ClassScores
from torchpeek.metrics.case import Case
from torchpeek.metrics.metric import MetricResult, metric

_LEAST = 1e-6  # the smallest divisor of the relative stabilities


def _samples(options: Mapping[str, Any]) -> int:
    return int(options["samples"])


class Changes(NamedTuple):
    """How far the heatmap and the input change in each of a number of draws. The norms are Euclidean."""

    size: Tensor
    """(N, J): norm(h) of the heatmaps h before."""
    heatmap: Tensor
    """(N, J, draws): norm(h' - h)."""
    unit: Tensor
    """(N, J, draws): the same with h and h' divided by their largest absolute value."""
    relative: Tensor
    """(N, J, draws): norm((h' - h) / h)."""
    input: Tensor
    """(N, draws): norm(x' - x)."""
    relative_input: Tensor
    """(N, draws): norm((x' - x) / x)."""


@metric(
    "max-sensitivity", needs="explanations", higher_is_better=False, paper="arXiv:1901.09392", explanations=_samples
)
def max_sensitivity(case: Case, *, samples: Count = 10, radius: NonNegative = 0.02) -> MetricResult:
    """The largest relative change of the heatmap when the input changes by at most `radius` in every number.

    A method that always returns the same heatmap reaches the best value, 0.

    Args:
        samples: Number of random changes.
        radius: The largest change of a number of the input.
    """
    changes = _changes(case, samples, radius)
    return MetricResult(_share_of_size(changes.heatmap.amax(2), changes.size).to(case.values))


@metric(
    "average-sensitivity", needs="explanations", higher_is_better=False, paper="arXiv:1901.09392", explanations=_samples
)
def average_sensitivity(case: Case, *, samples: Count = 10, radius: NonNegative = 0.02) -> MetricResult:
    """The mean relative change of the heatmap when the input changes by at most `radius` in every number.

    A method that always returns the same heatmap reaches the best value, 0.

    Args:
        samples: Number of random changes.
        radius: The largest change of a number of the input.
    """
    changes = _changes(case, samples, radius)
    return MetricResult(_share_of_size(changes.heatmap.mean(2), changes.size).to(case.values))


def _share_of_size(change: Tensor, size: Tensor) -> Tensor:
    """Divide a change by the size. A heatmap of zeros that stays zero has not changed; else the change is infinite."""
    return torch.where(size > 0, change / size, torch.where(change > 0, torch.inf, 0))


@metric(
    "local-lipschitz", needs="explanations", higher_is_better=False, paper="arXiv:1806.08049", explanations=_samples
)
def local_lipschitz(case: Case, *, samples: Count = 10, radius: NonNegative = 0.02) -> MetricResult:
    """The largest change of the heatmap for each unit by which the input changes (Alvarez-Melis and Jaakkola).

    The heatmaps are divided by their largest absolute value first, because their own scale has no meaning. A method
    that always returns the same heatmap reaches the best value, 0.

    Args:
        samples: Number of random changes.
        radius: The largest change of a number of the input.
    """
    changes = _changes(case, samples, radius)
    moved = changes.input.unsqueeze(1)  # (N, 1, samples)
    return MetricResult(torch.where(moved > 0, changes.unit / moved, 0).amax(2).to(case.values))


@metric(
    "relative-input-stability",
    needs="explanations",
    higher_is_better=False,
    paper="arXiv:2203.06877",
    passes=_samples,
    explanations=_samples,
    shared=True,
)
def relative_input_stability(case: Case, *, samples: Count = 10, radius: NonNegative = 0.02) -> MetricResult:
    """The largest relative change of the heatmap over the relative change of the input (Agarwal et al.).

    Changes of the input that change the predicted class do not count. If all of them do, the value is NaN. A method
    that always returns the same heatmap reaches the best value, 0.

    Args:
        samples: Number of random changes.
        radius: The largest change of a number of the input.
    """
    changes = _changes(case, samples, radius)
    _, same = _output_changes(case, samples, radius)
    return _largest(changes.relative / changes.relative_input.unsqueeze(1).clamp(min=_LEAST), same, case)


@metric(
    "relative-output-stability",
    needs="explanations",
    higher_is_better=False,
    paper="arXiv:2203.06877",
    passes=_samples,
    explanations=_samples,
    shared=True,
)
def relative_output_stability(case: Case, *, samples: Count = 10, radius: NonNegative = 0.02) -> MetricResult:
    """The largest relative change of the heatmap over the change of the model's output (Agarwal et al.).

    The output is the logits of all classes; for another target, it is the score. Changes of the input that change the
    predicted class do not count. If all of them do, the value is NaN. A method that always returns the same heatmap
    reaches the best value, 0.

    Args:
        samples: Number of random changes.
        radius: The largest change of a number of the input.
    """
    changes = _changes(case, samples, radius)
    moved, same = _output_changes(case, samples, radius)
    return _largest(changes.relative / moved.clamp(min=_LEAST), same, case)


def _largest(ratios: Tensor, counts: Tensor, case: Case) -> MetricResult:
    """The largest ratio (N, J, draws) of the draws that count, (N, 1 or J, draws). NaN if none does."""
    largest = torch.where(counts, ratios, -torch.inf).amax(2)
    return MetricResult(torch.where(counts.any(2), largest, torch.nan).to(case.values))


def _changed_inputs(case: Case, samples: int, radius: float) -> Iterator[Tensor]:
    """Yield the inputs with a random number between -radius and radius added to each of their numbers."""
    generators = case.clean.generators(salt=2)
    for _ in range(samples):
        drawn = [torch.rand(case.inputs.shape[1:], generator=each, dtype=torch.float64) for each in generators]
        yield case.inputs + (2 * torch.stack(drawn).to(case.inputs) - 1) * radius


def _changes(case: Case, samples: int, radius: float) -> Changes:
    """Explain each changed input once, for all metrics with the same draws."""

    def make() -> Changes:
        before = case.values.flatten(2).double()  # (N, J, positions)
        size = before.norm(dim=2)
        picture = case.inputs.flatten(1).double().unsqueeze(1)  # (N, 1, numbers)
        columns: list[tuple[Tensor, ...]] = []
        for changed in _changed_inputs(case, samples, radius):
            after = case.explained(changed).flatten(2).double()
            change = (after - before).norm(dim=2)
            relative = _relative(after - before, before)
            moved = changed.flatten(1).double().unsqueeze(1) - picture
            columns.append(
                (
                    change,
                    (_unit(after) - _unit(before)).norm(dim=2),
                    torch.where((size == 0) & (change > 0), torch.inf, relative),
                    moved.norm(dim=2).squeeze(1),
                    _relative(moved, picture).squeeze(1),
                )
            )
        return Changes(size, *(torch.stack(each, -1) for each in zip(*columns, strict=True)))

    return case.once(("changes", samples, radius), make)


def _unit(values: Tensor) -> Tensor:
    """Divide by the largest absolute value, (N, J, n). Zeros stay zeros."""
    largest = values.abs().amax(2, keepdim=True)
    return torch.where(largest > 0, values / largest, 0)


def _relative(change: Tensor, values: Tensor) -> Tensor:
    """Return norm(change / values), (N, J, n) twice -> (N, J). No divisor is below a millionth of the largest value."""
    sizes = values.abs()
    largest = sizes.amax(2, keepdim=True)
    least = _LEAST * torch.where(largest > 0, largest, 1)
    return (change / torch.maximum(sizes, least)).square().sum(2).sqrt()


def _output_changes(case: Case, samples: int, radius: float) -> tuple[Tensor, Tensor]:
    """Return how far the output changes, and whether the predicted class stays. Both (N, 1 or J, draws)."""
    question = case.clean.trace.question
    trace = case.clean.logits if isinstance(question, ClassScores) else case.clean.trace

    def make() -> Tensor:
        each = [
            trace.rescore(partial(_replaced, changed), 1, batch=case.clean.batch)
            for changed in _changed_inputs(case, samples, radius)
        ]
        return torch.cat(each, dim=1)  # (N, draws, classes or K)

    before = trace.scores.unsqueeze(1)
    after = case.clean.once(("output of changes", samples, radius), make)
    if not isinstance(question, ClassScores):  # each score is an output of its own
        moved = (after - before).double().abs().mT[:, case.columns]
        return moved, torch.ones_like(moved, dtype=torch.bool)
    moved = (after - before).double().norm(dim=2).unsqueeze(1)
    if question.is_sigmoid:  # the model decides for each class by itself
        likely = [_likely(question, logits) for logits in (after, before)]
        return moved, (likely[0] == likely[1])[:, case.columns]
    return moved, (_predicted(after) == _predicted(before)).unsqueeze(1)


def _replaced(changed: Tensor, inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
    return changed[rows].to(inputs)


def _likely(question: ClassScores, logits: Tensor) -> Tensor:
    """Return whether each class of the question is predicted under a sigmoid, (N, draws, classes) -> (N, K, draws)."""
    probability, rows = replace(question.as_probabilities(), part=""), torch.arange(len(logits))
    return torch.stack([probability(each, rows) > 0.5 for each in logits.unbind(1)], dim=2)


def _predicted(logits: Tensor) -> Tensor:
    """Return the predicted class, (..., classes) -> (...). One logit predicts by its sign."""
    return logits.argmax(-1) if logits.shape[-1] > 1 else logits.squeeze(-1) > 0

"""Stability metrics: how the heatmap changes with the model, the class or the masked input. They explain anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from torchpeek.argument_types import Cells
from torchpeek.engine import NotIndependent, check_independent, copied_model, output_part
from torchpeek.engine.targets import class_logits
from torchpeek.errors import MetricNotApplicable
from torchpeek.heatmap import unit_range, upsample
from torchpeek.metrics.case import Case, check_computed
from torchpeek.metrics.correlation import correlation, rank_correlation
from torchpeek.metrics.metric import MetricResult, metric
from torchpeek.norms import mean_and_std


def _one(options: Mapping[str, Any]) -> int:
    return 1


@metric(
    "randomisation",
    needs="explanations",
    higher_is_better=False,
    paper="arXiv:1810.03292",
    explanations=lambda options: int(options["stages"]),
)
def randomisation(case: Case, *, stages: Cells = 8) -> MetricResult:
    """Absolute rank correlation with the heatmap of the model whose parameters are drawn anew, last ones first (MPRT).

    The absolute value is taken because an inverted heatmap still depends on the old one. The modules that have
    parameters are drawn anew in stages of equal size, or one by one if there are fewer modules than stages. `values`
    are the mean over the stages, and `curve` begins with 1, before the first stage. A method that does not depend on
    what the model has learned stays near 1, and one that always returns the same heatmap is 1.

    Args:
        stages: Number of stages.
    """
    correlations, clean_pass = [torch.ones_like(case.values.flatten(2)[..., 0])], case.clean.trace.forward_pass
    for number, model in enumerate(randomised(clean_pass.model, stages, case.clean.seed)):
        if not number:  # before the first explanation, which would change a model that the copy refers to
            with _copies_needed():
                check_independent(model, clean_pass)
        torch.clear_autocast_cache()  # the caller's autocast would go on with the old parameters
        again = case.explained(case.inputs, model=model, draw=1 + number)
        correlations.append(rank_correlation(case.values.flatten(2), again.flatten(2)).abs())
    curve = torch.stack(correlations, dim=2)  # (N, J, stages + 1)
    return MetricResult(curve[..., 1:].mean(2), curve)


@contextmanager
def _copies_needed() -> Iterator[None]:
    """Raise MetricNotApplicable where the model has no copy that is independent of it."""
    try:
        yield
    except NotIndependent as error:
        raise MetricNotApplicable(f"randomisation changes a copy of the model, but {error}") from error


def randomised(model: nn.Module, stages: int, seed: int) -> Iterator[nn.Module]:
    """Yield a copy of the model whose parameters are drawn anew, those of more modules each time, the last ones first.

    The model itself is not changed. Every parameter is drawn, also one that belongs to no leaf module. It is drawn from
    a normal distribution with the parameter's own mean and standard deviation. For a constant parameter the standard
    deviation is a tenth of the constant. Each parameter has its own random numbers.
    """
    with _copies_needed():
        copied = copied_model(model)
    generator, drawn = torch.Generator().manual_seed(seed), set[nn.Parameter]()
    owned: list[list[nn.Parameter]] = []
    for module in copied.modules():
        parameters = [each for each in module.parameters(recurse=False) if each.is_floating_point()]
        own = [
            each for each in dict.fromkeys(parameters) if each not in drawn
        ]  # a shared parameter is drawn with its first module
        drawn.update(own)
        owned += [own] if own else []
    if not owned:
        raise MetricNotApplicable(f"randomisation needs a model with parameters, but {type(model).__name__} has none")
    owned, stages = owned[::-1], min(stages, len(owned))
    for stage in range(stages):
        first, last = (round(len(owned) * each / stages) for each in (stage, stage + 1))
        with torch.inference_mode(False):
            for parameter in (each for own in owned[first:last] for each in own):
                _draw(parameter, generator)
        yield copied


def _draw(parameter: nn.Parameter, generator: torch.Generator) -> None:
    with torch.no_grad():
        values = parameter.detach().double()
        mean, spread = mean_and_std(values)
        normal = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(values.device)
        # A constant parameter: a tenth of the constant, or 0.1 if it is zero.
        apart = spread if spread > 0 else 0.1 * (abs(mean) if mean != 0 else 1)
        parameter.copy_(normal.mul_(apart).add_(mean))  # in place, because the memory for copies takes most of the time


@metric(
    "random-class",
    needs="explanations",
    higher_is_better=False,
    paper="arXiv:1912.09818",
    explanations=_one,
    reads="classes",
)
def random_class(case: Case) -> MetricResult:
    """Absolute rank correlation with the heatmap for another class, drawn at random (Sixt et al.).

    A method that shows the same for every class is 1.
    """
    question = case.clean.trace.question
    number = class_logits(case.clean.trace.output, output_part(question)).shape[1]
    shifts = [
        torch.randint(1, number, question.labels.shape[1:], generator=each) for each in case.clean.generators(salt=3)
    ]
    others = (question.labels + torch.stack(shifts).to(question.labels)) % number  # never the class itself
    again = case.explained(case.inputs, labels=others, draw=1)
    return MetricResult(rank_correlation(case.values.flatten(2), again.flatten(2)).abs())


@metric(
    "adcc",
    needs="explanations",
    higher_is_better=True,
    paper="arXiv:2104.10252",
    passes=_one,
    explanations=_one,
    reads="probability",
)
def adcc(case: Case) -> MetricResult:
    """Harmonic mean of coherency, 1 - complexity and 1 - average drop (Poppi et al.)."""
    check_computed(case, "adcc")
    coherency = torch.zeros_like(case.scores)
    methods, scores = len(case.explainers), case.classes
    rows = torch.arange(len(case.inputs))
    for j in range(methods * scores):
        shown = case.inputs * case.mask[:, j].unsqueeze(1).to(case.inputs)
        again = case.explainers[j // scores](shown, rows)[:, j % scores].unsqueeze(1)  # (N, 1, *grid)
        mask = upsample(unit_range(again.clamp(min=0)), case.size)
        coherency[:, j] = (1 + correlation(case.mask[:, j : j + 1].flatten(2), mask.flatten(2)).squeeze(1)) / 2
    complexity = case.mask.flatten(2).mean(2)
    drop = torch.where(case.scores > 0, (case.scores - case.masked_scores).clamp(min=0) / case.scores, 0)
    parts = torch.stack([coherency, 1 - complexity, 1 - drop])
    # If one part is zero, so is the mean: its limit.
    return MetricResult(torch.where((parts > 0).all(0), 3 / (1 / parts.clamp(min=1e-30)).sum(0), 0))

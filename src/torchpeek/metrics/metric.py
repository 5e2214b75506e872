"""Metric: the definition of a metric, and the registry METRICS."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from torch import Tensor

from torchpeek.errors import MetricNotFound, closest
from torchpeek.keywords import checked_class, checked_keywords
from torchpeek.registry import Registered

Needs: TypeAlias = Literal["heatmap", "region", "passes", "explanations"]
"""What a metric needs: the heatmap alone, the region of the object, passes of the model, or explanations anew."""


Reads: TypeAlias = Literal["score", "p", "probability", "classes"]
"""What a metric reads of the question.

"score": the score, or nothing. "p": the probability of a class, or the score of another target. "probability": the
same, and it has to be a probability. "classes": the other classes.
"""


class MetricResult(NamedTuple):
    """The values of a metric for J heatmaps of each of N samples.

    Args:
        values: (N, J).
        curve: (N, J, steps + 1), or None if the metric has no curve.

    Example:
        >>> result = tp.metrics.MetricResult(torch.zeros(2, 12))
        >>> result.values.shape, result.curve
        (torch.Size([2, 12]), None)
    """

    values: Tensor
    curve: Tensor | None = None


Compute: TypeAlias = Callable[..., MetricResult]
"""Called as `compute(case, **options)`."""

Count: TypeAlias = Callable[[Mapping[str, Any]], int]


@checked_class
@dataclass(frozen=True)
class Metric(Registered):
    """The definition of a metric. `evaluate`, the command line, the documentation and the tests read it.

    Args:
        name: Name of the metric.
        needs: What it needs: "heatmap", "region", "passes" or "explanations".
        higher_is_better: Whether a higher value is better.
        paper: Where it was published: "arXiv:..." or "doi:...".
        compute: Called as `compute(case, **options)`; returns a MetricResult.
        passes: From the options to the number of forward passes for each heatmap; with `shared`, for all heatmaps of a
            sample together.
        explanations: From the options to the number of explanations for each heatmap.
        shared: Whether the passes are the same for all heatmaps of a sample.
        reads: What it reads of the question: "score", "p", "probability" or "classes".

    Example:
        >>> metric = tp.METRICS["deletion"]
        >>> metric.needs, metric.higher_is_better, metric.options
        ('passes', False, {'steps': 50, 'baseline': 'zeros'})
    """

    kind: ClassVar[str] = "metric"

    name: str
    needs: Needs
    higher_is_better: bool
    paper: str
    compute: Compute
    passes: Count = lambda options: 0
    explanations: Count = lambda options: 0
    shared: bool = False
    reads: Reads = "score"

    def cost(self, options: Mapping[str, Any] | None = None) -> str:
        """Return what runs for each heatmap, besides the clean pass that all metrics share.

        Args:
            options: The metric's options. None is the defaults.

        Returns:
            The cost as text.

        Example:
            >>> metric = tp.METRICS["deletion"]
            >>> metric.cost({"steps": 10})
            '10 forward'
        """
        all_options = {**self.options, **(options or {})}
        passes, explanations = self.passes(all_options), self.explanations(all_options)
        parts = [f"{passes} forward" + (" for all heatmaps of a picture together" if self.shared else "")] * bool(
            passes
        )
        parts += [f"{explanations} explanation" + "s" * (explanations > 1)] * bool(explanations)
        return ", ".join(parts) or "nothing"


METRICS: dict[str, Metric] = {}
"""The metrics: name -> Metric."""


@checked_keywords
def metric(name: str, *, needs: Needs, higher_is_better: bool, paper: str, **more: Any) -> Callable[[Compute], Compute]:
    """Register a function as a metric.

    Args:
        name: Name of the metric.
        needs: What it needs: "heatmap", "region", "passes" or "explanations".
        higher_is_better: Whether a higher value is better.
        paper: Where it was published: "arXiv:..." or "doi:...".
        **more: Further fields of Metric.

    Returns:
        A decorator for a function (case, *, options) -> MetricResult. Its docstring's first line is the summary.

    Raises:
        ValueError: When the name is taken, or the function has no docstring.

    Example:
        >>> decorator = tp.metrics.metric("mine", needs="heatmap", higher_is_better=True, paper="")
        >>> callable(decorator)
        True
    """

    def register(compute: Compute) -> Compute:
        if name in METRICS:
            raise ValueError(f"metric {name!r} is registered already, by {METRICS[name].compute.__module__}")
        if not inspect.getdoc(compute):
            raise ValueError(f"metric {name!r} has no docstring; its first line is the summary that users read")
        METRICS[name] = Metric(name, needs, higher_is_better, paper, compute, **more)
        return compute

    return register


@checked_keywords
def find_metric(name: str) -> Metric:
    """Return the metric of that name.

    Args:
        name: Name of the metric.

    Returns:
        The Metric.

    Raises:
        MetricNotFound: When no metric has that name.

    Example:
        >>> metric = tp.metrics.find_metric("entropy")
        >>> metric.higher_is_better
        False
    """
    if not isinstance(name, str) or name not in METRICS:
        raise MetricNotFound(
            f"no metric {name!r}{closest(str(name), METRICS)}; torchpeek metrics lists all {len(METRICS)}"
        )
    return METRICS[name]

"""What a metric is, and the registry of all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from torch import Tensor

from torchpeek.errors import MetricNotFound, closest
from torchpeek.registry import Registered

Needs: TypeAlias = Literal["heatmap", "region", "passes", "explanations"]
"""What a metric reads besides the input: nothing, where the object is, the model, or the method that is scored."""


Reads: TypeAlias = Literal["score", "p", "probability", "classes"]
"""Of what is asked: its score, or nothing; p, whatever that is; p, if it is a probability; the other classes."""


class MetricResult(NamedTuple):
    """What a metric says of J heatmaps of each of N samples."""

    values: Tensor  # (N, J)
    curve: Tensor | None = None  # (N, J, steps + 1)


Compute: TypeAlias = Callable[..., MetricResult]
"""Called as `compute(case, **options)`."""

Count: TypeAlias = Callable[[Mapping[str, Any]], int]


@dataclass(frozen=True)
class Metric(Registered):
    """One number for each heatmap, as data: evaluate, command line, documentation and tests read it."""

    kind: ClassVar[str] = "metric"

    name: str
    needs: Needs
    higher_is_better: bool
    paper: str  # "arXiv:..." or "doi:..."
    compute: Compute
    passes: Count = lambda options: 0  # for each heatmap, or for all of a sample together where `shared`
    explanations: Count = lambda options: 0
    shared: bool = False
    reads: Reads = "score"

    def cost(self, options: Mapping[str, Any] | None = None) -> str:
        """What is run for each heatmap, besides the clean pass that all metrics share."""
        chosen = {**self.options, **(options or {})}
        passes, explanations = self.passes(chosen), self.explanations(chosen)
        parts = [f"{passes} forward" + (" for all heatmaps of a picture together" if self.shared else "")] * bool(
            passes
        )
        parts += [f"{explanations} explanation" + "s" * (explanations > 1)] * bool(explanations)
        return ", ".join(parts) or "nothing"


METRICS: dict[str, Metric] = {}
"""Name -> metric."""


def metric(name: str, *, needs: Needs, higher_is_better: bool, paper: str, **more: Any) -> Callable[[Compute], Compute]:
    """Register a function from a Case to a MetricResult as the metric `name`; `more` are fields of Metric."""

    def register(compute: Compute) -> Compute:
        if name in METRICS:
            raise ValueError(f"metric {name!r} is registered already, by {METRICS[name].compute.__module__}")
        if not inspect.getdoc(compute):
            raise ValueError(f"metric {name!r} needs a docstring; its first line is what users read of it")
        METRICS[name] = Metric(name, needs, higher_is_better, paper, compute, **more)
        return compute

    return register


def find_metric(name: str) -> Metric:
    """The metric of that name. Raises MetricNotFound with the closest ones."""
    if not isinstance(name, str) or name not in METRICS:
        raise MetricNotFound(
            f"no metric {name!r}{closest(str(name), METRICS)}; torchpeek metrics lists all {len(METRICS)}"
        )
    return METRICS[name]

"""Which metrics can be had of what is asked: known from the clean pass, before any other."""

from __future__ import annotations

from torchpeek.engine import Trace
from torchpeek.engine.targets import BoxScores, ClassScores, ComputedScores, class_logits
from torchpeek.errors import MetricNotApplicable
from torchpeek.metrics.case import ONE_LOGIT
from torchpeek.metrics.metric import Metric

_OTHERS = "or choose another metric (torchpeek metrics)"


def check_applies(metric: Metric, trace: Trace) -> None:
    """Raise MetricNotApplicable where what is asked does not give what the metric reads."""
    question = trace.question
    of_classes = isinstance(question, ClassScores)
    several = of_classes and class_logits(trace.output).shape[1] > 1
    if of_classes and not several and metric.reads in ("p", "probability"):
        raise MetricNotApplicable(f"{metric.name} is of probabilities, and {ONE_LOGIT}")
    if metric.reads == "classes" and not several:
        raise MetricNotApplicable(
            f"{metric.name} asks about another class; what is asked here is no class of several. Next: ask for a "
            f"class, {_OTHERS}"
        )
    box = isinstance(question, BoxScores) and question.what == "score"
    if metric.reads == "probability" and not (of_classes or box or isinstance(question, ComputedScores)):
        raise MetricNotApplicable(
            f"{metric.name} is of probabilities, and what is asked here is none: "
            f"{getattr(question, 'kind', question)}. Next: ask for a class, a detected box's score, or "
            f"tp.targets.Computed with numbers in [0, 1]; {_OTHERS}"
        )

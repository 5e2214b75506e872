"""Whether a metric is defined for a question, decided after the clean pass and before any other pass."""

from __future__ import annotations

from torchpeek.engine import Trace, score_kind
from torchpeek.engine.targets import BoxScores, ClassScores, ComputedScores, class_logits
from torchpeek.errors import MetricNotApplicable
from torchpeek.keywords import checked_keywords
from torchpeek.metrics.clean_pass import ONE_LOGIT
from torchpeek.metrics.metric import Metric

_OTHERS = "or choose another metric (torchpeek metrics)"


@checked_keywords
def check_applies(metric: Metric, trace: Trace) -> None:
    """Check that the question has the scores that a metric reads.

    Args:
        metric: The metric.
        trace: The clean pass, whose question is checked.

    Raises:
        MetricNotApplicable: When the metric reads a probability or other classes, and the question has none.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> trace = tp.trace(model, torch.rand(1, 3, 8, 8), layer="0")
        >>> tp.metrics.check_applies(tp.METRICS["random-class"], trace)  # the model has four classes
    """
    question = trace.question
    of_classes = isinstance(question, ClassScores)
    several = isinstance(question, ClassScores) and class_logits(trace.output, question.part).shape[1] > 1
    sigmoid = isinstance(question, ClassScores) and question.is_sigmoid
    if of_classes and not (several or sigmoid) and metric.reads in ("p", "probability"):
        raise MetricNotApplicable(f"{metric.name} needs a probability, but {ONE_LOGIT}")
    if metric.reads == "classes" and not several:
        raise MetricNotApplicable(
            f"{metric.name} compares with another class, but the target is not one of several classes. Next: ask for "
            f"a class, {_OTHERS}"
        )
    box = isinstance(question, BoxScores) and question.what == "score"
    if metric.reads == "probability" and not (of_classes or box or isinstance(question, ComputedScores)):
        raise MetricNotApplicable(
            f"{metric.name} needs a probability, but the target's score is none: "
            f"{score_kind(question)}. Next: ask for a class, a detected box's score, or "
            f"tp.targets.Computed with numbers in [0, 1]; {_OTHERS}"
        )

"""CleanPass: the clean pass of an evaluation, and what is computed once from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from torchpeek.cached import cached_property
from torchpeek.draws import fingerprint, generator
from torchpeek.engine import Trace
from torchpeek.engine.targets import ClassScores, class_logits
from torchpeek.errors import MetricNotApplicable
from torchpeek.keywords import checked_class

Made = TypeVar("Made")

ONE_LOGIT = (
    "the model has one logit, whose softmax is always 1. Next: take the probability under a sigmoid, "
    "tp.targets.SigmoidProbability(), or a metric that reads no probability (torchpeek metrics)"
)


@dataclass(frozen=True, eq=False)
class Memo:
    """Remembers values that are computed once."""

    values_by_key: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, key: object, make: Callable[[], Made]) -> Made:
        """Return what `make` returns. It is called only the first time, and its value is kept under `key`.

        Args:
            key: Names the value.
            make: Computes the value.

        Returns:
            The value.

        Example:
            >>> case = tp.metrics.Case(None, torch.rand(1, 1, 4, 4))
            >>> case.once("half", lambda: 0.5), case.once("half", lambda: 1.0)
            (0.5, 0.5)
        """
        if key not in self.values_by_key:
            self.values_by_key[key] = make()
        value: Made = self.values_by_key[key]
        return value


@checked_class
@dataclass(frozen=True, eq=False)
class CleanPass(Memo):
    """The clean pass of an evaluation. All metrics share it, and so do heatmaps on different grids.

    Args:
        trace: A trace of the clean pass. Its scores (N, K) are those that the heatmaps explain.
        seed: Seed of all random numbers.
        batch: Number of passes that run at once. None is as many as fit into memory.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> clean = tp.metrics.CleanPass(tp.trace(model, torch.rand(1, 3, 8, 8), layer="0", target=2))
        >>> clean.probable.scores.shape
        torch.Size([1, 1])
    """

    trace: Trace
    seed: int = 0
    batch: int | None = None

    @cached_property
    def probable(self) -> Trace:
        """The same pass with the probability in place of a class's score. Other questions stay as they are."""
        question = self.trace.question
        if isinstance(question, ClassScores):
            if not question.is_sigmoid and class_logits(self.trace.output, question.part).shape[1] < 2:
                raise MetricNotApplicable(ONE_LOGIT)
            question = question.as_probabilities()
        return self.trace.with_target(replace(self.trace.bound(), question=question))

    @cached_property
    def logits(self) -> Trace:
        """The same pass with the logits of all classes, (N, classes), as its scores. The question is of classes."""
        question: Any = self.trace.question  # a ClassScores
        labels = torch.arange(class_logits(self.trace.output, question.part).shape[1])
        of_all = replace(question, labels=labels.expand(len(self.trace.scores), -1), kind="logit")
        return self.trace.with_target(replace(self.trace.bound(), question=of_all))

    @cached_property
    def fingerprints(self) -> list[bytes]:
        """The fingerprint of each sample."""
        return [fingerprint(sample) for sample in self.trace.inputs]

    def generators(self, salt: int = 0) -> list[torch.Generator]:
        """Return a random number generator for each sample. It depends on the seed and the sample, not on the batch.

        Args:
            salt: Tells one use of random numbers from another.

        Returns:
            N generators, on the CPU.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> clean = tp.metrics.CleanPass(tp.trace(model, torch.rand(2, 3, 8, 8), layer="0", target=2))
            >>> len(clean.generators())
            2
        """
        return [generator(each, self.seed, salt) for each in self.fingerprints]

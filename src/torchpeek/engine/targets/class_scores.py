"""The question about classes: the scores of fixed classes, as logits, probabilities or log-odds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from torchpeek.engine.targets.output_parts import class_logits
from torchpeek.keywords import checked_methods

ScoreKind: TypeAlias = Literal[
    "logit",
    "probability",
    "log-odds",
    "sigmoid probability",
    "sigmoid log-odds",
    "sigmoid probability of absence",
    "sigmoid log-odds of absence",
]
"""What the score of a class is. Probability and log-odds are those of a softmax where no sigmoid is named."""


@checked_methods
@dataclass(frozen=True, eq=False)
class ClassScores:
    """The scores of fixed classes: their logits, or their probabilities or log-odds under a softmax or a sigmoid.

    Args:
        labels: (N, K), int64: the class indices.
        kind: What a score is.
        part: The path of the logits in the model's output; "" where the output is the tensor itself.

    Example:
        >>> question = tp.targets.ClassScores(torch.tensor([[2, 0]]))
        >>> question(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0]))
        tensor([[3., 1.]])
    """

    labels: Tensor  # (N, K), int64
    kind: ScoreKind = "logit"
    part: str = ""

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        """Compute the scores of an output.

        Args:
            output: What the model returned for n samples.
            rows: (n,), int64: the clean sample that each of them is a version of.

        Returns:
            (n, K) scores, at least float32.

        Raises:
            TargetError: When the output has no class logits.

        Example:
            >>> question = tp.targets.ClassScores(torch.tensor([[0], [1]]), kind="probability")
            >>> question(torch.zeros(2, 4), torch.tensor([0, 1]))
            tensor([[0.2500],
                    [0.2500]])
        """
        logits = class_logits(output, self.part)  # (n, classes)
        labels = self.labels.to(logits.device)[rows.to(logits.device)]  # (n, K)
        label_logits = logits.gather(1, labels)
        match self.kind:
            case "logit" | "sigmoid log-odds":
                return label_logits
            case "sigmoid log-odds of absence":
                return -label_logits
            case "sigmoid probability":
                return label_logits.sigmoid()
            case "sigmoid probability of absence":
                return (-label_logits).sigmoid()
            case "probability":
                return (label_logits - logits.logsumexp(dim=1, keepdim=True)).exp()
            case "log-odds":
                # log(p / (1 - p)) is the logit less the log-sum-exp of the other classes' logits. Computed like this,
                # no two nearly equal numbers are subtracted.
                others = logits.unsqueeze(1).expand(-1, labels.shape[1], -1)  # (n, K, classes)
                return label_logits - others.scatter(2, labels.unsqueeze(2), -torch.inf).logsumexp(dim=2)

    def combined(self, weights: Tensor) -> Tensor | None:
        """Combine the weights of a linear head into those of the scores.

        Args:
            weights: (classes, C): the logits are these times some features.

        Returns:
            (N, K, C): the scores are these times the same features. None where the scores are not linear in the logits.

        Example:
            >>> question = tp.targets.ClassScores(torch.tensor([[1]]))
            >>> question.combined(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
            tensor([[[3., 4.]]])
        """
        match self.kind:
            case "logit" | "sigmoid log-odds":
                return weights[self.labels]
            case "sigmoid log-odds of absence":
                return -weights[self.labels]
        return None

    @property
    def is_sigmoid(self) -> bool:
        """Whether the score of a class depends on its own logit alone, through a sigmoid."""
        return self.kind.startswith("sigmoid")

    def as_probabilities(self) -> ClassScores:
        """The question with probabilities as its scores: under a sigmoid where it is about one, else under a softmax.

        Returns:
            The question of the same classes.

        Example:
            >>> tp.targets.ClassScores(torch.tensor([[2, 0]])).as_probabilities().kind
            'probability'
            >>> tp.targets.SigmoidLogOdds(2).bind(torch.zeros(1, 3)).as_probabilities().kind
            'sigmoid probability'
        """
        kinds: dict[ScoreKind, ScoreKind] = {
            "logit": "probability",
            "log-odds": "probability",
            "sigmoid log-odds": "sigmoid probability",
            "sigmoid log-odds of absence": "sigmoid probability of absence",
        }
        return replace(self, kind=kinds.get(self.kind, self.kind))

    def select(self, rows: slice | Tensor, columns: slice) -> ClassScores:
        """Select some of the samples and of the scores.

        Args:
            rows: Which of the N samples.
            columns: Which of the K scores.

        Returns:
            The question of these samples and scores.

        Example:
            >>> question = tp.targets.ClassScores(torch.tensor([[1, 2], [3, 4]]))
            >>> question.select(slice(1, 2), slice(0, 1)).labels
            tensor([[3]])
        """
        return replace(self, labels=self.labels[rows][:, columns])

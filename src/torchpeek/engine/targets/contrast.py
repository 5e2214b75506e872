"""Target for what sets a class apart from similar ones (Finer-CAM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchpeek.engine.targets.classes import ClassId
from torchpeek.engine.targets.naming import check_range, class_index
from torchpeek.engine.targets.output_parts import class_logits
from torchpeek.engine.targets.question import python_values
from torchpeek.engine.targets.wrapping import WrappingTarget
from torchpeek.errors import TargetError, shown
from torchpeek.keywords import checked_methods

_PAPERS_NUMBER = 3  # of similar classes


@checked_methods
@dataclass(frozen=True, eq=False)
class ContrastScores:
    """The logits of fixed classes less `strength` times the mean logit of other classes.

    Args:
        labels: (N, K), int64: the class indices.
        others: (N, K, T), int64: the indices of the other classes.
        strength: The factor.
        part: The path of the logits in the model's output; "" where the output is the tensor itself.

    Source: Finer-CAM, arXiv:2501.11309.

    Example:
        >>> question = tp.targets.ContrastScores(torch.tensor([[0]]), torch.tensor([[[1, 2]]]), 0.5)
        >>> question(torch.tensor([[5.0, 2.0, 4.0]]), torch.tensor([0]))
        tensor([[3.5000]])
    """

    labels: Tensor  # (N, K), int64
    others: Tensor  # (N, K, T), int64
    strength: float
    part: str = ""

    @property
    def kind(self) -> str:
        """What a score is, for a heatmap's provenance."""
        return f"logit less {self.strength:g} times the mean logit of {self.others.shape[2]} other classes"

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
            >>> question = tp.targets.ContrastScores(torch.tensor([[0]]), torch.tensor([[[1]]]), 1.0)
            >>> question(torch.tensor([[5.0, 2.0]]), torch.tensor([0]))
            tensor([[3.]])
        """
        logits = class_logits(output, self.part)  # (n, classes)
        rows = rows.to(logits.device)
        label_logits = logits.gather(1, self.labels.to(logits.device)[rows])  # (n, K)
        others = self.others.to(logits.device)[rows]  # (n, K, T)
        other_logits = logits.gather(1, others.flatten(1)).view_as(others)
        return label_logits - self.strength * other_logits.mean(dim=2)

    def combined(self, weights: Tensor) -> Tensor:
        """Combine the weights of a linear head into those of the scores.

        Args:
            weights: (classes, C): the logits are these times some features.

        Returns:
            (N, K, C): the scores are these times the same features.

        Example:
            >>> question = tp.targets.ContrastScores(torch.tensor([[0]]), torch.tensor([[[1]]]), 1.0)
            >>> question.combined(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
            tensor([[[-2., -3.]]])
        """
        return weights[self.labels] - self.strength * weights[self.others].mean(dim=2)

    def select(self, rows: slice | Tensor, columns: slice) -> ContrastScores:
        """Select some of the samples and of the scores.

        Args:
            rows: Which of the N samples.
            columns: Which of the K scores.

        Returns:
            The question of these samples and scores.

        Example:
            >>> question = tp.targets.Contrast([[0], [1]], against=1).bind(torch.randn(2, 3))
            >>> question.select(slice(1, 2), slice(None)).labels
            tensor([[1]])
        """
        return replace(self, labels=self.labels[rows][:, columns], others=self.others[rows][:, columns])


@checked_methods
@dataclass(frozen=True)
class Contrast(WrappingTarget):
    """What sets a class apart from similar ones: its logit less `strength` times the mean of their logits.

    With this target any method is Finer-CAM. grad-cam's FinerCAM differs: its mean is weighted by the classes'
    probabilities, its strength is 1, and the gradient flows through the weights, too.

    Args:
        of: A target that names classes, or what `explain(target=...)` takes for one.
        against: How many similar classes: those whose logits are nearest to the class's own on the clean pass, at most
            all others. Or which classes, each an index or a name. None: 3, the paper's number, or all others where
            the model has fewer.
        strength: The factor, 0 or more. The paper's is 0.6.
        part: The path of the logits in the model's output, as in `Predicted`. "" for the part that `of` reads.

    Raises:
        TargetError: When an argument is not one of these.

    Source: Finer-CAM, arXiv:2501.11309.

    Example:
        >>> target = tp.targets.Contrast(0, against=[1], strength=0.5)
        >>> target.bind(torch.zeros(1, 3))(torch.tensor([[5.0, 2.0, 9.0]]), torch.tensor([0]))
        tensor([[4.]])
    """

    against: int | Sequence[ClassId] | None = None
    strength: float = 0.6

    def __post_init__(self) -> None:
        against = _PAPERS_NUMBER if self.against is None else self.against
        against = python_values(against)  # of NumPy and torch
        if self.against is not None:
            object.__setattr__(self, "against", against)
        is_count = isinstance(against, int) and not isinstance(against, bool) and against >= 1
        if not is_count and (isinstance(against, (str, int)) or not isinstance(against, Sequence) or not against):
            raise TargetError(
                f"Contrast(against={shown(against)}): give a number of classes, 1 or more, or a list of classes"
            )
        if not isinstance(self.strength, (int, float)) or not 0 <= self.strength < float("inf"):
            raise TargetError(
                f"Contrast(strength={shown(self.strength)}): give a number, 0 or more; the paper's is 0.6"
            )

    def bind(self, output: Any) -> ContrastScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with the labels (N, K) of the other target.

        Raises:
            TargetError: When the other target does not name classes, a class would be set against itself, the model
                has too few classes, or the output has no class logits.
            ClassNotFound: When the model does not have one of the classes.

        Example:
            >>> target = tp.targets.Contrast(against=1)
            >>> target.bind(torch.tensor([[5.0, 2.0, 4.0]])).others
            tensor([[[2]]])
        """
        question = self.bind_classes(output)
        if question.kind != "logit":
            raise TargetError(f"Contrast takes a target that names classes and scores their logits; got {self.of!r}")
        logits, labels = class_logits(output, question.part).detach(), question.labels
        if self.against is None or isinstance(self.against, int):
            number_of_others = logits.shape[1] - 1
            count = min(_PAPERS_NUMBER, number_of_others) if self.against is None else self.against
            if not 1 <= count <= number_of_others:
                raise TargetError(
                    f"Contrast(against={self.against}): the model has {logits.shape[1]} classes; there are "
                    f"{number_of_others} others"
                )
            distances = (logits.unsqueeze(1) - logits.gather(1, labels).unsqueeze(2)).abs()  # (N, K, classes)
            distances = distances.scatter(2, labels.unsqueeze(2), torch.inf)  # a class is not its own neighbour
            others = distances.argsort(dim=2, stable=True)[..., :count]  # of a tie, the lowest index first
        else:
            against = torch.tensor([class_index(each, None) for each in self.against], device=logits.device)
            check_range(against, logits.shape[1])
            if bool((labels.unsqueeze(2) == against).any()):
                raise TargetError(
                    f"Contrast(against={list(self.against)!r}): a class is not set against itself. Leave the "
                    "explained class out of the list"
                )
            others = against.expand(*labels.shape, -1)
        return ContrastScores(labels, others, float(self.strength), question.part)

    def named(self, class_names: Sequence[str] | None) -> Contrast:
        """Replace class names by class indices.

        Args:
            class_names: The model's class names, by index; None where it has none.

        Returns:
            The target with class indices only.

        Raises:
            ClassNotFound: When a name is not among them.
            AmbiguousClass: When several classes have the name.

        Example:
            >>> target = tp.targets.Contrast("dog", against=["cat"])
            >>> target.named(["cat", "dog"])
            Contrast(of=Classes(classes=[1], part=''), part='', against=[0], strength=0.6)
        """
        against = self.against
        if against is not None and not isinstance(against, int):
            against = [class_index(each, class_names) for each in against]
        return replace(super().named(class_names), against=against)

"""Targets for the probabilities and log-odds of classes, under a softmax or a sigmoid."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from torchpeek.engine.targets.class_scores import ClassScores, ScoreKind
from torchpeek.engine.targets.output_parts import class_logits, with_class_axis
from torchpeek.engine.targets.wrapping import WrappingTarget
from torchpeek.errors import TargetError
from torchpeek.keywords import checked_class, checked_methods


@checked_methods
@dataclass(frozen=True)
class ClassProbability(WrappingTarget):
    """The probabilities, under a softmax over all classes, of the classes that another target names.

    Args:
        of: A target that names classes, or what `explain(target=...)` takes for one.
        part: The path of the logits in the model's output, as in `Predicted`. "" for the part that `of` reads.

    Example:
        >>> question = tp.targets.ClassProbability(0).bind(torch.zeros(1, 4))
        >>> question(torch.zeros(1, 4), torch.tensor([0]))
        tensor([[0.2500]])
    """

    def bind(self, output: Any) -> ClassScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with the labels (N, K) of the other target.

        Raises:
            TargetError: When the other target does not name classes, the model has one class only, or the output has
                no class logits.

        Example:
            >>> target = tp.targets.ClassProbability(tp.targets.TopClasses(2))
            >>> target.bind(torch.tensor([[0.1, 0.7, 0.2]])).kind
            'probability'
        """
        question = self.bind_classes(output)
        if class_logits(output, question.part).shape[1] < 2:
            raise TargetError(
                "ClassProbability needs at least two classes; the model has one, whose probability under a softmax is "
                "1 for every picture. Its probability under a sigmoid is SigmoidProbability()"
            )
        return replace(question, kind="probability")


@checked_methods
@dataclass(frozen=True)
class ClassLogOdds(WrappingTarget):
    """The log-odds log(p / (1 - p)) of the classes that another target names, p under a softmax over all classes.

    Log-odds do not change when the logits of all classes rise by the same amount, as a logit does. They do not saturate
    near 0 and 1, as a probability does.

    Args:
        of: A target that names classes, or what `explain(target=...)` takes for one.
        part: The path of the logits in the model's output, as in `Predicted`. "" for the part that `of` reads.

    Example:
        >>> question = tp.targets.ClassLogOdds(0).bind(torch.zeros(1, 2))
        >>> question(torch.tensor([[5.0, 2.0]]), torch.tensor([0]))
        tensor([[3.]])
    """

    def bind(self, output: Any) -> ClassScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with the labels (N, K) of the other target.

        Raises:
            TargetError: When the other target does not name classes, the model has one class only, or the output has
                no class logits.

        Example:
            >>> target = tp.targets.ClassLogOdds(1)
            >>> target.bind(torch.zeros(1, 3)).kind
            'log-odds'
        """
        question = self.bind_classes(output)
        if class_logits(output, question.part).shape[1] < 2:
            raise TargetError(
                "ClassLogOdds needs at least two classes; the model has one. Its logit is the log-odds under a "
                "sigmoid, SigmoidLogOdds()"
            )
        return replace(question, kind="log-odds")


@checked_class
@dataclass(frozen=True)
class SigmoidProbability(WrappingTarget):
    """The probabilities p = sigmoid(logit) of the classes that another target names, each class by itself.

    This is the probability of a class in a multi-label classifier, which decides for each class by itself whether it is
    present, and of the only class of a binary classifier with one logit, (N, 1) or (N,). The model must return logits.
    If it returns probabilities, they are the scores without this target.

    Args:
        of: A target that names classes, or what `explain(target=...)` takes for one.
        part: The path of the logits in the model's output, as in `Predicted`. "" for the part that `of` reads.
        absent: Whether to take the probability 1 - p that the class is absent. For a binary classifier with one logit,
            that is the probability of the other class.

    Example:
        >>> question = tp.targets.SigmoidProbability(1).bind(torch.zeros(1, 4))
        >>> question(torch.tensor([[9.0, 0.0, 9.0, 9.0]]), torch.tensor([0]))
        tensor([[0.5000]])
    """

    _: KW_ONLY
    absent: bool = False

    def bind(self, output: Any) -> ClassScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with the labels (N, K) of the other target.

        Raises:
            TargetError: When the other target does not name classes, or the output has no class logits.

        Example:
            >>> target = tp.targets.SigmoidProbability(tp.targets.Classes([0, 2]))
            >>> target.bind(torch.zeros(1, 3)).kind
            'sigmoid probability'
        """
        kind: ScoreKind = "sigmoid probability of absence" if self.absent else "sigmoid probability"
        return replace(self.bind_classes(with_class_axis(output)), kind=kind)


@checked_class
@dataclass(frozen=True)
class SigmoidLogOdds(WrappingTarget):
    """The log-odds log(p / (1 - p)) of the classes that another target names, p = sigmoid(logit), each class by itself.

    These log-odds are the logit, and for `absent=True` the logit with the other sign. Metrics that need a probability
    take the one under a sigmoid for this target, and the one under a softmax for a plain class.

    Args:
        of: A target that names classes, or what `explain(target=...)` takes for one.
        part: The path of the logits in the model's output, as in `Predicted`. "" for the part that `of` reads.
        absent: Whether to take the log-odds log((1 - p) / p) that the class is absent. For a binary classifier with one
            logit, these are the log-odds of the other class.

    Example:
        >>> question = tp.targets.SigmoidLogOdds(0, absent=True).bind(torch.zeros(1, 1))
        >>> question(torch.tensor([[3.0]]), torch.tensor([0]))
        tensor([[-3.]])
    """

    _: KW_ONLY
    absent: bool = False

    def bind(self, output: Any) -> ClassScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with the labels (N, K) of the other target.

        Raises:
            TargetError: When the other target does not name classes, or the output has no class logits.

        Example:
            >>> target = tp.targets.SigmoidLogOdds(2)
            >>> target.bind(torch.zeros(1, 3)).kind
            'sigmoid log-odds'
        """
        kind: ScoreKind = "sigmoid log-odds of absence" if self.absent else "sigmoid log-odds"
        return replace(self.bind_classes(with_class_axis(output)), kind=kind)

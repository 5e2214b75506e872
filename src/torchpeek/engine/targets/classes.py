"""Targets that name classes, and the question that they are bound to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchpeek.engine.targets.class_scores import ClassScores
from torchpeek.engine.targets.naming import check_integers, check_not_one_hot, check_range, class_index, label_tensor
from torchpeek.engine.targets.output_parts import locate_logits
from torchpeek.engine.targets.question import NamesClasses, Target, python_values
from torchpeek.errors import TargetError, shown, type_shown
from torchpeek.keywords import checked_keywords, checked_methods

ClassId: TypeAlias = int | str


@checked_methods
@dataclass(frozen=True)
class Predicted:
    """The class with the highest logit, for each sample its own.

    Args:
        part: The path of the logits in the model's output, as `tp.record` names it, or the name of a field of a named
            tuple. "" for the only tensor, or for the one with the name `logits`, `logit`, `logits_per_image` or `out`.

    Example:
        >>> output = torch.tensor([[0.1, 0.7, 0.2], [0.9, 0.0, 0.1]])
        >>> tp.targets.Predicted().bind(output).labels
        tensor([[1],
                [0]])
    """

    _: KW_ONLY
    part: str = ""

    def bind(self, output: Any) -> ClassScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with labels (N, 1).

        Raises:
            TargetError: When the output has no class logits.

        Example:
            >>> target = tp.targets.Predicted()
            >>> target.bind({"logits": torch.tensor([[0.1, 0.7]])}).part
            'logits'
        """
        part, logits = locate_logits(output, self.part)
        return ClassScores(logits.argmax(dim=1, keepdim=True), part=part)


@checked_methods
@dataclass(frozen=True)
class TopClasses:
    """The classes with the highest logits, the highest first, for each sample its own.

    Args:
        k: How many classes, 1 or more.
        part: The path of the logits in the model's output, as in `Predicted`.

    Raises:
        TargetError: When `k` is not such a number.

    Example:
        >>> output = torch.tensor([[0.1, 0.7, 0.2]])
        >>> tp.targets.TopClasses(2).bind(output).labels
        tensor([[1, 2]])
    """

    k: int
    _: KW_ONLY
    part: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 1:
            raise TargetError(f"TopClasses({shown(self.k)}): k is a whole number, 1 or more")

    def bind(self, output: Any) -> ClassScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with labels (N, k).

        Raises:
            TargetError: When the output has no class logits, or logits of fewer than `k` classes.

        Example:
            >>> target = tp.targets.TopClasses(3)
            >>> target.bind(torch.randn(2, 10)).labels.shape
            torch.Size([2, 3])
        """
        part, logits = locate_logits(output, self.part)
        if self.k > logits.shape[1]:
            raise TargetError(f"TopClasses({self.k}): the model has {logits.shape[1]} classes; k goes from 1 to that")
        ranked = logits.argsort(dim=1, descending=True, stable=True)  # of a tie, the lowest index first, as in argmax
        return ClassScores(ranked[:, : self.k], part=part)


@checked_methods
@dataclass(frozen=True)
class Classes:
    """The same classes for every sample.

    Args:
        classes: One class or more, each an index or a name.
        part: The path of the logits in the model's output, as in `Predicted`.

    Raises:
        TargetError: When `classes` is not such a list.

    Example:
        >>> target = tp.targets.Classes([2, 0])
        >>> target.bind(torch.zeros(2, 3)).labels
        tensor([[2, 0],
                [2, 0]])
    """

    classes: Sequence[ClassId]
    _: KW_ONLY
    part: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.classes, str) or not isinstance(self.classes, Sequence) or not self.classes:
            raise TargetError(f"Classes({self.classes!r}): give a list of one class or more, by index or name")

    def bind(self, output: Any) -> ClassScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with labels (N, K).

        Raises:
            ClassNotFound: When the model does not have one of the classes, or one is a name; `named` replaces names.
            TargetError: When the output has no class logits.

        Example:
            >>> target = tp.targets.Classes([1])
            >>> target.bind(torch.tensor([[0.1, 0.7]]))(torch.tensor([[0.3, 0.4]]), torch.tensor([0]))
            tensor([[0.4000]])
        """
        part, logits = locate_logits(output, self.part)
        labels = torch.tensor([[class_index(each, None) for each in self.classes]], device=logits.device)
        check_not_one_hot(labels)
        check_range(labels, logits.shape[1])
        return ClassScores(labels.expand(len(logits), -1), part=part)

    def named(self, class_names: Sequence[str] | None) -> Classes:
        """Replace class names by class indices.

        Args:
            class_names: The model's class names, by index; None where it has none.

        Returns:
            The target with class indices only.

        Raises:
            ClassNotFound: When a name is not among them.
            AmbiguousClass: When several classes have the name.

        Example:
            >>> target = tp.targets.Classes(["dog", 0])
            >>> target.named(["cat", "dog"])
            Classes(classes=[1, 0], part='')
        """
        return replace(self, classes=[class_index(each, class_names) for each in self.classes])


@checked_methods
@dataclass(frozen=True, eq=False)
class ClassesPerSample:
    """For each sample its own classes.

    Args:
        labels: (N,) or (N, K), integers: the class indices.
        part: The path of the logits in the model's output, as in `Predicted`.
        listed: Whether the labels were written as lists of classes. Then [0, 1] names both classes of a binary
            classifier; in a tensor, it may be a one-hot label.

    Raises:
        TargetError: When `labels` is not a tensor of integers.

    Example:
        >>> target = tp.targets.ClassesPerSample(torch.tensor([2, 0]))
        >>> target.bind(torch.zeros(2, 3)).labels
        tensor([[2],
                [0]])
    """

    labels: Tensor
    _: KW_ONLY
    part: str = ""
    listed: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.labels, Tensor):
            raise TargetError(f"ClassesPerSample takes a tensor of class indices; got {type_shown(self.labels)}")
        check_integers(self.labels)

    def bind(self, output: Any) -> ClassScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with labels (N, K).

        Raises:
            TargetError: When the labels are not for N samples, or the output has no class logits.
            ClassNotFound: When the model does not have one of the classes.

        Example:
            >>> target = tp.targets.ClassesPerSample(torch.tensor([[2, 0]]))
            >>> target.bind(torch.zeros(1, 3)).labels
            tensor([[2, 0]])
        """
        part, logits = locate_logits(output, self.part)
        labels = self.labels.to(logits.device).long()
        check_not_one_hot(labels, len(logits), None if self.listed else logits.shape[1])
        if labels.ndim == 1:
            labels = labels[:, None]
        if labels.ndim != 2 or len(labels) != len(logits) or labels.shape[1] == 0:
            raise TargetError(
                f"target has shape {tuple(self.labels.shape)} for a batch of {len(logits)}; allowed: (N,) or (N, K), "
                "the classes of each sample. For the same classes of every sample use tp.targets.Classes([...])"
            )
        check_range(labels, logits.shape[1])
        return ClassScores(labels, part=part)

    def of_samples(self, first: int, last: int) -> ClassesPerSample:
        """Restrict the target to some of the samples.

        Args:
            first: The first of the samples.
            last: One after the last of them.

        Returns:
            The target for these samples.

        Example:
            >>> target = tp.targets.ClassesPerSample(torch.tensor([4, 5, 6]))
            >>> target.of_samples(1, 3).labels
            tensor([5, 6])
        """
        return replace(self, labels=self.labels[first:last])


@checked_keywords
def as_target(target: Any, class_names: Sequence[str] | None = None) -> Target:
    """Turn what `explain(target=...)` takes into a Target, with class names replaced by class indices.

    Args:
        target: None: the predicted class. An index or a name: that class, for every sample. A tensor, an array or a
            list of indices or names, (N,) or (N, K): for each sample its own classes. A Target: itself.
        class_names: The model's class names, by index; None where it has none.

    Returns:
        The target.

    Raises:
        TargetError: When `target` is none of these.
        ClassNotFound: When a name is not among the class names.
        AmbiguousClass: When several classes have the name.

    Example:
        >>> names = ["cat", "dog"]
        >>> tp.targets.as_target("dog", names)
        Classes(classes=[1], part='')
        >>> tp.targets.as_target([0, "dog"], names)
        ClassesPerSample(labels=tensor([0, 1]), part='', listed=True)
    """
    match target:
        case None:
            return Predicted()
        case bool() | type():
            raise TargetError(
                f"target is {target}; allowed: a class index, a name, (N,) or (N, K) of these, a tp.targets.*"
            )
        case int() | str():
            return Classes([class_index(target, class_names)])
        case Tensor():
            check_integers(target)
            return Classes([int(target)]) if target.ndim == 0 else ClassesPerSample(target.long())
        case NamesClasses():
            return target.named(class_names)
        case Target():
            return target
    if (values := python_values(target)) is not target:  # a NumPy array or number
        found = as_target(values, class_names)
        return replace(found, listed=False) if isinstance(found, ClassesPerSample) else found
    if isinstance(target, Sequence):
        listed = not any(hasattr(each, "tolist") for each in target)  # not a list of tensors or arrays
        return ClassesPerSample(label_tensor(target, class_names), listed=listed)
    raise TargetError(
        f"target is {type_shown(target)}; allowed: None (the predicted class), a class index or name, a tensor "
        "or list (N,) or (N, K) of these, or a target from tp.targets"
    )

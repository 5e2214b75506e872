"""Targets that name classes: logits, probabilities, log-odds, and the contrast to other classes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.observed import layers_of_target
from torchpeek.engine.targets.naming import check_range, class_index, label_tensor
from torchpeek.engine.targets.question import (
    EMBEDDING_NAMES,
    BySample,
    NamesClasses,
    Target,
    output_tensors,
    python_values,
)
from torchpeek.errors import TargetError

ClassId: TypeAlias = int | str


@dataclass(frozen=True, eq=False)
class ClassScores:
    """The scores of fixed classes: their logits, or their probabilities or log-odds under a softmax.

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
    kind: Literal["logit", "probability", "log-odds"] = "logit"
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
        logits = class_logits(output)  # (n, classes)
        labels = self.labels.to(logits.device)[rows.to(logits.device)]  # (n, K)
        label_logits = logits.gather(1, labels)
        match self.kind:
            case "logit":
                return label_logits
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
            (N, K, C): the scores are these times the same features. None where the scores are no logits.

        Example:
            >>> question = tp.targets.ClassScores(torch.tensor([[1]]))
            >>> question.combined(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
            tensor([[[3., 4.]]])
        """
        return weights[self.labels] if self.kind == "logit" else None

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


@dataclass(frozen=True)
class Predicted:
    """The class with the highest logit, for each sample its own.

    Example:
        >>> output = torch.tensor([[0.1, 0.7, 0.2], [0.9, 0.0, 0.1]])
        >>> tp.targets.Predicted().bind(output).labels
        tensor([[1],
                [0]])
    """

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
        return ClassScores(class_logits(output).argmax(dim=1, keepdim=True), part=_locate_logits(output)[0])


@dataclass(frozen=True)
class TopClasses:
    """The classes with the highest logits, the highest first, for each sample its own.

    Args:
        k: How many classes, 1 or more.

    Raises:
        TargetError: When `k` is not such a number.

    Example:
        >>> output = torch.tensor([[0.1, 0.7, 0.2]])
        >>> tp.targets.TopClasses(2).bind(output).labels
        tensor([[1, 2]])
    """

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 1:
            raise TargetError(f"TopClasses({self.k!r}): k is a whole number, 1 or more")

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
        logits = class_logits(output)
        if self.k > logits.shape[1]:
            raise TargetError(f"TopClasses({self.k}): the model has {logits.shape[1]} classes; k goes from 1 to that")
        return ClassScores(logits.topk(self.k, dim=1).indices, part=_locate_logits(output)[0])


@dataclass(frozen=True)
class Classes:
    """The same classes for every sample.

    Args:
        classes: One class or more, each an index or a name.

    Raises:
        TargetError: When `classes` is not such a list.

    Example:
        >>> target = tp.targets.Classes([2, 0])
        >>> target.bind(torch.zeros(2, 3)).labels
        tensor([[2, 0],
                [2, 0]])
    """

    classes: Sequence[ClassId]

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
        logits = class_logits(output)
        labels = torch.tensor([[class_index(each, None) for each in self.classes]], device=logits.device)
        check_range(labels, logits.shape[1])
        return ClassScores(labels.expand(len(logits), -1), part=_locate_logits(output)[0])

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
            Classes(classes=[1, 0])
        """
        return Classes([class_index(each, class_names) for each in self.classes])


@dataclass(frozen=True, eq=False)
class ClassesPerSample:
    """For each sample its own classes.

    Args:
        labels: (N,) or (N, K), integers: the class indices.

    Raises:
        TargetError: When `labels` is not a tensor.

    Example:
        >>> target = tp.targets.ClassesPerSample(torch.tensor([2, 0]))
        >>> target.bind(torch.zeros(2, 3)).labels
        tensor([[2],
                [0]])
    """

    labels: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.labels, Tensor):
            raise TargetError(f"ClassesPerSample takes a tensor of class indices; got a {type(self.labels).__name__}")

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
        logits = class_logits(output)
        labels = self.labels.to(logits.device)
        if labels.ndim == 1:
            labels = labels[:, None]
        if labels.ndim != 2 or len(labels) != len(logits) or labels.shape[1] == 0:
            raise TargetError(
                f"target has shape {tuple(self.labels.shape)} for a batch of {len(logits)}; allowed: (N,) or (N, K), "
                "the classes of each sample. For the same classes of every sample use tp.targets.Classes([...])"
            )
        check_range(labels, logits.shape[1])
        return ClassScores(labels, part=_locate_logits(output)[0])


@dataclass(frozen=True)
class ClassProbability:
    """The probabilities, under a softmax over all classes, of the classes that another target names.

    Args:
        of: A target that names classes, or what `explain(target=...)` takes for one.

    Example:
        >>> question = tp.targets.ClassProbability(0).bind(torch.zeros(1, 4))
        >>> question(torch.zeros(1, 4), torch.tensor([0]))
        tensor([[0.2500]])
    """

    of: Any = Predicted()

    def bind(self, output: Any) -> ClassScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with the labels (N, K) of the other target.

        Raises:
            TargetError: When the other target does not name classes, or the output has no class logits.

        Example:
            >>> target = tp.targets.ClassProbability(tp.targets.TopClasses(2))
            >>> target.bind(torch.tensor([[0.1, 0.7, 0.2]])).kind
            'probability'
        """
        question = _bind_class_scores(self.of, output, "ClassProbability")
        return replace(question, kind="probability")

    def named(self, class_names: Sequence[str] | None) -> ClassProbability:
        """Replace class names by class indices.

        Args:
            class_names: The model's class names, by index; None where it has none.

        Returns:
            The target with class indices only.

        Raises:
            ClassNotFound: When a name is not among them.
            AmbiguousClass: When several classes have the name.

        Example:
            >>> target = tp.targets.ClassProbability("dog")
            >>> target.named(["cat", "dog"])
            ClassProbability(of=Classes(classes=[1]))
        """
        return ClassProbability(as_target(self.of, class_names))


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
        logits = class_logits(output)  # (n, classes)
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


@dataclass(frozen=True)
class Contrast:
    """What sets a class apart from similar ones: its logit less `strength` times the mean of their logits.

    With this target any method is Finer-CAM. grad-cam's FinerCAM differs: its mean is weighted by the classes'
    probabilities, its strength is 1, and the gradient flows through the weights, too.

    Args:
        of: A target that names classes, or what `explain(target=...)` takes for one.
        against: How many similar classes: those whose logits are nearest to the class's own on the clean pass. Or
            which classes, each an index or a name.
        strength: The factor, 0 or more. The paper's is 0.6.

    Raises:
        TargetError: When an argument is not one of these.

    Source: Finer-CAM, arXiv:2501.11309.

    Example:
        >>> target = tp.targets.Contrast(0, against=[1], strength=0.5)
        >>> target.bind(torch.zeros(1, 3))(torch.tensor([[5.0, 2.0, 9.0]]), torch.tensor([0]))
        tensor([[4.]])
    """

    of: Any = Predicted()
    against: int | Sequence[ClassId] = 3
    strength: float = 0.6

    def __post_init__(self) -> None:
        against = self.against
        if hasattr(against, "__index__") and not isinstance(against, (bool, int)):  # a NumPy integer
            against = operator.index(against)
            object.__setattr__(self, "against", against)
        is_count = isinstance(against, int) and not isinstance(against, bool) and against >= 1
        if not is_count and (isinstance(against, (str, int)) or not isinstance(against, Sequence) or not against):
            raise TargetError(
                f"Contrast(against={against!r}): give a number of classes, 1 or more, or a list of classes"
            )
        if not isinstance(self.strength, (int, float)) or not 0 <= self.strength < float("inf"):
            raise TargetError(f"Contrast(strength={self.strength!r}): give a number, 0 or more; the paper's is 0.6")

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
        question = _bind_class_scores(self.of, output, "Contrast")
        if question.kind != "logit":
            raise TargetError(f"Contrast takes a target that names classes and scores their logits; got {self.of!r}")
        logits, labels = class_logits(output).detach(), question.labels
        if isinstance(self.against, int):
            if logits.shape[1] <= self.against:
                raise TargetError(
                    f"Contrast(against={self.against}): the model has {logits.shape[1]} classes; there are "
                    f"{logits.shape[1] - 1} others"
                )
            distances = (logits.unsqueeze(1) - logits.gather(1, labels).unsqueeze(2)).abs()  # (N, K, classes)
            distances = distances.scatter(2, labels.unsqueeze(2), torch.inf)  # a class is not its own neighbour
            others = distances.topk(self.against, dim=2, largest=False).indices
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
            Contrast(of=Classes(classes=[1]), against=[0], strength=0.6)
        """
        against = self.against
        if not isinstance(against, int):
            against = [class_index(each, class_names) for each in against]
        return replace(self, of=as_target(self.of, class_names), against=against)


@dataclass(frozen=True)
class ClassLogOdds:
    """The log-odds log(p / (1 - p)) of the classes that another target names, p under a softmax over all classes.

    Log-odds do not change when the logits of all classes rise by the same amount, as a logit does. They do not saturate
    near 0 and 1, as a probability does.

    Args:
        of: A target that names classes, or what `explain(target=...)` takes for one.

    Example:
        >>> question = tp.targets.ClassLogOdds(0).bind(torch.zeros(1, 2))
        >>> question(torch.tensor([[5.0, 2.0]]), torch.tensor([0]))
        tensor([[3.]])
    """

    of: Any = Predicted()

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
        question = _bind_class_scores(self.of, output, "ClassLogOdds")
        if class_logits(output).shape[1] < 2:
            raise TargetError("ClassLogOdds needs at least two classes; the model has one. Its logit is Output(0)")
        return replace(question, kind="log-odds")

    def named(self, class_names: Sequence[str] | None) -> ClassLogOdds:
        """Replace class names by class indices.

        Args:
            class_names: The model's class names, by index; None where it has none.

        Returns:
            The target with class indices only.

        Raises:
            ClassNotFound: When a name is not among them.
            AmbiguousClass: When several classes have the name.

        Example:
            >>> target = tp.targets.ClassLogOdds("dog")
            >>> target.named(["cat", "dog"])
            ClassLogOdds(of=Classes(classes=[1]))
        """
        return ClassLogOdds(as_target(self.of, class_names))


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
        Classes(classes=[1])
        >>> tp.targets.as_target([0, "dog"], names)
        ClassesPerSample(labels=tensor([0, 1]))
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
            if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
                raise TargetError(f"target is a tensor of {target.dtype}; class indices are integers")
            return Classes([int(target)]) if target.ndim == 0 else ClassesPerSample(target.long())
        case NamesClasses():
            return target.named(class_names)
        case Target():
            return target
    if (values := python_values(target)) is not target:  # a NumPy array or number
        return as_target(values, class_names)
    if isinstance(target, Sequence):
        return ClassesPerSample(label_tensor(target, class_names))
    raise TargetError(
        f"target is a {type(target).__name__}; allowed: None (the predicted class), a class index or name, a tensor "
        "or list (N,) or (N, K) of these, or a target from tp.targets"
    )


def innermost(target: Target) -> Target:
    """Unwrap a target that is made from another one: ClassProbability, ClassLogOdds, Contrast.

    Args:
        target: Any target.

    Returns:
        The innermost target; the target itself where it wraps none.

    Example:
        >>> target = tp.targets.ClassProbability(tp.targets.TopClasses(2))
        >>> tp.targets.innermost(target)
        TopClasses(k=2)
    """
    while isinstance(target, (ClassProbability, ClassLogOdds, Contrast)):
        target = as_target(target.of)
    return target


def of_samples(target: Target, first: int, last: int) -> Target:
    """Restrict a target that has an entry for each sample to some of the samples.

    Args:
        target: Any target.
        first: The first of the samples.
        last: One after the last of them.

    Returns:
        The target for these samples; the target itself where it is the same for every sample.

    Example:
        >>> target = tp.targets.ClassesPerSample(torch.tensor([4, 5, 6]))
        >>> tp.targets.of_samples(target, 1, 3)
        ClassesPerSample(labels=tensor([5, 6]))
    """
    if isinstance(target, ClassesPerSample):
        return ClassesPerSample(target.labels[first:last])
    if isinstance(target, (ClassProbability, ClassLogOdds, Contrast)):
        return replace(target, of=of_samples(as_target(target.of), first, last))
    return target.of_samples(first, last) if isinstance(target, BySample) else target


def class_logits(output: Any) -> Tensor:
    """Find the class logits in what a classifier returned.

    They are the output itself, its part `logits` or `logits_per_image`, or its only part of shape (N, classes). The
    output of a detector has none: the four numbers of a box are not classes.

    Args:
        output: What the model returned for N samples.

    Returns:
        (N, classes), at least float32.

    Raises:
        TargetError: When there are none.

    Example:
        >>> output = {"logits": torch.zeros(2, 10), "hidden": torch.zeros(2, 5, 8)}
        >>> tp.targets.class_logits(output).shape
        torch.Size([2, 10])
    """
    return at_least_float32(_locate_logits(output)[1])


def _locate_logits(output: Any) -> tuple[str, Tensor]:
    """The path of the class logits in what a model returned, and the logits."""
    parts = output_tensors(output)
    path: str | None = next((name for name in ("", "logits", "logits_per_image") if name in parts), None)
    if path is None and not any(name.rpartition(".")[2] in ("boxes", "pred_boxes") for name in parts):
        candidates = [name for name, part in parts.items() if part.ndim == 2 and name not in EMBEDDING_NAMES]
        path = candidates[0] if len(candidates) == 1 else None
    if path is None or parts[path].ndim != 2:
        shapes = {f"{name!r} " * bool(name) + str(tuple(part.shape)) for name, part in parts.items()}
        got = f"{type(output).__name__} of {', '.join(sorted(shapes)) or 'no floating-point tensor'}"
        raise TargetError(
            f"the model returned a {got}; class scores are read from a (N, classes) tensor, or the part of that shape. "
            "For other outputs there are targets in tp.targets: Pixels for a segmentation, Box for a detector, "
            "Similarity for an embedding, Output for a regression, Computed for any function"
        )
    return path, parts[path]


def _bind_class_scores(of: Any, output: Any, wrapper: str) -> ClassScores:
    """Bind the target that a wrapping target is made from. Raises TargetError where it does not name classes."""
    target = as_target(of)
    # A target that reads inner layers is not bound at all: this output does not hold them.
    question = None if layers_of_target(target) else target.bind(output)
    if not isinstance(question, ClassScores):
        raise TargetError(f"{wrapper} takes a target that names classes; got {of!r}")
    return question

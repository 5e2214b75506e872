"""Questions about classes: their logits, probabilities, log-odds, and what sets them apart."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.targets.naming import check_range, class_index, label_tensor
from torchpeek.engine.targets.question import EMBEDDING_NAMES, BySample, NamesClasses, Target, output_tensors
from torchpeek.errors import TargetError


@dataclass(frozen=True, eq=False)
class ClassScores:
    """The scores of fixed classes: their logits, or their probabilities or log-odds under a softmax."""

    labels: Tensor  # (N, K), int64
    kind: Literal["logit", "probability", "log-odds"] = "logit"
    part: str = ""  # where the logits are in what the model returned

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        logits = class_logits(output)  # (n, classes)
        labels = self.labels.to(logits.device)[rows.to(logits.device)]  # (n, K)
        own = logits.gather(1, labels)
        match self.kind:
            case "logit":
                return own
            case "probability":
                return (own - logits.logsumexp(dim=1, keepdim=True)).exp()
            case "log-odds":
                # log p - log (1 - p) without the difference of two nearly equal numbers: against all the others' sum.
                others = logits.unsqueeze(1).expand(-1, labels.shape[1], -1)  # (n, K, classes)
                return own - others.scatter(2, labels.unsqueeze(2), -torch.inf).logsumexp(dim=2)

    def combined(self, weights: Tensor) -> Tensor | None:
        """(classes, C), by which the logits are linear in something -> (N, K, C), by which the scores are."""
        return weights[self.labels] if self.kind == "logit" else None

    def select(self, rows: slice | Tensor, columns: slice) -> ClassScores:
        return replace(self, labels=self.labels[rows][:, columns])


ClassId: TypeAlias = int | str


@dataclass(frozen=True)
class Predicted:
    """The class with the highest logit, for each sample its own."""

    def bind(self, output: Any) -> ClassScores:
        return ClassScores(class_logits(output).argmax(dim=1, keepdim=True), part=_locate_logits(output)[0])


@dataclass(frozen=True)
class TopClasses:
    """The `k` classes with the highest logits, best first, for each sample its own."""

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 1:
            raise TargetError(f"TopClasses({self.k!r}): k is a whole number, 1 or more")

    def bind(self, output: Any) -> ClassScores:
        logits = class_logits(output)
        if self.k > logits.shape[1]:
            raise TargetError(f"TopClasses({self.k}): the model has {logits.shape[1]} classes; k goes from 1 to that")
        return ClassScores(logits.topk(self.k, dim=1).indices, part=_locate_logits(output)[0])


@dataclass(frozen=True)
class Classes:
    """The same classes for every sample, by index or by name."""

    classes: Sequence[ClassId]

    def __post_init__(self) -> None:
        if isinstance(self.classes, str) or not isinstance(self.classes, Sequence) or not self.classes:
            raise TargetError(f"Classes({self.classes!r}): give a list of one class or more, by index or name")

    def bind(self, output: Any) -> ClassScores:
        logits = class_logits(output)
        labels = torch.tensor([[class_index(each, None) for each in self.classes]], device=logits.device)
        check_range(labels, logits.shape[1])
        return ClassScores(labels.expand(len(logits), -1), part=_locate_logits(output)[0])

    def named(self, class_names: Sequence[str] | None) -> Classes:
        return Classes([class_index(each, class_names) for each in self.classes])


@dataclass(frozen=True, eq=False)
class ClassesPerSample:
    """For each sample its own classes: `labels` is (N,) or (N, K)."""

    labels: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.labels, Tensor):
            raise TargetError(f"ClassesPerSample takes a tensor of class indices; got a {type(self.labels).__name__}")

    def bind(self, output: Any) -> ClassScores:
        logits = class_logits(output)
        labels = self.labels.to(logits.device)
        if labels.ndim == 1:
            labels = labels[:, None]
        if labels.ndim != 2 or len(labels) != len(logits) or labels.shape[1] == 0:
            raise TargetError(
                f"target has shape {tuple(self.labels.shape)} for a batch of {len(logits)}; a target by sample is "
                "(N,) or (N, K). For the same classes of every sample use tp.targets.Classes([...])"
            )
        check_range(labels, logits.shape[1])
        return ClassScores(labels, part=_locate_logits(output)[0])


@dataclass(frozen=True)
class ClassProbability:
    """The probability, under a softmax over the classes, instead of the logit, of what another target names."""

    of: Any = Predicted()

    def bind(self, output: Any) -> ClassScores:
        question = _bind_class_scores(self.of, output, "ClassProbability")
        return replace(question, kind="probability")

    def named(self, class_names: Sequence[str] | None) -> ClassProbability:
        return ClassProbability(as_target(self.of, class_names))


@dataclass(frozen=True, eq=False)
class ContrastScores:
    """How far the logits of classes stand above those of others: logit - strength * mean of the others' logits."""

    labels: Tensor  # (N, K), int64
    others: Tensor  # (N, K, T), int64
    strength: float
    part: str = ""  # where the logits are in what the model returned

    @property
    def kind(self) -> str:
        """What a score is, for a heatmap's provenance."""
        return f"logit less {self.strength:g} times the mean logit of {self.others.shape[2]} other classes"

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        logits = class_logits(output)  # (n, classes)
        rows = rows.to(logits.device)
        own = logits.gather(1, self.labels.to(logits.device)[rows])  # (n, K)
        others = self.others.to(logits.device)[rows]  # (n, K, T)
        theirs = logits.gather(1, others.flatten(1)).view_as(others)
        return own - self.strength * theirs.mean(dim=2)

    def combined(self, weights: Tensor) -> Tensor:
        """(classes, C), by which the logits are linear in something -> (N, K, C), by which the scores are."""
        return weights[self.labels] - self.strength * weights[self.others].mean(dim=2)

    def select(self, rows: slice | Tensor, columns: slice) -> ContrastScores:
        return replace(self, labels=self.labels[rows][:, columns], others=self.others[rows][:, columns])


@dataclass(frozen=True)
class Contrast:
    """What sets a class apart from similar ones: its logit less `strength` times the mean of theirs (Finer-CAM).

    `against` is how many similar classes, those whose logits on the clean pass are nearest to the class's own, or which
    classes, by index or name. With any method this is Finer-CAM (arXiv:2501.11309). grad-cam takes, under that name, a
    mean weighted by the classes' probabilities, strength 1, and lets the gradient flow through the weights, too.
    """

    of: Any = Predicted()
    against: int | Sequence[ClassId] = 3
    strength: float = 0.6

    def __post_init__(self) -> None:
        given = self.against
        if hasattr(given, "__index__") and not isinstance(given, (bool, int)):  # NumPy's
            given = operator.index(given)
            object.__setattr__(self, "against", given)
        count = isinstance(given, int) and not isinstance(given, bool) and given >= 1
        if not count and (isinstance(given, (str, int)) or not isinstance(given, Sequence) or not given):
            raise TargetError(f"Contrast(against={given!r}): give a number of classes, 1 or more, or a list of classes")
        if not isinstance(self.strength, (int, float)) or not 0 <= self.strength < float("inf"):
            raise TargetError(f"Contrast(strength={self.strength!r}): give a number, 0 or more; the paper's is 0.6")

    def bind(self, output: Any) -> ContrastScores:
        question = _bind_class_scores(self.of, output, "Contrast")
        if question.kind != "logit":
            raise TargetError(f"Contrast takes a target that names classes, and their logits; got {self.of!r}")
        logits, labels = class_logits(output).detach(), question.labels
        if isinstance(self.against, int):
            if logits.shape[1] <= self.against:
                raise TargetError(
                    f"Contrast(against={self.against}): the model has {logits.shape[1]} classes; there are "
                    f"{logits.shape[1] - 1} others"
                )
            apart = (logits.unsqueeze(1) - logits.gather(1, labels).unsqueeze(2)).abs()  # (N, K, classes)
            apart = apart.scatter(2, labels.unsqueeze(2), torch.inf)  # itself is no other
            others = apart.topk(self.against, dim=2, largest=False).indices
        else:
            wanted = torch.tensor([class_index(each, None) for each in self.against], device=logits.device)
            check_range(wanted, logits.shape[1])
            if bool((labels.unsqueeze(2) == wanted).any()):
                raise TargetError(f"Contrast(against={list(self.against)!r}): a class is not set against itself")
            others = wanted.expand(*labels.shape, -1)
        return ContrastScores(labels, others, float(self.strength), question.part)

    def named(self, class_names: Sequence[str] | None) -> Contrast:
        against = self.against
        if not isinstance(against, int):
            against = [class_index(each, class_names) for each in against]
        return replace(self, of=as_target(self.of, class_names), against=against)


@dataclass(frozen=True)
class ClassLogOdds:
    """The log-odds log(p / (1 - p)), p under a softmax over the classes, of what another target names.

    Unlike a logit it does not move when the logits of all classes do, and unlike a probability it does not saturate.
    """

    of: Any = Predicted()

    def bind(self, output: Any) -> ClassScores:
        question = _bind_class_scores(self.of, output, "ClassLogOdds")
        if class_logits(output).shape[1] < 2:
            raise TargetError("ClassLogOdds needs at least two classes; the model has one. Its logit is Output(0)")
        return replace(question, kind="log-odds")

    def named(self, class_names: Sequence[str] | None) -> ClassLogOdds:
        return ClassLogOdds(as_target(self.of, class_names))


def as_target(target: Any, class_names: Sequence[str] | None = None) -> Target:
    """The Target that is meant by what `explain(target=...)` takes, with class names looked up.

    None is the predicted class; an int or a name is that class, for every sample; a tensor or list of indices or
    names, (N,) or (N, K), gives each sample its own.
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
    if hasattr(target, "tolist"):  # NumPy's arrays and numbers
        return as_target(target.tolist(), class_names)
    if isinstance(target, Sequence):
        return ClassesPerSample(label_tensor(target, class_names))
    raise TargetError(
        f"target is a {type(target).__name__}; allowed: None (the predicted class), a class index or name, a tensor "
        "or list (N,) or (N, K) of these, or a target from tp.targets"
    )


def innermost(target: Target) -> Target:
    """What a target that is of another one is of at last, or the target itself."""
    while isinstance(target, (ClassProbability, ClassLogOdds, Contrast)):
        target = as_target(target.of)
    return target


def of_samples(target: Target, first: int, last: int) -> Target:
    """The target for some of the samples, where it has an entry for each."""
    if isinstance(target, ClassesPerSample):
        return ClassesPerSample(target.labels[first:last])
    if isinstance(target, (ClassProbability, ClassLogOdds, Contrast)):
        return replace(target, of=of_samples(as_target(target.of), first, last))
    return target.of_samples(first, last) if isinstance(target, BySample) else target


def class_logits(output: Any) -> Tensor:
    """The (N, classes) logits in what a classifier returned, in float32 or, for a float64 model, float64.

    They are what it returned, its part `logits` or `logits_per_image`, or the only part of that shape. What a detector
    returns has none: a box's four numbers are no classes.
    """
    return at_least_float32(_locate_logits(output)[1])


def _locate_logits(output: Any) -> tuple[str, Tensor]:
    """The path of the logits in what a model returned, and what is there."""
    parts = output_tensors(output)
    path: str | None = next((name for name in ("", "logits", "logits_per_image") if name in parts), None)
    if path is None and not any(name.rpartition(".")[2] in ("boxes", "pred_boxes") for name in parts):
        flat = [name for name, each in parts.items() if each.ndim == 2 and name not in EMBEDDING_NAMES]
        path = flat[0] if len(flat) == 1 else None
    if path is None or parts[path].ndim != 2:
        shapes = {f"{name!r} " * bool(name) + str(tuple(each.shape)) for name, each in parts.items()}
        got = f"{type(output).__name__} of {', '.join(sorted(shapes)) or 'no floating-point tensor'}"
        raise TargetError(
            f"the model returned a {got}; class scores are read from a (N, classes) tensor, or the part of that shape. "
            "For other outputs there are targets in tp.targets: Pixels for a segmentation, Box for a detector, "
            "Similarity for an embedding, Output for a regression, Computed for any function"
        )
    return path, parts[path]


def _bind_class_scores(of: Any, output: Any, what: str) -> ClassScores:
    """What a target asks of the output, where that is the scores of classes. Raises TargetError."""
    target = as_target(of)
    # Neurons are not bound at all: they are of no output.
    question = None if getattr(target, "layers", ()) else target.bind(output)
    if not isinstance(question, ClassScores):
        raise TargetError(f"{what} takes a target that names classes; got {of!r}")
    return question

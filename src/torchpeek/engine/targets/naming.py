"""Resolve the classes that a user names, by index or by name, to class indices."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchpeek.engine.targets.question import python_values
from torchpeek.errors import AmbiguousClass, ClassNotFound, TargetError, closest, shown

_CLASSES_OF_ONE_HOT = "onehot.argmax(1)"
_CLASSES_OF_MULTI_HOT = "onehot.nonzero()[:, 1].view(-1, {})"


def label_tensor(target: Sequence[Any], class_names: Sequence[str] | None) -> Tensor:
    """The class indices (N,) or (N, K) of a list of classes, or of a list of such lists. Raises TargetError."""
    target = [python_values(each) for each in target]  # such as a list of tensors
    nested = [isinstance(each, Sequence) and not isinstance(each, str) for each in target]
    if any(nested) and not all(nested):
        raise TargetError(f"target mixes classes and lists of classes: {target!r}; allowed: (N,) or (N, K)")
    if not any(nested):
        return torch.tensor([class_index(each, class_names) for each in target], dtype=torch.long)
    if any(isinstance(each, (bool, float)) for row in target for each in row):
        raise TargetError(
            "target is a list of lists with True, False or decimal numbers; class indices are integers. For one-hot or "
            f"soft targets, make it a tensor and give {_CLASSES_OF_ONE_HOT}"
        )
    rows = [[class_index(each, class_names) for each in row] for row in target]
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise TargetError(f"target has rows of {sorted(lengths)} classes; every sample needs the same number, (N, K)")
    return torch.tensor(rows, dtype=torch.long)


def class_index(class_id: Any, class_names: Sequence[str] | None) -> int:
    """The class index for an index or a name. Raises TargetError, ClassNotFound and AmbiguousClass."""
    if isinstance(class_id, str):
        return _index_of_name(class_id, class_names)
    try:
        index = operator.index(class_id)
    except (TypeError, ValueError, RuntimeError):  # as a tensor with several entries raises
        index = None
    if index is None or isinstance(class_id, bool):
        raise TargetError(f"target: a class is {shown(class_id)}; allowed: an index or a name")
    if abs(index) >= 2**31:
        raise ClassNotFound(f"no class {index}; no model has as many")
    return index


def _index_of_name(name: str, class_names: Sequence[str] | None) -> int:
    if class_names is None:
        raise ClassNotFound(
            f"no class {shown(name)}: this model comes without class names. Give the index, or a LoadedModel with "
            "class_names"
        )
    folded = name.strip().casefold()
    exact = [index for index, full in enumerate(class_names) if full.casefold() == folded]
    # Some lists give synonyms, as in "tench, Tinca tinca".
    matches = exact or [index for index, full in enumerate(class_names) if folded in full.casefold().split(", ")]
    if not matches:
        raise ClassNotFound(
            f"no class {shown(name)} among {len(class_names)}{closest(name, class_names)}. A class index is allowed, "
            f"too: 0 to {len(class_names) - 1}"
        )
    if len(matches) > 1:
        listed = ", ".join(f"{index} ({class_names[index]})" for index in matches)
        raise AmbiguousClass(f"{len(matches)} classes have the name {shown(name)}: {listed}. Give one of these indices")
    return matches[0]


def check_range(labels: Tensor, classes: int) -> None:
    """Raise ClassNotFound unless all labels are class indices of a model with this many classes."""
    least, most = labels.aminmax()  # in one operation, because this is done for each heatmap
    if int(least) < 0 or int(most) >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)]
        raise ClassNotFound(f"no class {int(wrong[0])}: the model has {classes} classes, 0 to {classes - 1}")


def check_integers(labels: Tensor) -> None:
    """Raise TargetError unless the tensor holds integers."""
    if not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
        return
    advice = ""
    if labels.ndim == 2 and not labels.is_complex():
        advice = f". For one-hot or soft targets {_shape(labels)}, give {_CLASSES_OF_ONE_HOT}"
    raise TargetError(f"target is a tensor of {labels.dtype}; class indices are integers{advice}")


def check_not_one_hot(labels: Tensor, samples: int | None = None, classes: int | None = None) -> None:
    """Raise TargetError where labels are not class indices, but ones at the classes and zeros elsewhere.

    A row of zeros and ones that names a class twice is no sensible list of classes. A row without repeats, such as
    [0, 1], is: it names the first two classes. If the model has no others, it may be one-hot, too.

    Args:
        labels: (N,) or (N, K), integers.
        samples: The number of samples. One-hot labels (K,) of a single sample are recognised by it.
        classes: The number of the model's classes, where [0, 1] of two classes is to be refused.
    """
    rows = labels
    if labels.ndim == 1:
        rows = labels[None] if samples == 1 else labels[:0, None]
    if rows.ndim != 2 or rows.shape[1] < 2 or not bool(((rows == 0) | (rows == 1)).all()):
        return
    ones, argmax = rows.sum(1), _CLASSES_OF_ONE_HOT if labels.ndim == 2 else "onehot.argmax()"
    if bool(((ones == 1) & (rows.shape[1] == 2)).all()):
        if classes == 2:
            raise TargetError(
                f"target has shape {_shape(labels)} and the model has two classes, so these may be one-hot labels, or "
                f"both classes of each sample. For one-hot labels give {argmax}; for both classes give "
                "tp.targets.Classes([0, 1])"
            )
        return
    advice = f"give {argmax}"
    if bool((ones != 1).any()):
        advice = "give the indices of the classes, the same number K for every sample, (N, K)"
        if bool((ones == ones[0]).all()) and int(ones[0]):
            advice = f"give the indices of the classes, {_CLASSES_OF_MULTI_HOT.format(int(ones[0]))}"
    raise TargetError(
        f"target has shape {_shape(labels)} and holds only 0 and 1, with repeats: as a list of classes it would name "
        f"class 0 or 1 several times, so these are one-hot labels. Class indices are allowed: {advice}"
    )


def _shape(labels: Tensor) -> str:
    return str(tuple(labels.shape))

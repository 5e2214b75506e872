"""Resolve the classes that a user names, by index or by name, to class indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchpeek.errors import AmbiguousClass, ClassNotFound, TargetError, closest


def label_tensor(target: Sequence[Any], class_names: Sequence[str] | None) -> Tensor:
    """The class indices (N,) or (N, K) of a list of classes, or of a list of such lists. Raises TargetError."""
    nested = [isinstance(each, Sequence) and not isinstance(each, str) for each in target]
    if any(nested) and not all(nested):
        raise TargetError(f"target mixes classes and lists of classes: {target!r}; allowed: (N,) or (N, K)")
    if not any(nested):
        return torch.tensor([class_index(each, class_names) for each in target], dtype=torch.long)
    rows = [[class_index(each, class_names) for each in row] for row in target]
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise TargetError(f"target has rows of {sorted(lengths)} classes; every sample needs the same number, (N, K)")
    return torch.tensor(rows, dtype=torch.long)


def class_index(class_id: Any, class_names: Sequence[str] | None) -> int:
    """The class index for an index or a name. Raises TargetError, ClassNotFound and AmbiguousClass."""
    if isinstance(class_id, bool) or not (isinstance(class_id, (int, str)) or hasattr(class_id, "__index__")):
        raise TargetError(f"a class is {class_id!r}; allowed: an index or a name")
    if isinstance(class_id, str):
        return _index_of_name(class_id, class_names)
    if abs(int(class_id)) >= 2**31:
        raise ClassNotFound(f"no class {int(class_id)}; no model has as many")
    return int(class_id)


def _index_of_name(name: str, class_names: Sequence[str] | None) -> int:
    if class_names is None:
        raise ClassNotFound(
            f"no class {name!r}: this model comes without class names. Give the index, or a LoadedModel with "
            "class_names"
        )
    folded = name.strip().casefold()
    exact = [index for index, full in enumerate(class_names) if full.casefold() == folded]
    # Some lists give synonyms, as in "tench, Tinca tinca".
    matches = exact or [index for index, full in enumerate(class_names) if folded in full.casefold().split(", ")]
    if not matches:
        raise ClassNotFound(
            f"no class {name!r} among {len(class_names)}{closest(name, class_names)}. A class index is allowed, too"
        )
    if len(matches) > 1:
        listed = ", ".join(f"{index} ({class_names[index]})" for index in matches)
        raise AmbiguousClass(f"{len(matches)} classes have the name {name!r}: {listed}. Give one of these indices")
    return matches[0]


def check_range(labels: Tensor, classes: int) -> None:
    """Raise ClassNotFound unless all labels are class indices of a model with this many classes."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.numel():
        raise ClassNotFound(f"no class {int(wrong[0])}: the model has {classes} classes, 0 to {classes - 1}")

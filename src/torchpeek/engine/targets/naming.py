"""Which class is meant: by an index, a name, or a list of these for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchpeek.errors import AmbiguousClass, ClassNotFound, TargetError, closest


def label_tensor(target: Sequence[Any], class_names: Sequence[str] | None) -> Tensor:
    nested = [isinstance(each, Sequence) and not isinstance(each, str) for each in target]
    if any(nested) and not all(nested):
        raise TargetError(f"target mixes classes and lists of classes: {target!r}; give (N,) or (N, K)")
    if not any(nested):
        return torch.tensor([class_index(each, class_names) for each in target], dtype=torch.long)
    rows = [[class_index(each, class_names) for each in row] for row in target]
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise TargetError(f"target has rows of {sorted(lengths)} classes; every sample needs the same number, (N, K)")
    return torch.tensor(rows, dtype=torch.long)


def class_index(given: Any, class_names: Sequence[str] | None) -> int:
    """The index that is meant by an index or a name. Raises TargetError, ClassNotFound and AmbiguousClass."""
    if isinstance(given, bool) or not (isinstance(given, (int, str)) or hasattr(given, "__index__")):
        raise TargetError(f"a class is an index or a name; got {given!r}")
    if isinstance(given, str):
        return _index_of_name(given, class_names)
    if abs(int(given)) >= 2**31:
        raise ClassNotFound(f"no class {int(given)}; no model has as many")
    return int(given)


def _index_of_name(name: str, class_names: Sequence[str] | None) -> int:
    if class_names is None:
        raise ClassNotFound(
            f"no class {name!r}: this model comes without class names. Give the index, or a LoadedModel with "
            "class_names"
        )
    wanted = name.strip().casefold()
    exact = [index for index, full in enumerate(class_names) if full.casefold() == wanted]
    # Some lists give synonyms, as in "tench, Tinca tinca".
    found = exact or [index for index, full in enumerate(class_names) if wanted in full.casefold().split(", ")]
    if not found:
        raise ClassNotFound(
            f"no class {name!r} among {len(class_names)}{closest(name, class_names)}. An index works, too"
        )
    if len(found) > 1:
        listed = ", ".join(f"{index} ({class_names[index]})" for index in found)
        raise AmbiguousClass(f"{len(found)} classes are called {name!r}: {listed}. Give the index of the one you mean")
    return found[0]


def check_range(labels: Tensor, classes: int) -> None:
    """Raise ClassNotFound unless the model has all of these classes."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.numel():
        raise ClassNotFound(f"no class {int(wrong[0])}: the model has {classes} classes, 0 to {classes - 1}")

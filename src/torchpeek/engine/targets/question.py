"""What asking is: a Target, bound to a clean pass as a frozen Question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from torchpeek.hooks import containers


@runtime_checkable
class Target(Protocol):
    """What the user asks for: the predicted class, class 281, the top 5."""

    def bind(self, output: Any) -> Question:
        """Decide, on the output of the clean pass, what exactly is asked from now on."""
        ...


@runtime_checkable
class NamesClasses(Target, Protocol):
    """A target that may name classes."""

    def named(self, class_names: Sequence[str] | None) -> Target:
        """The same target with class names looked up."""
        ...


@runtime_checkable
class BySample(Target, Protocol):
    """A target that may have something for each sample."""

    def of_samples(self, first: int, last: int) -> Target:
        """The same target for the samples from `first` to before `last`."""
        ...


class Question(Protocol):
    """The same question on every later pass, however the prediction moves."""

    @property
    def labels(self) -> Tensor:
        """(N, K): what each score is of."""
        ...

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        """(n, K) scores of the n samples in `output`; sample i is a version of clean sample `rows[i]`."""
        ...

    def select(self, rows: slice | Tensor, columns: slice) -> Question:
        """The question of some of the samples and scores only."""
        ...


def has_separate_branches(target: object) -> bool:
    """Whether each score of the target comes from its own branch of the model, as that of a detected box does."""
    return bool(getattr(target, "separate_branches", False))


@dataclass(frozen=True)
class Bound:
    """A question that is bound already, as a target for further passes."""

    question: Question

    @property
    def layers(self) -> Sequence[str]:
        """The names of the inner layers that the question is about, if it is."""
        names: Sequence[str] = getattr(self.question, "layers", ())
        return names

    def bind(self, output: Any) -> Question:
        """The question, whatever the output."""
        return self.question


# What models call what they return of a picture as a whole, where it is no scores of classes.
EMBEDDING_NAMES = ("image_embeds", "embeddings", "pooler_output", "last_hidden_state")


def output_tensors(output: Any) -> dict[str, Tensor]:
    """Path -> floating-point tensor, of what a model returned; of an unknown kind of object its attributes."""
    found = {path: each for path, each in containers.leaves(output) if each.is_floating_point()}
    if not found and hasattr(output, "__dict__") and not isinstance(output, Tensor):
        inside = {"logits": getattr(output, "logits", None), **vars(output)}  # which may be a property
        found = {path: each for path, each in containers.leaves(inside) if each.is_floating_point()}
    return found


def index_list(given: Any) -> list[int]:
    """The whole numbers that are meant by one, or by several; none where that is no whole number, or not only."""
    given = given.tolist() if hasattr(given, "tolist") else given  # a tensor, or NumPy's
    several = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    whole = all(isinstance(each, int) and not isinstance(each, bool) for each in several)
    return several if whole else []

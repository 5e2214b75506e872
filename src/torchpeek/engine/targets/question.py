"""Target and Question: what a user asks for, and the same request bound to one clean pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from torchpeek.engine.observed import layers_of_target
from torchpeek.engine.targets.output_parts import output_tensors
from torchpeek.errors import InputError
from torchpeek.keywords import checked_keywords
from torchpeek.tensor_formats import dense


@runtime_checkable
class Target(Protocol):
    """What a user asks for, such as the predicted class, class 281, or the top 5.

    A target may also have the members `layers` (names of the inner layers that it reads, see `layers_of_target`),
    `separate_branches` (see `has_separate_branches`) and `for_pictures(shape)`, which returns the target for pictures
    (N, C, *grid) of this shape (see `bind_target`).

    Example:
        >>> target = tp.targets.Predicted()
        >>> target.bind(torch.tensor([[0.1, 0.7, 0.2]])).labels
        tensor([[1]])
    """

    def bind(self, output: Any) -> Question:
        """Bind the target to the output of the clean pass: the question does not change on later passes.

        Args:
            output: What the model returned for N samples; with inner layers to read, an `ObservedOutput`.

        Returns:
            The question, with labels (N, K).

        Raises:
            TargetError: When the output does not hold what the target asks for.

        Example:
            >>> question = tp.targets.Predicted().bind(torch.tensor([[0.1, 0.7, 0.2]]))
            >>> question(torch.tensor([[5.0, 4.0, 3.0]]), rows=torch.tensor([0]))  # class 1, which was predicted
            tensor([[4.]])
        """
        ...


@runtime_checkable
class NamesClasses(Target, Protocol):
    """A target that may name classes."""

    def named(self, class_names: Sequence[str] | None) -> Target:
        """Return the target with class names replaced by class indices."""
        ...


@runtime_checkable
class BySample(Target, Protocol):
    """A target that may have something for each sample."""

    def of_samples(self, first: int, last: int) -> Target:
        """Return the target for the samples from `first` to before `last`."""
        ...


class Question(Protocol):
    """A target that is bound to a clean pass. It scores later passes of the same samples, and does not change.

    A question may also have these members:

    - `kind`: what a score is, in words, for the provenance; see `score_kind`.
    - `noun`: what a label counts, where labels are not class indices; see `label_noun`.
    - `part`: the path of the tensor that the scores are read from; see `output_part`.
    - `positional`: whether the question is about a position; see `is_positional`.
    - `several_scales`, `box_totals` and `grids`: whether it reads boxes of several scales, sums over all of these
      boxes, and the grids of the scales; see `box_totals` and `scale_grids`.
    - `layers`: names of the inner layers that it reads; see `layers_of_target`.

    Example:
        >>> question = tp.targets.Predicted().bind(torch.tensor([[0.1, 0.7, 0.2]]))
        >>> question(torch.tensor([[5.0, 6.0, 7.0]]), torch.tensor([0]))
        tensor([[6.]])
    """

    @property
    def labels(self) -> Tensor:
        """(N, K): what each score is of."""
        ...

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        """Compute the scores of an output.

        Args:
            output: What the model returned for n samples.
            rows: (n,), int64: sample i of the output is a version of clean sample `rows[i]`.

        Returns:
            (n, K) scores.
        """
        ...

    def select(self, rows: slice | Tensor, columns: slice) -> Question:
        """Select some of the samples and of the scores.

        Args:
            rows: Which of the N samples.
            columns: Which of the K scores.

        Returns:
            The question of these samples and scores.
        """
        ...


class RowCountMismatch(InputError):
    """A later pass returned more or fewer rows of scores than it had samples."""


def scores_of(question: Question, output: Any, rows: Tensor) -> Tensor:
    """Compute the scores of a later pass over the samples `rows` (n,), and check that there is a row for each of them.

    Raises:
        RowCountMismatch: When the tensor that the scores are read from has another number of rows.
    """
    tensor = output_tensors(output).get(output_part(question)) if reads_entries(question) else None
    if tensor is not None and tensor.ndim and len(tensor) != len(rows):
        raise RowCountMismatch(
            f"the model returned {len(tensor)} row(s) of scores for {len(rows)} samples. Perhaps it takes batches of "
            "one size only, and regroups the values of others, as view(4, -1) does. Next: give it in a form that takes "
            "any batch, such as view(len(x), -1)"
        )
    return question(output, rows)


@checked_keywords
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
        ClassesPerSample(labels=tensor([5, 6]), part='', listed=False)
    """
    return target.of_samples(first, last) if isinstance(target, BySample) else target


def bind_target(target: Target, output: Any, picture: Sequence[int]) -> Question:
    """Bind a target to the output of the clean pass.

    Args:
        target: Any target.
        output: What the model returned for N samples.
        picture: The shape of the pictures, (N, C, *grid).

    Returns:
        The question.
    """
    # Not by isinstance, which for a protocol takes as long as all the rest here.
    for_pictures: Callable[[Sequence[int]], Target] | None = getattr(target, "for_pictures", None)
    return (target if for_pictures is None else for_pictures(picture)).bind(output)


def has_separate_branches(target: object) -> bool:
    """Whether each score of a target, or question, comes from its own branch of the model, as a detected box does."""
    return bool(getattr(target, "separate_branches", False))


def scale_grids(question: object) -> Sequence[tuple[int, int]]:
    """The grids (h, w) of all scales that a question reads, as of a dense detector; empty where these are not known."""
    grids: Sequence[tuple[int, int]] = getattr(question, "grids", ())
    return grids


def box_totals(question: object, output: Any) -> Sequence[Tensor]:
    """Weighted sums over all boxes in an output, of coordinates and of scores; empty where there is one scale.

    A box of a dense detector belongs to one of several scales, so a single layer does not explain all boxes. The sums
    depend on the layers of all scales. See `BoxScores.box_totals`.
    """
    if not getattr(question, "several_scales", False):
        return ()
    totals: Sequence[Tensor] = question.box_totals(output)  # type: ignore[attr-defined]  # one with scales has it
    return totals


def is_positional(question: object) -> bool:
    """Whether the question is about a position of the input, which moves when the input is mirrored."""
    return bool(getattr(question, "positional", False))


def label_noun(question: object) -> str | None:
    """What a label of the question counts, such as "channel"; None where labels are class indices."""
    noun: str | None = getattr(question, "noun", None)
    return noun


def score_kind(question: object) -> str:
    """What a score of the question is, in words; by default the name of the question's class."""
    return str(getattr(question, "kind", type(question).__name__))


def output_part(question: object) -> str:
    """The path of the tensor that the scores are read from; "" where the output is the tensor or no path is known."""
    return str(getattr(question, "part", ""))


def reads_entries(question: object) -> bool:
    """Whether the scores are read from entries of one tensor of the model's output, such as class logits."""
    return hasattr(question, "part") and not layers_of_target(question)


@dataclass(frozen=True)
class Bound:
    """A question as a target for further passes: it is bound already.

    Args:
        question: The question.
        layers: The names of the inner layers that it reads; empty where it reads the model's output alone.

    """

    question: Question
    layers: tuple[str, ...] = ()

    @property
    def separate_branches(self) -> bool:
        """Whether each score comes from its own branch of the model; see `has_separate_branches`."""
        return has_separate_branches(self.question)

    def bind(self, output: Any) -> Question:
        """Return the question, whatever the output is."""
        return self.question


def bound_to(question: Question) -> Bound:
    """The target of a question that is known apart from its pass, such as that of a heatmap."""
    return Bound(question, tuple(layers_of_target(question)))


def python_values(value: Any) -> Any:
    """A tensor, or a NumPy array or number, as Python numbers in lists; anything else as it is."""
    if isinstance(value, Tensor):
        value = dense(value, "the value")  # raises for one without values
    return value.tolist() if hasattr(value, "tolist") else value


def index_list(value: Any) -> list[int]:
    """One integer or several, as a list; empty where anything in `value` is not an integer."""
    value = python_values(value)
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    all_integers = all(isinstance(each, int) and not isinstance(each, bool) for each in values)
    return values if all_integers else []

"""Targets for entries of any output, and for any function of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchpeek.engine.targets.output_parts import output_tensors, resolve_part, tensor_at
from torchpeek.engine.targets.question import index_list
from torchpeek.errors import TargetError, type_shown
from torchpeek.hooks import containers
from torchpeek.keywords import checked_methods


@checked_methods
@dataclass(frozen=True, eq=False)
class OutputEntries:
    """Fixed entries of the model's output, as they are: of a regression, an embedding, a single logit.

    Args:
        labels: (N, K), int64: the indices of the entries in each sample's output, flattened.
        part: The path of the tensor in the model's output; "" where the output is the tensor itself.
        noun: What a label counts.
        kind: What a score is.

    Example:
        >>> question = tp.targets.OutputEntries(torch.tensor([[2, 0]]))
        >>> question(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0]))
        tensor([[3., 1.]])
    """

    labels: Tensor  # (N, K), int64
    part: str = ""
    noun: str = "output"

    kind: str = "output entry"

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        """Compute the scores of an output.

        Args:
            output: What the model returned for n samples.
            rows: (n,), int64: the clean sample that each of them is a version of.

        Returns:
            (n, K) scores, at least float32.

        Raises:
            TargetError: When the output has no tensor at `part`.

        Example:
            >>> question = tp.targets.OutputEntries(torch.tensor([[0]]), part="depth")
            >>> question({"depth": torch.tensor([[1.5]])}, torch.tensor([0]))
            tensor([[1.5000]])
        """
        entries = tensor_at(output, self.part).flatten(1)  # (n, D)
        return entries.gather(1, self.labels.to(entries.device)[rows.to(entries.device)])

    def select(self, rows: slice | Tensor, columns: slice) -> OutputEntries:
        """Select some of the samples and of the entries.

        Args:
            rows: Which of the N samples.
            columns: Which of the K entries.

        Returns:
            The question of these samples and entries.

        Example:
            >>> question = tp.targets.OutputEntries(torch.tensor([[1, 2], [3, 4]]))
            >>> question.select(slice(1, 2), slice(0, 1)).labels
            tensor([[3]])
        """
        return replace(self, labels=self.labels[rows][:, columns])


@checked_methods
@dataclass(frozen=True)
class Output:
    """Entries of the model's output, as they are: `Output(0)` is the number that a regression returns.

    The output of a sample may have any shape; it is flattened.

    Args:
        entries: The index of an entry, or a list of these.
        part: The path of a tensor in the model's output, as `tp.record` names it. "" for the only tensor, or for the
            one with the name `logits`.

    Example:
        >>> question = tp.targets.Output(1).bind(torch.tensor([[0.1, 0.7]]))
        >>> question(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
        tensor([[4.]])
    """

    entries: int | Sequence[int] = 0
    part: str = ""

    def bind(self, output: Any) -> OutputEntries:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with labels (N, K), K the number of entries.

        Raises:
            TargetError: When the output has no such entry or part, or several parts and `part` names none.

        Example:
            >>> target = tp.targets.Output([0, 2], part="depth")
            >>> target.bind({"depth": torch.rand(2, 3), "normals": torch.rand(2, 9)}).labels
            tensor([[0, 2],
                    [0, 2]])
        """
        part = resolve_part(output, self.part, ("logits",))
        values = tensor_at(output, part).flatten(1)  # (N, D)
        entries = index_list(self.entries)
        if not entries:
            raise TargetError(f"Output({self.entries!r}): give the index of an entry, or a list of these")
        wrong = [entry for entry in entries if not 0 <= entry < values.shape[1]]
        if wrong:
            raise TargetError(f"no output entry {wrong[0]}: the model returns {values.shape[1]} for each sample")
        return OutputEntries(torch.tensor([entries], device=values.device).expand(len(values), -1), part)


@checked_methods
@dataclass(frozen=True, eq=False)
class ComputedScores:
    """What a user's function computes from the output.

    Args:
        labels: (N, K), int64: the indices of the scores among those that the function returns.
        function: Called as `function(output, rows)`; see `Computed`.
        kind: What a score is: the function's name.
        noun: What a label counts.

    Example:
        >>> question = tp.targets.ComputedScores(torch.tensor([[0]]), lambda output, rows: output.sum(1), "sum")
        >>> question(torch.ones(1, 3), torch.tensor([0]))
        tensor([[3.]])
    """

    labels: Tensor  # (N, K), int64
    function: Callable[[Any, Tensor], Tensor]
    kind: str
    noun: str = "score"

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        """Compute the scores of an output.

        Args:
            output: What the model returned for n samples.
            rows: (n,), int64: the clean sample that each of them is a version of.

        Returns:
            (n, K) scores.

        Raises:
            TargetError: When the function does not return (n,) or (n, K).

        Example:
            >>> question = tp.targets.Computed(lambda output, rows: output * 2).bind(torch.ones(1, 2))
            >>> question(torch.tensor([[1.0, 3.0]]), torch.tensor([0]))
            tensor([[2., 6.]])
        """
        scores = _call_function(self.function, output, rows)  # (n, all scores of the function)
        return scores.gather(1, self.labels.to(scores.device)[rows.to(scores.device)])

    def select(self, rows: slice | Tensor, columns: slice) -> ComputedScores:
        """Select some of the samples and of the scores.

        Args:
            rows: Which of the N samples.
            columns: Which of the K scores.

        Returns:
            The question of these samples and scores.

        Example:
            >>> question = tp.targets.Computed(lambda output, rows: output).bind(torch.ones(2, 3))
            >>> question.select(slice(0, 1), slice(1, 3)).labels
            tensor([[1, 2]])
        """
        return replace(self, labels=self.labels[rows][:, columns])


@checked_methods
@dataclass(frozen=True)
class Computed:
    """Any function of the output.

    Args:
        function: Called as `function(output, rows)`; returns (n,) or (n, K) scores. `output` is what the model returned
            for n samples, and `rows` (n,) are the clean samples that they are versions of. The function must compute
            the scores of each sample from that sample alone, and may not depend on the clean pass in any other way.

    Example:
        >>> target = tp.targets.Computed(lambda output, rows: output[:, 2:].logsumexp(1))
        >>> target.bind(torch.zeros(1, 3))(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0]))
        tensor([[3.]])
    """

    function: Callable[[Any, Tensor], Tensor]

    def of_samples(self, first: int, last: int) -> Computed:
        """Restrict the target to some of the samples.

        Args:
            first: The first of the samples.
            last: One after the last of them.

        Returns:
            The target for these samples. The `rows` of its function still count among all samples.

        Example:
            >>> target = tp.targets.Computed(lambda output, rows: rows * 1.0).of_samples(2, 4)
            >>> target.function(None, torch.tensor([0, 1]))
            tensor([2., 3.])
        """
        return Computed(_FromSample(self.function, first)) if first else self

    def bind(self, output: Any) -> ComputedScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with labels (N, K), K the number of scores that the function returns.

        Raises:
            TargetError: When the function cannot be called, does not return (N,) or (N, K), or the number of samples
                does not follow from the output.

        Example:
            >>> target = tp.targets.Computed(lambda output, rows: output[:, :2])
            >>> target.bind(torch.ones(1, 3)).labels
            tensor([[0, 1]])
        """
        if not callable(self.function):
            raise TargetError(f"Computed takes a function; got {type_shown(self.function)}")
        count = _sample_count(output)
        scores = _call_function(self.function, output, torch.arange(count))
        labels = torch.arange(scores.shape[1], device=scores.device).expand(count, -1)
        return ComputedScores(labels, self.function, _function_name(self.function))


@dataclass(frozen=True)
class _FromSample:
    """A user's function for the samples from `first` on."""

    function: Callable[[Any, Tensor], Tensor]
    first: int

    @property
    def __name__(self) -> str:
        return _function_name(self.function)

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        return self.function(output, rows + self.first)


@checked_methods
@dataclass(frozen=True, eq=False)
class Answered:
    """A question of which only the labels are known, as in a heatmap that was read from a file.

    Args:
        labels: (N, K): what each score is of.
        kind: What a score is.

    Example:
        >>> question = tp.targets.Answered(torch.tensor([[0]]), "output entry")
        >>> question.kind
        'output entry'
    """

    labels: Tensor  # (N, K)
    kind: str

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        """Raise an error: the file does not hold how the scores were computed.

        Args:
            output: What the model returned. It is not read.
            rows: (n,), int64: the clean samples. They are not read.

        Returns:
            Nothing.

        Raises:
            TargetError: Always.

        Example:
            >>> question = tp.targets.Answered(torch.tensor([[0]]), "sum")
            >>> question(torch.ones(1, 3), torch.tensor([0]))  # doctest: +IGNORE_EXCEPTION_DETAIL
            Traceback (most recent call last):
            torchpeek.errors.TargetError: this heatmap was read from a file ...
        """
        raise TargetError(f"this heatmap was read from a file, which does not hold how to compute its {self.kind}")

    def select(self, rows: slice | Tensor, columns: slice) -> Answered:
        """Select some of the samples and of the scores.

        Args:
            rows: Which of the N samples.
            columns: Which of the K scores.

        Returns:
            The question of these samples and scores.

        Example:
            >>> question = tp.targets.Answered(torch.tensor([[1, 2], [3, 4]]), "sum")
            >>> question.select(slice(1, 2), slice(0, 1)).labels
            tensor([[3]])
        """
        return replace(self, labels=self.labels[rows][:, columns])


def _function_name(function: Callable[[Any, Tensor], Tensor]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _call_function(function: Callable[[Any, Tensor], Tensor], output: Any, rows: Tensor) -> Tensor:
    """(n, K): the scores that a user's function returns. Raises TargetError."""
    scores = function(output, rows)
    if not isinstance(scores, Tensor) or scores.ndim not in (1, 2) or len(scores) != len(rows) or not scores.numel():
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type_shown(scores)
        raise TargetError(
            f"the function returned {got} for {len(rows)} samples; allowed: a tensor ({len(rows)},) or ({len(rows)}, K)"
        )
    if scores.is_complex():
        raise TargetError("the function returned complex numbers; allowed: real ones, such as scores.abs()")
    return scores.unsqueeze(1) if scores.ndim == 1 else scores


def _sample_count(output: Any) -> int:
    """The number of samples in what a model returned. Raises TargetError where it does not follow from the output."""
    if isinstance(output, (list, tuple)) and output and all(isinstance(each, Mapping) for each in output):
        return len(output)  # a dict for each picture, as detectors return them
    tensors = [tensor for _, tensor in containers.leaves(output)] or list(output_tensors(output).values())
    count = next((len(tensor) for tensor in tensors if tensor.ndim), 0)
    if not count:
        raise TargetError(
            f"the model returned {type_shown(output)} without a tensor whose first axis is the samples, so how "
            "many there are cannot be told. Wrap the model so that it returns a tensor, a tuple or a dict"
        )
    return count

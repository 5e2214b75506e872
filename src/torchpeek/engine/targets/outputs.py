"""Targets for outputs other than class logits: entries, pixels, embeddings, and any function of the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.targets.classes import ClassId
from torchpeek.engine.targets.naming import check_range, class_index
from torchpeek.engine.targets.question import index_list, output_tensors
from torchpeek.errors import TargetError
from torchpeek.hooks import containers


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
        entries = _tensor_at(output, self.part).flatten(1)  # (n, D)
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
        part = _resolve_part(output, self.part, ("logits",))
        values = _tensor_at(output, part).flatten(1)  # (N, D)
        entries = index_list(self.entries)
        if not entries:
            raise TargetError(f"Output({self.entries!r}): give the index of an entry, or a list of these")
        wrong = [entry for entry in entries if not 0 <= entry < values.shape[1]]
        if wrong:
            raise TargetError(f"no output entry {wrong[0]}: the model returns {values.shape[1]} for each sample")
        return OutputEntries(torch.tensor([entries], device=values.device).expand(len(values), -1), part)


@dataclass(frozen=True, eq=False)
class PixelScores:
    """The mean logit of classes over fixed pixels of a segmentation.

    Args:
        labels: (N, K), int64: the class indices.
        masks: (N, K, *grid), bool: the pixels.
        part: The path of the logits in the model's output; "" where the output is the tensor itself.
        kind: What a score is.

    Source: Seg-Grad-CAM, arXiv:2002.11434, which takes the sum of the logits.

    Example:
        >>> question = tp.targets.PixelScores(torch.tensor([[0]]), torch.tensor([[[[True, False]]]]))
        >>> question(torch.tensor([[[[1.0, 5.0]], [[3.0, 2.0]]]]), torch.tensor([0]))
        tensor([[1.]])
    """

    labels: Tensor  # (N, K), int64
    masks: Tensor  # (N, K, *grid), bool
    part: str = ""
    kind: str = "mean logit of the masked pixels"
    positional: ClassVar[bool] = True

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
            >>> question = tp.targets.PixelScores(torch.tensor([[1]]), torch.ones(1, 1, 1, 2, dtype=torch.bool))
            >>> question(torch.tensor([[[[1.0, 5.0]], [[3.0, 2.0]]]]), torch.tensor([0]))
            tensor([[2.5000]])
        """
        logits = _tensor_at(output, self.part)  # (n, classes, *grid)
        rows = rows.to(logits.device)
        labels, masks = self.labels.to(logits.device)[rows], self.masks.to(logits.device)[rows]
        index = labels.reshape(*labels.shape, *(1 for _ in logits.shape[2:])).expand(-1, -1, *logits.shape[2:])
        label_logits = logits.gather(1, index)  # (n, K, *grid)
        return torch.where(masks, label_logits, 0).flatten(2).sum(2) / masks.flatten(2).sum(2)

    def select(self, rows: slice | Tensor, columns: slice) -> PixelScores:
        """Select some of the samples and of the scores.

        Args:
            rows: Which of the N samples.
            columns: Which of the K scores.

        Returns:
            The question of these samples and scores.

        Example:
            >>> question = tp.targets.Pixels(1, mask=torch.ones(4, 4)).bind(torch.rand(2, 3, 4, 4))
            >>> question.select(slice(0, 1), slice(None)).masks.shape
            torch.Size([1, 1, 4, 4])
        """
        return replace(self, labels=self.labels[rows][:, columns], masks=self.masks[rows][:, columns])


@dataclass(frozen=True, eq=False)
class Pixels:
    """Pixels of a segmentation (N, classes, *grid): the mean of a class's logit over them.

    Args:
        of: A class, by index or name. None: for each sample the class that wins most pixels.
        mask: (*grid) or (N, *grid), of the output's size, True at the pixels. None: those that the class wins on the
            clean pass.
        part: The path of a tensor in the model's output, as `tp.record` names it. "" for the only tensor, or for the
            one with the name `out` or `logits`.
        samples: Which entries of a mask (N, *grid) belong to the samples; None for all.

    Source: Seg-Grad-CAM, arXiv:2002.11434, which takes the sum of the logits.

    Example:
        >>> logits = torch.tensor([[[[1.0, 5.0]], [[3.0, 2.0]]]])
        >>> tp.targets.Pixels(0).bind(logits).masks
        tensor([[[[False,  True]]]])
    """

    of: ClassId | None = None
    mask: Tensor | None = None
    part: str = ""
    samples: slice | None = None

    def bind(self, output: Any) -> PixelScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with labels (N, 1) and masks (N, 1, *grid).

        Raises:
            TargetError: When the output is no segmentation, the mask does not fit, or a sample has no such pixel.
            ClassNotFound: When the model does not have the class.

        Example:
            >>> target = tp.targets.Pixels(0, mask=torch.tensor([[True, True]]))
            >>> target.bind(torch.tensor([[[[1.0, 5.0]], [[3.0, 2.0]]]])).labels
            tensor([[0]])
        """
        part = _resolve_part(output, self.part, ("out", "logits"))
        logits = _tensor_at(output, part).detach()
        if logits.ndim < 3:
            raise TargetError(f"Pixels reads outputs (N, classes, *grid); the model returned {tuple(logits.shape)}")
        winning_class = logits.argmax(1)  # (N, *grid)
        if self.of is None:
            labels = winning_class.flatten(1).mode(1).values.unsqueeze(1)
        else:
            labels = torch.tensor([[class_index(self.of, None)]], device=logits.device).expand(len(logits), -1)
            check_range(labels, logits.shape[1])
        if self.mask is None:
            masks = winning_class == labels.view(-1, *(1 for _ in logits.shape[2:]))
        else:
            mask = _bool_mask(self.mask).to(logits.device)
            if self.samples is not None and mask.ndim == logits.ndim - 1:
                mask = mask[self.samples]
            allowed = (tuple(logits.shape[2:]), (len(logits), *logits.shape[2:]))
            if tuple(mask.shape) not in allowed:
                raise TargetError(
                    f"mask has shape {tuple(mask.shape)}; allowed: {allowed[0]}, or {allowed[1]}, the size of the "
                    "model's output, which may be smaller than the input"
                )
            masks = mask.expand(len(logits), *logits.shape[2:])
        if empty := (~masks.flatten(1).any(1)).nonzero().flatten().tolist():
            reason = "the mask is empty" if self.mask is not None else f"no pixel is of class {int(labels[empty[0]])}"
            raise TargetError(f"in sample {empty[0]} {reason}, so there is no score. Give another class or mask")
        return PixelScores(labels, masks.unsqueeze(1), part)

    def of_samples(self, first: int, last: int) -> Pixels:
        """Restrict the target to some of the samples.

        Args:
            first: The first of the samples.
            last: One after the last of them.

        Returns:
            The target for these samples: of a mask (N, *grid) it uses theirs.

        Example:
            >>> target = tp.targets.Pixels(1, mask=torch.ones(4, 8, 8))
            >>> target.of_samples(1, 3).samples
            slice(1, 3, None)
        """
        return replace(self, samples=slice(first, last))

    def named(self, class_names: Sequence[str] | None) -> Pixels:
        """Replace the class name in `of` by its class index.

        Args:
            class_names: The model's class names, by index; None where it has none.

        Returns:
            The target with a class index, or without a class.

        Raises:
            ClassNotFound: When the name is not among them.
            AmbiguousClass: When several classes have the name.

        Example:
            >>> target = tp.targets.Pixels("road")
            >>> target.named(["sky", "road"]).of
            1
        """
        return self if self.of is None else replace(self, of=class_index(self.of, class_names))


@dataclass(frozen=True, eq=False)
class SimilarityScores:
    """The cosine similarity of the model's output to fixed embeddings.

    Args:
        labels: (N, K), int64: the indices of the embeddings.
        embeddings: (K, D): the embeddings.
        part: The path of the output's embedding in the model's output; "" where the output is the tensor itself.
        kind: What a score is.
        noun: What a label counts.

    Example:
        >>> question = tp.targets.SimilarityScores(torch.tensor([[0]]), torch.tensor([[0.0, 2.0]]))
        >>> question(torch.tensor([[0.0, 5.0]]), torch.tensor([0]))
        tensor([[1.]])
    """

    labels: Tensor  # (N, K), int64
    embeddings: Tensor  # (K, D)
    part: str = ""
    kind: str = "cosine similarity"
    noun: str = "embedding"

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        """Compute the scores of an output.

        Args:
            output: What the model returned for n samples.
            rows: (n,), int64: the clean sample that each of them is a version of.

        Returns:
            (n, K) scores in [-1, 1], at least float32.

        Raises:
            TargetError: When the output has no tensor at `part`.

        Example:
            >>> question = tp.targets.SimilarityScores(torch.tensor([[0, 1]]), torch.eye(2))
            >>> question(torch.tensor([[0.0, 5.0]]), torch.tensor([0]))
            tensor([[0., 1.]])
        """
        values = _tensor_at(output, self.part).flatten(1)  # (n, D)
        embeddings = self.embeddings.to(values)[self.labels.to(values.device)[rows.to(values.device)]]  # (n, K, D)
        return torch.cosine_similarity(values.unsqueeze(1), embeddings, dim=2)

    def select(self, rows: slice | Tensor, columns: slice) -> SimilarityScores:
        """Select some of the samples and of the embeddings.

        Args:
            rows: Which of the N samples.
            columns: Which of the K embeddings.

        Returns:
            The question of these samples and embeddings.

        Example:
            >>> question = tp.targets.Similarity(torch.eye(2)).bind(torch.rand(3, 2))
            >>> question.select(slice(0, 1), slice(1, 2)).labels
            tensor([[1]])
        """
        return replace(self, labels=self.labels[rows][:, columns])


@dataclass(frozen=True, eq=False)
class Similarity:
    """The cosine similarity of the model's output, an embedding (N, D), to that of another picture, or of a text.

    Args:
        to: (D,) or (K, D): embeddings that the same model, or its text encoder, returned.
        part: The path of a tensor in the model's output, as `tp.record` names it. "" for the only tensor, or for the
            one with the name `image_embeds`, `embeddings` or `pooler_output`.

    Example:
        >>> question = tp.targets.Similarity(torch.tensor([0.0, 2.0])).bind(torch.rand(1, 2))
        >>> question(torch.tensor([[0.0, 5.0]]), torch.tensor([0]))
        tensor([[1.]])
    """

    to: Tensor
    part: str = ""

    def bind(self, output: Any) -> SimilarityScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with labels (N, K), K the number of embeddings.

        Raises:
            TargetError: When the embeddings do not have the output's D, are zero, or are not finite.

        Example:
            >>> target = tp.targets.Similarity(torch.eye(3))
            >>> target.bind(torch.rand(2, 3)).labels
            tensor([[0, 1, 2],
                    [0, 1, 2]])
        """
        part = _resolve_part(output, self.part, ("image_embeds", "embeddings", "pooler_output"))
        values = _tensor_at(output, part).flatten(1)  # (N, D)
        fits = isinstance(self.to, Tensor) and self.to.ndim in (1, 2) and self.to.shape[-1] == values.shape[1]
        if not fits or not self.to.numel():
            got = f"shape {tuple(self.to.shape)}" if isinstance(self.to, Tensor) else f"a {type(self.to).__name__}"
            raise TargetError(f"Similarity takes embeddings (D,) or (K, D) with D = {values.shape[1]}; got {got}")
        embeddings = self.to.detach().reshape(-1, values.shape[1])
        if not (embeddings.isfinite().all(1) & (embeddings != 0).any(1)).all():
            raise TargetError(
                "Similarity(to=...) has NaN or infinity, or an embedding that is zero, which has no direction. Give "
                "embeddings that are finite and not zero"
            )
        labels = torch.arange(len(embeddings), device=values.device).expand(len(values), -1)
        return SimilarityScores(labels, embeddings, part)


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
            raise TargetError(f"Computed takes a function; got a {type(self.function).__name__}")
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
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise TargetError(
            f"the function returned {got} for {len(rows)} samples; allowed: a tensor ({len(rows)},) or ({len(rows)}, K)"
        )
    return scores.unsqueeze(1) if scores.ndim == 1 else scores


def _sample_count(output: Any) -> int:
    """The number of samples in what a model returned. Raises TargetError where it does not follow from the output."""
    if isinstance(output, (list, tuple)) and output and all(isinstance(each, Mapping) for each in output):
        return len(output)  # a dict for each picture, as detectors return them
    tensors = [tensor for _, tensor in containers.leaves(output)] or list(output_tensors(output).values())
    count = next((len(tensor) for tensor in tensors if tensor.ndim), 0)
    if not count:
        raise TargetError(
            f"the model returned a {type(output).__name__} without a tensor whose first axis is the samples, so how "
            "many there are cannot be told. Wrap the model so that it returns a tensor, a tuple or a dict"
        )
    return count


def _bool_mask(mask: Any) -> Tensor:
    """(*grid) or (N, *grid), bool. Raises TargetError for other values than True and False, or 1 and 0."""
    try:
        tensor = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(f"mask is a {type(mask).__name__}; allowed: a tensor of bool, or of 0 and 1") from None
    if tensor.dtype != torch.bool and not bool(((tensor == 0) | (tensor == 1)).all()):
        raise TargetError("mask has other values than 0 and 1. A mask selects pixels: give mask > 0.5, for example")
    return tensor.bool()


def _resolve_part(output: Any, part: str, preferred: Sequence[str]) -> str:
    """The path of the tensor to read: `part`; without it the only tensor, or the first with a `preferred` name.

    Raises TargetError.
    """
    tensors = {path: tensor for path, tensor in output_tensors(output).items() if tensor.ndim}
    if part in tensors:
        return part
    if not tensors:
        content = "one number for all the samples" if isinstance(output, Tensor) else "no floating-point tensor"
        raise TargetError(
            f"the model returned a {type(output).__name__} of {content}; a score is read from a tensor whose first "
            "axis is the samples. Wrap the model so that it returns one"
        )
    if not part:
        candidates = list(tensors) if len(tensors) == 1 else [name for name in preferred if name in tensors]
        if candidates:
            return candidates[0]
    listed = ", ".join(f"{path!r} {tuple(tensor.shape)}" for path, tensor in tensors.items())
    if list(tensors) == [""]:
        raise TargetError(f"the model returns one tensor, and no part {part!r}; leave part= out")
    problem = f"no tensor at {part!r}" if part else "the target does not name one"
    raise TargetError(f"the model's output has several parts, and {problem}; allowed for part=: {listed}")


def _tensor_at(output: Any, part: str) -> Tensor:
    """(N, ...): the tensor at the path `part` of what the model returned, at least float32."""
    tensor = output_tensors(output).get(part)
    if tensor is None:
        raise TargetError(f"the model returned {part!r} on the clean pass, but not on a later pass")
    tensor = at_least_float32(tensor)
    return tensor.unsqueeze(1) if tensor.ndim == 1 else tensor

"""Questions about anything else that a model returns: entries, pixels, embeddings, and any function of it."""

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
    """Entries of what a model returns for each sample, as they are: of a regression, an embedding, a single logit."""

    labels: Tensor  # (N, K), int64: which entries
    part: str = ""  # which tensor of the output, by path
    noun: str = "output"  # what a label counts

    kind: str = "output entry"

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        entries = _tensor_at(output, self.part).flatten(1)  # (n, entries)
        return entries.gather(1, self.labels.to(entries.device)[rows.to(entries.device)])

    def select(self, rows: slice | Tensor, columns: slice) -> OutputEntries:
        return replace(self, labels=self.labels[rows][:, columns])


@dataclass(frozen=True)
class Output:
    """Entries of the model's output, as they are: `Output(0)` is the number that a regression returns.

    For (N,) or (N, D) outputs, and larger ones laid flat. `part` is the path of a tensor in what the model returns, as
    record names them; it may be left out where there is one, or one that is called `logits`.
    """

    entries: int | Sequence[int] = 0
    part: str = ""

    def bind(self, output: Any) -> OutputEntries:
        part = _resolve_part(output, self.part, ("logits",))
        found = _tensor_at(output, part).flatten(1)  # (N, D)
        given = index_list(self.entries)
        if not given:
            raise TargetError(f"Output({self.entries!r}): give the index of an entry, or a list of these")
        wrong = [each for each in given if not 0 <= each < found.shape[1]]
        if wrong:
            raise TargetError(f"no output entry {wrong[0]}: the model returns {found.shape[1]} for each sample")
        return OutputEntries(torch.tensor([given], device=found.device).expand(len(found), -1), part)


@dataclass(frozen=True, eq=False)
class PixelScores:
    """The mean logit of classes over fixed pixels of a segmentation."""

    labels: Tensor  # (N, K), int64: the classes
    masks: Tensor  # (N, K, *grid), bool
    part: str = ""
    kind: str = "mean logit of the masked pixels"
    positional: ClassVar[bool] = True  # a mirrored picture would have it elsewhere

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        logits = _tensor_at(output, self.part)  # (n, classes, *grid)
        rows = rows.to(logits.device)
        labels, masks = self.labels.to(logits.device)[rows], self.masks.to(logits.device)[rows]
        index = labels.reshape(*labels.shape, *(1 for _ in logits.shape[2:])).expand(-1, -1, *logits.shape[2:])
        own = logits.gather(1, index)  # (n, K, *grid)
        return torch.where(masks, own, 0).flatten(2).sum(2) / masks.flatten(2).sum(2)

    def select(self, rows: slice | Tensor, columns: slice) -> PixelScores:
        return replace(self, labels=self.labels[rows][:, columns], masks=self.masks[rows][:, columns])


@dataclass(frozen=True, eq=False)
class Pixels:
    """Pixels of a segmentation (N, classes, *grid): the mean of a class's logit over them (Seg-Grad-CAM's score).

    `mask` is (*grid), or (N, *grid), of the output's size, True at the pixels that are asked about; None is those at
    which the class wins on the clean pass. `of` is a class, by index or name; None the one that wins most pixels.
    `part` is as for Output; left out, of several it is the one that is called `out` or `logits`.
    """

    of: ClassId | None = None
    mask: Tensor | None = None
    part: str = ""
    samples: slice | None = None  # which of all the masks are theirs, where each sample has its own

    def bind(self, output: Any) -> PixelScores:
        part = _resolve_part(output, self.part, ("out", "logits"))
        logits = _tensor_at(output, part).detach()
        if logits.ndim < 3:
            raise TargetError(f"Pixels is of outputs (N, classes, *grid); the model returned {tuple(logits.shape)}")
        winning = logits.argmax(1)  # (N, *grid)
        if self.of is None:
            labels = winning.flatten(1).mode(1).values.unsqueeze(1)
        else:
            labels = torch.tensor([[class_index(self.of, None)]], device=logits.device).expand(len(logits), -1)
            check_range(labels, logits.shape[1])
        if self.mask is None:
            masks = winning == labels.view(-1, *(1 for _ in logits.shape[2:]))
        else:
            mask = _bool_mask(self.mask).to(logits.device)
            if self.samples is not None and mask.ndim == logits.ndim - 1:
                mask = mask[self.samples]
            fits = (tuple(logits.shape[2:]), (len(logits), *logits.shape[2:]))
            if tuple(mask.shape) not in fits:
                raise TargetError(
                    f"mask has shape {tuple(mask.shape)}; allowed: {fits[0]}, or {fits[1]}, the size of the model's "
                    "output, which may be smaller than the input"
                )
            masks = mask.expand(len(logits), *logits.shape[2:])
        if empty := (~masks.flatten(1).any(1)).nonzero().flatten().tolist():
            what = "the mask is empty" if self.mask is not None else f"no pixel is of class {int(labels[empty[0]])}"
            raise TargetError(f"in sample {empty[0]} {what}; there is nothing to explain. Give another class or mask")
        return PixelScores(labels, masks.unsqueeze(1), part)

    def of_samples(self, first: int, last: int) -> Pixels:
        """For some of the samples: theirs of the masks, where each has its own."""
        return replace(self, samples=slice(first, last))

    def named(self, class_names: Sequence[str] | None) -> Pixels:
        return self if self.of is None else replace(self, of=class_index(self.of, class_names))


@dataclass(frozen=True, eq=False)
class SimilarityScores:
    """The cosine between a model's embedding and fixed ones."""

    labels: Tensor  # (N, K), int64: which of the embeddings
    embeddings: Tensor  # (K, D)
    part: str = ""
    kind: str = "cosine similarity"
    noun: str = "embedding"

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        found = _tensor_at(output, self.part).flatten(1)  # (n, D)
        chosen = self.embeddings.to(found)[self.labels.to(found.device)[rows.to(found.device)]]  # (n, K, D)
        return torch.cosine_similarity(found.unsqueeze(1), chosen, dim=2)

    def select(self, rows: slice | Tensor, columns: slice) -> SimilarityScores:
        return replace(self, labels=self.labels[rows][:, columns])


@dataclass(frozen=True, eq=False)
class Similarity:
    """How alike the model's output, an embedding (N, D), is to others: to that of another picture, or of a text.

    `to` is (D,) or (K, D), as the same model, or the text half of it, returned them; the score is the cosine. `part` is
    as for Output; left out, of several it is the one that is called `image_embeds`, `embeddings` or `pooler_output`.
    """

    to: Tensor
    part: str = ""

    def bind(self, output: Any) -> SimilarityScores:
        part = _resolve_part(output, self.part, ("image_embeds", "embeddings", "pooler_output"))
        found = _tensor_at(output, part).flatten(1)
        fits = isinstance(self.to, Tensor) and self.to.ndim in (1, 2) and self.to.shape[-1] == found.shape[1]
        if not fits or not self.to.numel():
            got = f"shape {tuple(self.to.shape)}" if isinstance(self.to, Tensor) else f"a {type(self.to).__name__}"
            raise TargetError(f"Similarity takes embeddings (D,) or (K, D) with D = {found.shape[1]}; got {got}")
        embeddings = self.to.detach().reshape(-1, found.shape[1])
        if not (embeddings.isfinite().all(1) & (embeddings != 0).any(1)).all():
            raise TargetError("Similarity(to=...) has NaN or infinity, or is zero, to which nothing has an angle")
        labels = torch.arange(len(embeddings), device=found.device).expand(len(found), -1)
        return SimilarityScores(labels, embeddings, part)


@dataclass(frozen=True, eq=False)
class ComputedScores:
    """What a function of the user's makes of the output."""

    labels: Tensor  # (N, K), int64: which of the K
    function: Callable[[Any, Tensor], Tensor]
    kind: str
    noun: str = "score"

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        found = _call_function(self.function, output, rows)  # (n, all of them)
        return found.gather(1, self.labels.to(found.device)[rows.to(found.device)])

    def select(self, rows: slice | Tensor, columns: slice) -> ComputedScores:
        return replace(self, labels=self.labels[rows][:, columns])


@dataclass(frozen=True)
class Computed:
    """Any function of the output: `function(output, rows)` returns (n,) or (n, K) scores.

    `output` is what the model returned for n samples, and `rows` (n,) which clean samples they are versions of: what
    the function needs to know of the clean pass, it has to have decided by then. Nothing must mix the samples.
    """

    function: Callable[[Any, Tensor], Tensor]

    def of_samples(self, first: int, last: int) -> Computed:
        """For some of the samples: the function is still told which of all they are."""
        return Computed(_FromSample(self.function, first)) if first else self

    def bind(self, output: Any) -> ComputedScores:
        if not callable(self.function):
            raise TargetError(f"Computed takes a function; got a {type(self.function).__name__}")
        count = _sample_count(output)
        found = _call_function(self.function, output, torch.arange(count))
        labels = torch.arange(found.shape[1], device=found.device).expand(count, -1)
        return ComputedScores(labels, self.function, getattr(self.function, "__name__", type(self.function).__name__))


@dataclass(frozen=True)
class _FromSample:
    """A function of the user's, for samples that are counted from `first` on."""

    function: Callable[[Any, Tensor], Tensor]
    first: int

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        return self.function(output, rows + self.first)


@dataclass(frozen=True, eq=False)
class Answered:
    """A question that is known by its labels only, as a heatmap that was read from a file has it."""

    labels: Tensor  # (N, K)
    kind: str

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        raise TargetError(f"this heatmap was read from a file, which does not hold how to compute its {self.kind}")

    def select(self, rows: slice | Tensor, columns: slice) -> Answered:
        return replace(self, labels=self.labels[rows][:, columns])


def _call_function(function: Callable[[Any, Tensor], Tensor], output: Any, rows: Tensor) -> Tensor:
    found = function(output, rows)
    if not isinstance(found, Tensor) or found.ndim not in (1, 2) or len(found) != len(rows) or not found.numel():
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise TargetError(f"the function returned {got} for {len(rows)} samples; allowed: ({len(rows)},), or that by K")
    return found.unsqueeze(1) if found.ndim == 1 else found


def _sample_count(output: Any) -> int:
    """How many samples a model returned something for. Raises TargetError where that cannot be told."""
    if isinstance(output, (list, tuple)) and output and all(isinstance(each, Mapping) for each in output):
        return len(output)  # a dict for each picture, as detectors return them
    tensors = [each for _, each in containers.leaves(output)] or list(output_tensors(output).values())
    count = next((len(each) for each in tensors if each.ndim), 0)
    if not count:
        raise TargetError(
            f"the model returned a {type(output).__name__} without a tensor that begins with the samples, so how many "
            "there are cannot be told. Wrap the model so that it returns a tensor, a tuple or a dict"
        )
    return count


def _bool_mask(given: Any) -> Tensor:
    """(*grid) or (N, *grid), bool. Raises TargetError for what is not true or false, or 1 or 0."""
    try:
        mask = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(f"mask is a {type(given).__name__}; allowed: a tensor of bool, or of 0 and 1") from None
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise TargetError("mask has other values than 0 and 1; it says which pixels count: give mask > 0.5")
    return mask.bool()


def _resolve_part(output: Any, part: str, usual: Sequence[str]) -> str:
    """The path of the tensor that is meant: `part`, or else the only one, or the one of a `usual` name.

    Raises TargetError.
    """
    tensors = {path: each for path, each in output_tensors(output).items() if each.ndim}
    if part in tensors:
        return part
    if not tensors:
        what = "one number for all the samples" if isinstance(output, Tensor) else "no floating-point tensor"
        raise TargetError(
            f"the model returned a {type(output).__name__} of {what}; a score is read from a tensor that begins with "
            "the samples. Wrap the model so that it returns one"
        )
    if not part:
        found = list(tensors) if len(tensors) == 1 else [name for name in usual if name in tensors]
        if found:
            return found[0]
    listed = ", ".join(f"{path!r} {tuple(each.shape)}" for path, each in tensors.items())
    if list(tensors) == [""]:
        raise TargetError(f"the model returns one tensor, and no part {part!r}; leave part= out")
    wanted = f"no tensor at {part!r}" if part else "which of them is meant is not said"
    raise TargetError(f"the model's output has several parts, and {wanted}; part= is one of: {listed}")


def _tensor_at(output: Any, part: str) -> Tensor:
    """(N, ...): the tensor at the path `part` of what the model returned, at least float32."""
    found = output_tensors(output).get(part)
    if found is None:
        raise TargetError(f"the model returned {part!r} on the clean pass, and does not on another one")
    found = at_least_float32(found)
    return found.unsqueeze(1) if found.ndim == 1 else found

"""What a model said of one picture, and what was asked about, in the words of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from torchpeek.cli.targets import is_detection, pixels_part
from torchpeek.engine import Question, Trace
from torchpeek.engine.targets import Box, BoxScores, PixelScores, SimilarityScores, class_logits
from torchpeek.errors import TargetError
from torchpeek.hooks import containers
from torchpeek.picture import Picture
from torchpeek.store import file_stem

Kind: TypeAlias = Literal["probability", "score", "share", "similarity"]
"""What a number is: of a class; of a box; of the pixels, those that a class wins; of a text, the cosine."""

Corners: TypeAlias = tuple[float, ...]
"""Left, top, right, bottom in pixels of the original picture."""

_MOST = 5  # of what is predicted; more makes a report no clearer


@dataclass(frozen=True)
class Answer:
    """A class, a box, the pixels of a class or a text: what it is called, and how sure the model is of it."""

    name: str
    value: float
    kind: Kind
    label: int  # the class; of a text, its number
    box: Corners | None = None
    rank: int | None = None  # of a box that was asked for

    @property
    def title(self) -> str:
        """The name, and of a box that was asked for which one, as there may be several of a class."""
        return self.name if self.rank is None else f"{self.name}, box {self.rank}"

    @property
    def said(self) -> str:
        """How sure the model is: `12.3 %`, `12.3 % of the pixels`, `cosine 0.211`."""
        if self.kind == "similarity":
            return f"cosine {self.value:.3f}"
        return f"{100 * self.value:.1f} %" + (" of the pixels" if self.kind == "share" else "")

    @property
    def words(self) -> str:
        """For a table: `tiger cat 12.3 %`."""
        return f"{self.title} {self.said}"

    @property
    def stem(self) -> str:
        """For the name of a file, with what tells it from others of the same picture."""
        tag = f"text{self.label}" if self.kind == "similarity" else str(self.label)
        return f"{tag if self.rank is None else f'box{self.rank}'}-{file_stem(self.name)}"

    def facts(self, name: str) -> dict[str, Any]:
        """For results.json, the name under the key `name`."""
        box = {} if self.box is None else {"box": list(self.box)}
        rank = {} if self.rank is None else {"rank": self.rank}
        return {"class" if self.kind != "similarity" else "text": self.label, name: self.name, **rank, **box} | {
            self.kind: self.value
        }


@dataclass(frozen=True)
class Answers:
    """Of one picture: what the model says of it, best first, and what each of the K scores is of."""

    predicted: Sequence[Answer]
    asked: Sequence[Answer]


@dataclass(frozen=True)
class Names:
    """What labels and scores are called, and which ranks the boxes that are asked for have."""

    classes: Sequence[str] | None = None
    texts: Sequence[str] = ()
    ranks: Sequence[int] = field(default=(0,))

    def of_class(self, label: int) -> str:
        """`class 7` where the model came without names."""
        return self.classes[label] if self.classes and 0 <= label < len(self.classes) else f"class {label}"


def answers(kept: Trace, n: int, picture: Picture, names: Names) -> Answers:
    """Of picture `n` of the trace's batch."""
    output, question = kept.output, kept.question.select(slice(n, n + 1), slice(None))
    match question:
        case BoxScores():
            best = _surest(_sample(output, n), question)
            asked = _boxes(question, output, picture, names)
            ranked = [replace(each, rank=rank) for each, rank in zip(asked, names.ranks, strict=True)]
            return Answers(_boxes(best, output, picture, names), ranked)
        case PixelScores():
            return _pixels(output, n, question, names)
        case SimilarityScores():
            texts = [
                Answer(names.texts[label], score, "similarity", label)
                for label, score in zip(question.labels[0].tolist(), kept.scores[n].tolist(), strict=True)
            ]
            return Answers(sorted(texts, key=lambda each: -each.value)[:_MOST], texts)
    return _classes(class_logits(output)[n].detach().softmax(0), question, names)


def renamed(question: Question, class_names: Mapping[int, str], names: Names) -> Mapping[int, str]:
    """What a heatmap's labels are called: its `class_names`, or of embeddings of texts the texts."""
    return dict(enumerate(names.texts)) if isinstance(question, SimilarityScores) and names.texts else class_names


def _classes(probabilities: Tensor, question: Question, names: Names) -> Answers:
    def answer(label: int) -> Answer:
        return Answer(names.of_class(label), float(probabilities[label]), "probability", label)

    best = probabilities.topk(min(_MOST, len(probabilities))).indices.tolist()
    return Answers([answer(label) for label in best], [answer(label) for label in question.labels[0].tolist()])


def _pixels(output: Any, n: int, question: PixelScores, names: Names) -> Answers:
    logits = containers.at(output, pixels_part(output) or "")[n]  # (classes, H, W)
    shares = logits.argmax(0).flatten().bincount(minlength=len(logits)).double() / logits[0].numel()
    won = [label for label in shares.argsort(descending=True, stable=True).tolist() if shares[label] > 0]
    asked = question.masks[0].flatten(1).double().mean(1).tolist()  # K
    return Answers(
        [Answer(names.of_class(label), float(shares[label]), "share", label) for label in won[:_MOST]],
        [
            Answer(names.of_class(label), share, "share", label)
            for label, share in zip(question.labels[0].tolist(), asked, strict=True)
        ],
    )


def _sample(output: Any, n: int) -> Any:
    """What a detector returned for one picture of the batch."""
    if isinstance(output, (list, tuple)):
        return [output[n]]
    return containers.mapped(output, lambda path, tensor: tensor[n : n + 1])


def _surest(output: Any, question: BoxScores) -> BoxScores:
    """The boxes that are surest, of any class, as many as there are up to so many."""
    for count in range(_MOST, 1, -1):
        try:
            return Box(range(count), scores=question.scored).bind(output)
        except TargetError:  # fewer boxes, or one without an area
            continue
    return Box(0, scores=question.scored).bind(output)


def _boxes(question: BoxScores, output: Any, picture: Picture, names: Names) -> list[Answer]:
    relative = not isinstance(output, (list, tuple)) and is_detection(output)
    return [
        Answer(names.of_class(label), score, "score", label, _in_the_picture(box, picture, relative=relative))
        for label, score, box in zip(
            question.labels[0].tolist(), question.confidences[0].tolist(), question.boxes[0].cpu(), strict=True
        )
    ]


def _in_the_picture(box: Tensor, picture: Picture, *, relative: bool) -> Corners:
    """A box in fractions of the input, or in its pixels, in pixels of the original picture."""
    height, width = picture.tensor.shape[2:]
    left, top = picture.geometry.box[:2]
    whole = (width, height) == picture.image.size and (left, top) == (0, 0)
    if not relative and whole:  # the picture as it is, whatever is made of it inside
        return tuple(box.tolist())
    across, down = box[0::2], box[1::2]  # left and right, top and bottom
    if not relative:
        across, down = across / width, down / height
    left, top, right, bottom = picture.geometry.box
    across, down = left + across * (right - left), top + down * (bottom - top)
    return tuple(torch.stack([across, down], dim=1).flatten().tolist())

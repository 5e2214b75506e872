"""What a model predicts of one picture, and what is explained, in the words of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from torchpeek.engine import Question, Trace, output_part
from torchpeek.engine.targets import Box, BoxScores, ClassScores, PixelScores, SimilarityScores, class_logits
from torchpeek.errors import TargetError
from torchpeek.hooks import containers
from torchpeek.picture import Picture
from torchpeek.store import file_stem

Quantity: TypeAlias = Literal["probability", "score", "share", "similarity", "output"]
"""What a value is: a class's probability, a box's score, a class's share of the pixels, a text's cosine, or the only
output of a model, whose softmax is 1 whatever it is."""

Corners: TypeAlias = tuple[float, ...]
"""Left, top, right, bottom in pixels of the original picture."""

_MOST = 5  # predictions in a report


@dataclass(frozen=True)
class Prediction:
    """A class, a box, the pixels of a class, or a text: its name, and the model's confidence in it."""

    name: str
    value: float
    quantity: Quantity
    label: int  # the class index; for a text, its number
    box: Corners | None = None
    rank: int | None = None  # of a box that is explained

    @property
    def title(self) -> str:
        """The name, with the rank of a box that is explained, as several may be of one class."""
        return self.name if self.rank is None else f"{self.name}, box {self.rank}"

    @property
    def confidence(self) -> str:
        """The value in words: `12.3 %`, `12.3 % of the pixels`, `cosine 0.211`, `output 3.14`."""
        if self.quantity == "output":
            return f"output {self.value:.3g}"
        if self.quantity == "similarity":
            return f"cosine {self.value:.3f}"
        return f"{100 * self.value:.1f} %" + (" of the pixels" if self.quantity == "share" else "")

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of a whole, 0 to 1."""
        return self.quantity not in ("similarity", "output")

    @property
    def words(self) -> str:
        """The cell of a table: `tiger cat 12.3 %`."""
        return f"{self.title} {self.confidence}"

    @property
    def stem(self) -> str:
        """The part of a file name that tells it from the others of the same picture."""
        tag = f"text{self.label}" if self.quantity == "similarity" else str(self.label)
        return f"{tag if self.rank is None else f'box{self.rank}'}-{file_stem(self.name)}"

    def as_predicted(self) -> dict[str, Any]:
        """The entry of results.json among the predictions."""
        return self._entry("name")

    def as_explained(self) -> dict[str, Any]:
        """The entry of results.json for what is explained."""
        return self._entry("name" if self.quantity == "similarity" else "class_name")

    def _entry(self, name_key: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"text" if self.quantity == "similarity" else "class": self.label, name_key: self.name}
        if self.rank is not None:
            entry["rank"] = self.rank
        if self.box is not None:
            entry["box"] = list(self.box)
        return entry | {self.quantity: self.value}


@dataclass(frozen=True)
class PicturePredictions:
    """For one picture: the best predictions, and what each of the K scores is of."""

    best: Sequence[Prediction]
    explained: Sequence[Prediction]


@dataclass(frozen=True)
class Labels:
    """The names of labels and scores, and the ranks of the boxes that are explained."""

    classes: Sequence[str] | None = None
    texts: Sequence[str] = ()
    ranks: Sequence[int] = (0,)

    def of_class(self, label: int) -> str:
        """The name of a class; `class 7` where the model has no names."""
        return self.classes[label] if self.classes and 0 <= label < len(self.classes) else f"class {label}"


def picture_predictions(trace: Trace, n: int, picture: Picture, labels: Labels) -> PicturePredictions:
    """The predictions for picture `n` of the trace's batch."""
    output, question = trace.output, trace.question.select(slice(n, n + 1), slice(None))
    match question:
        case BoxScores():
            best = _most_confident(_sample(containers.at(output, question.part), n), question)
            explained = _boxes(question, picture, labels)
            ranked = [replace(each, rank=rank) for each, rank in zip(explained, labels.ranks, strict=True)]
            return PicturePredictions(_boxes(best, picture, labels), ranked)
        case PixelScores():
            return _pixels(output, n, question, labels)
        case SimilarityScores():
            texts = [
                Prediction(labels.texts[label], score, "similarity", label)
                for label, score in zip(question.labels[0].tolist(), trace.scores[n].tolist(), strict=True)
            ]
            return PicturePredictions(sorted(texts, key=lambda each: -each.value)[:_MOST], texts)
    logits = class_logits(output, output_part(question))[n].detach()  # (classes,)
    if isinstance(question, ClassScores) and question.is_sigmoid:
        return _classes(logits, logits.sigmoid(), question, labels)
    if len(logits) == 1:  # of a regression, or the logit of a binary classifier: the number as it is
        only = Prediction(labels.of_class(0), float(logits[0]), "output", 0)
        return PicturePredictions([only], [only] * question.labels.shape[1])
    return _classes(logits, logits.softmax(0), question, labels)


def renamed(question: Question, class_names: Mapping[int, str], labels: Labels) -> Mapping[int, str]:
    """The names of a heatmap's labels: its `class_names`, or the texts where texts are explained."""
    return dict(enumerate(labels.texts)) if isinstance(question, SimilarityScores) and labels.texts else class_names


def _classes(logits: Tensor, probabilities: Tensor, question: Question, labels: Labels) -> PicturePredictions:
    """Ranked by the logits, the lowest index first in a tie, as the target is. Rounded probabilities may be equal."""

    def prediction(label: int) -> Prediction:
        return Prediction(labels.of_class(label), float(probabilities[label]), "probability", label)

    best = logits.argsort(descending=True, stable=True)[:_MOST].tolist()
    explained = question.labels[0].tolist()
    return PicturePredictions([prediction(label) for label in best], [prediction(label) for label in explained])


def _pixels(output: Any, n: int, question: PixelScores, labels: Labels) -> PicturePredictions:
    shares = question.shares(output)[n]  # (classes,)
    won = [label for label in shares.argsort(descending=True, stable=True).tolist() if shares[label] > 0]
    explained = question.masks[0].flatten(1).double().mean(1).tolist()  # K
    return PicturePredictions(
        [Prediction(labels.of_class(label), float(shares[label]), "share", label) for label in won[:_MOST]],
        [
            Prediction(labels.of_class(label), share, "share", label)
            for label, share in zip(question.labels[0].tolist(), explained, strict=True)
        ],
    )


def _sample(output: Any, n: int) -> Any:
    """A detector's output for one picture of the batch."""
    of_each_picture = isinstance(output, (list, tuple)) and all(
        isinstance(each, Mapping) or (isinstance(each, Tensor) and each.ndim == 2) for each in output
    )
    if of_each_picture:
        return [output[n]]
    return containers.mapped(output, lambda path, tensor: tensor[n : n + 1] if tensor.ndim else tensor)


def _most_confident(output: Any, question: BoxScores) -> BoxScores:
    """The boxes with the highest scores, of any class: at most `_MOST`, or as many as there are."""
    for count in range(_MOST, 1, -1):
        try:
            return Box(range(count), reader=question.reader).bind(output)
        except TargetError:  # fewer boxes, or one without an area
            continue
    return Box(0, reader=question.reader).bind(output)


def _boxes(question: BoxScores, picture: Picture, labels: Labels) -> list[Prediction]:
    return [
        Prediction(
            labels.of_class(label), score, "score", label, _in_the_picture(box, picture, relative=question.relative)
        )
        for label, score, box in zip(
            question.labels[0].tolist(), question.confidences[0].tolist(), question.boxes[0].cpu(), strict=True
        )
    ]


def _in_the_picture(box: Tensor, picture: Picture, *, relative: bool) -> Corners:
    """The box in pixels of the original picture. It comes in pixels of the input, or `relative`: in fractions of it."""
    height, width = picture.tensor.shape[2:]
    left, top = picture.geometry.box[:2]
    original = picture.original_geometry
    whole = (width, height) == picture.image.size and (left, top) == (0, 0)
    if not relative and whole:  # the input is the picture as it is, even if the model resizes it inside
        scale = [have / now for have, now in zip(original.size, picture.image.size, strict=True)]
        return tuple((box * torch.tensor([*scale, *scale])).tolist())
    across, down = box[0::2], box[1::2]  # left and right, top and bottom
    if not relative:
        across, down = across / width, down / height
    left, top, right, bottom = original.box
    across, down = left + across * (right - left), top + down * (bottom - top)
    return tuple(torch.stack([across, down], dim=1).flatten().tolist())

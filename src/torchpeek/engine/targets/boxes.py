"""Target for one detected box: its score, or the position of one of its edges."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from torchpeek.engine.targets.box_scores import BoxQuantity, BoxScores
from torchpeek.engine.targets.classes import ClassId
from torchpeek.engine.targets.dense_detections import BoxFormat, ReadingOptions, dense_reader
from torchpeek.engine.targets.detections import (
    Detections,
    NamedReader,
    Reader,
    ScoreActivation,
    area,
    finite_detections,
    named_reader,
    overlaps,
)
from torchpeek.engine.targets.naming import class_index
from torchpeek.engine.targets.output_parts import is_named
from torchpeek.engine.targets.question import python_values
from torchpeek.errors import InputError, TargetError, shown
from torchpeek.hooks import containers
from torchpeek.keywords import checked_methods

_MOST = 2.0**53  # a larger number is no place in a picture, or infinite


@checked_methods
@dataclass(frozen=True)
class Box:
    """One detected box, or several: their scores, or one of their coordinates. The clean pass decides which boxes.

    These formats are read:

    - torchvision's detectors return, in eval mode, one dict for each picture with `boxes`, `scores` and `labels`.
    - DETR and its relatives return `logits` (or `pred_logits`) and `pred_boxes`.
    - YOLOv8 and its successors return (N, 4 + classes, boxes).
    - YOLOv5, YOLOv7 and YOLOX return (N, boxes, 5 + classes), with an objectness before the classes.
    - Some return boxes (N, boxes, 4) and class scores (N, boxes, classes) as two tensors, or both in one,
      (N, boxes, 4 + classes).
    - After non-maximum suppression, detectors return (N, rows, 6), or a list of (rows, 6): corners, score, class.
    - The raw maps of YOLOv8, (N, 4 * bins + classes, h, w) for each scale, are decoded if `classes` is given.

    Each query, or cell, counts as a detection of its most probable class. Of a dense detector, boxes of one class that
    overlap by `least_iou` or more count once, as the one with the highest score. Where an output can be read in more
    than one way, the error says which argument decides.

    Boxes are left, top, right, bottom in the units of the output: pixels of the input for torchvision and most dense
    detectors, 0 to 1 for DETR.

    Gradients are those of the model. torchvision's two-stage detectors detach the proposals, and non-maximum
    suppression has no gradient.

    Args:
        of: The rank of the box by score, 0 the highest, or a list of ranks. With `at`, the rank by overlap.
        what: The quantity: "score", or a coordinate, "left", "top", "right" or "bottom".
        label: A class, by index or name: only boxes of this class count.
        at: Left, top, right and bottom of a region: only boxes count that overlap it by `least_iou` or more. So
            `Box(at=(10, 20, 60, 90))` is the detection nearest to a box from a file. Of a dense detector, the rank is
            by overlap times score.
        least_iou: The least IoU, above 0 and at most 1, with `at`, and of a box with itself on later passes.
        scores: What turns logits into scores. For DETR and its relatives: "softmax" over the classes and a last "no
            object" (DETR, YOLOS), or the "sigmoid" of each logit (Deformable DETR, Conditional DETR, RT-DETR). None:
            by the type of the output where it is one of transformers', "softmax" otherwise, which the provenance says.
            For dense detectors: None where the output has probabilities.
        part: The path of the boxes in the model's output, as `tp.record` names it. "" for the whole output.
        classes: For dense detectors, the number of classes. None: by the number of class names or of cells.
        format: For dense detectors, the four numbers of a box: "cxcywh" (centre and size), "xyxy" (left, top, right,
            bottom), or "xywh" (left, top and size). None: by their values.
        picture: The shape of the pictures, (N, C, H, W); the pass sets it.
        names: The number of class names; `named` sets it.
        reader: How the output is read; None: by the output. It is that of another question.

    Raises:
        TargetError: When an argument is not one of these.

    Example:
        >>> detections = [{"boxes": torch.tensor([[0.0, 0, 4, 4], [1, 1, 8, 9]]), "scores": torch.tensor([0.9, 0.6]),
        ...                "labels": torch.tensor([1, 3])}]
        >>> tp.targets.Box(0, label=3).bind(detections).values
        tensor([[0.6000]])
    """

    of: int | Sequence[int] = 0
    _: KW_ONLY
    what: BoxQuantity = "score"
    label: ClassId | None = None
    at: Sequence[float] | Tensor | None = None
    least_iou: float = 0.5
    scores: ScoreActivation | None = None
    part: str = ""
    classes: int | None = None
    format: BoxFormat | None = None
    picture: Sequence[int] | None = None
    names: int | None = field(default=None, compare=False)
    reader: Reader | None = None
    separate_branches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", _ranks(self.of))
        object.__setattr__(self, "at", None if self.at is None else _corners(self.at))
        if not _is_one_of(self.what, BoxQuantity):
            raise TargetError(f"Box(what={shown(self.what)}): allowed: {', '.join(map(repr, get_args(BoxQuantity)))}")
        if self.scores is not None and not _is_one_of(self.scores, ScoreActivation):
            raise TargetError(f"Box(scores={shown(self.scores)}): allowed: 'softmax', 'sigmoid', or None")
        if self.format is not None and not _is_one_of(self.format, BoxFormat):
            raise TargetError(f"Box(format={shown(self.format)}): allowed: 'cxcywh', 'xyxy', 'xywh', or None")
        index = hasattr(self.classes, "__index__") and not isinstance(self.classes, (bool, type))
        if self.classes is not None and (not index or getattr(self.classes, "ndim", None)):  # an array has axes
            raise TargetError(f"Box(classes={shown(self.classes)}): give the number of classes; a class is label=")
        if self.classes is not None and self.classes < 1:
            raise TargetError(f"Box(classes={shown(self.classes)}): a detector has 1 class or more")
        if isinstance(self.least_iou, bool) or not isinstance(self.least_iou, (int, float)):
            raise TargetError(f"Box(least_iou={shown(self.least_iou)}): give a number above 0, at most 1")
        if not 0 < self.least_iou <= 1:
            raise TargetError(f"Box(least_iou={shown(self.least_iou)}): an overlap is above 0 and at most 1")

    def bind(self, output: Any) -> BoxScores:
        """Select the boxes in the output of the clean pass.

        Args:
            output: What the detector returned for N samples.

        Returns:
            The question, with labels (N, K), K the number of ranks.

        Raises:
            TargetError: When the output is not that of a detector, a picture does not have such a box, or that box
                has no area.
            NotFinite: When a box or a score is NaN or infinite.

        Example:
            >>> output = {"logits": torch.tensor([[[4.0, 0, 0], [0, 3.0, 0]]]), "pred_boxes": torch.rand(1, 2, 4)}
            >>> tp.targets.Box([0, 1]).bind(output).labels
            tensor([[0, 1]])
        """
        part, boxes = self._boxes_in(output)
        reader = self.reader or self._reader_of(boxes)
        detections = finite_detections(reader(boxes))
        selected = [
            self._select_detections(index, each, once=reader.by_row) for index, each in enumerate(detections)
        ]  # N of (K,)
        pairs = list(zip(detections, selected, strict=True))
        return BoxScores(
            torch.stack([each.labels[index] for each, index in pairs]),
            torch.stack([each.boxes.detach()[index] for each, index in pairs]),
            torch.stack([each.scores.detach()[index] for each, index in pairs]),
            self.what,
            float(self.least_iou),
            reader.activation if isinstance(reader, NamedReader) else "sigmoid",
            reader,
            torch.stack(selected) if reader.by_row else None,
            part,
        )

    def for_pictures(self, shape: Sequence[int]) -> Box:
        """Read outputs with the help of the size of the pictures.

        Args:
            shape: The shape of the pictures, (N, C, H, W).

        Returns:
            The target for these pictures.

        Example:
            >>> target = tp.targets.Box().for_pictures((1, 3, 64, 64))  # 84 cells of 8, 16 and 32 pixels
            >>> rows = torch.cat([torch.full((1, 2, 84), 32.0), torch.ones(1, 2, 84), torch.rand(1, 3, 84)], 1)
            >>> target.bind(rows).grids
            ((8, 8), (4, 4), (2, 2))
        """
        return replace(self, picture=tuple(shape))

    def _boxes_in(self, output: Any) -> tuple[str, Any]:
        """The path of the part that the user named, and what is there. Raises TargetError."""
        if not is_named(self.part):
            return "", output
        spellings = containers.spellings(output)
        part = next((path for path, of_path in spellings.items() if str(self.part) in of_path), str(self.part))
        try:
            return part, containers.at(output, part)
        except InputError as error:
            raise TargetError(f"Box(part={self.part!r}): {error}") from None

    def _reader_of(self, output: Any) -> Reader:
        """How to read the output. Raises TargetError where it has no boxes, or can be read in more than one way."""
        size = None
        if self.picture is not None and len(self.picture) == 4:
            size = self.picture[2], self.picture[3]
        options = ReadingOptions(self.classes, self.names, self.format, self.scores, size)
        reader = named_reader(output, self.scores) or dense_reader(output, options)
        return reader or NamedReader(self.scores or "softmax")  # which says what is read when it is called

    def named(self, class_names: Sequence[str] | None) -> Box:
        """Replace the class name in `label` by its class index.

        Args:
            class_names: The model's class names, by index; None where it has none.

        Returns:
            The target with a class index, or without a label.

        Raises:
            ClassNotFound: When the name is not among them.
            AmbiguousClass: When several classes have the name.

        Example:
            >>> target = tp.targets.Box(label="dog")
            >>> target.named(["background", "cat", "dog"]).label
            2
        """
        label = None if self.label is None else class_index(self.label, class_names)
        return replace(self, label=label, names=None if class_names is None else len(class_names))

    def _select_detections(self, picture: int, detections: Detections, *, once: bool) -> Tensor:
        """(K,): the indices of the boxes among the detections of a picture. Raises TargetError.

        With `once`, a box that overlaps a better one of its class does not count.
        """
        if not len(detections.boxes):
            raise TargetError(
                f"picture {picture} has no detections, so there is no box to explain. Give another{detections.advice}"
            )
        keys, condition = self._rank_keys(picture, detections, with_scores=once)
        ranks = [self.of] if isinstance(self.of, int) else list(self.of)
        if once:
            keys = self._once_each(keys, detections, max(ranks) + 1)
        count = int((keys >= 0).sum())
        if max(ranks) >= count:
            raise TargetError(
                f"picture {picture} has {count} detection{'s' if count > 1 else ''}{condition}; the requested rank is "
                f"{max(ranks)}, counted from 0. Choose {f'0 to {count - 1}' if count > 1 else '0'}{detections.advice}"
            )
        selected = keys.argsort(descending=True, stable=True)[ranks]
        # A box that is found again by its number needs no area.
        for index in [] if once else selected[area(detections.boxes[selected]) <= 0].tolist():
            raise TargetError(
                f"picture {picture}: the requested box, {_describe_detection(detections, index)}, has no "
                "area, so later passes cannot match it. Choose another one"
            )
        return selected

    def _once_each(self, keys: Tensor, detections: Detections, most: int) -> Tensor:
        """(Q,): the keys of the `most` best detections that overlap no better one of their class; -1 for the others."""
        remaining, selected = keys.clone(), torch.full_like(keys, -1)
        boxes = detections.boxes.detach()
        for _ in range(most):
            best = int(remaining.argmax())
            if remaining[best] < 0:
                break
            selected[best] = keys[best]
            same = (detections.labels == detections.labels[best]) & (
                overlaps(boxes, boxes[best : best + 1]).squeeze(1) >= self.least_iou
            )
            same[best] = True
            remaining = remaining.masked_fill(same, -1)
        return selected

    def _rank_keys(self, picture: int, detections: Detections, *, with_scores: bool) -> tuple[Tensor, str]:
        """(Q,): the keys that rank the detections, -1 for those that do not count; and the condition, in words.

        They are scores or, with `at`, overlaps. With `with_scores`, overlaps are multiplied by the scores.
        """
        keys, condition = detections.scores.detach(), ""
        eligible = torch.ones_like(detections.labels, dtype=torch.bool)
        if self.label is not None:
            label = class_index(self.label, None)
            eligible, condition = detections.labels == label, f" of class {label}"
            if not eligible.any():
                listed = ", ".join(map(str, sorted(set(detections.labels.tolist()))))
                raise TargetError(
                    f"picture {picture} has no detection{condition}; it has some of {listed}. Choose one of these"
                    f"{detections.advice}"
                )
        if self.at is not None:
            keys = overlaps(detections.boxes.detach(), detections.boxes.new_tensor([list(self.at)])).squeeze(1)
            best = int(keys.where(eligible, -1).argmax())
            if keys[best] < self.least_iou:
                nearest = _describe_detection(detections, best)
                raise TargetError(
                    f"picture {picture} has no detection{condition} that overlaps {self.at} by {self.least_iou:g} IoU "
                    f"or more; the nearest, {nearest}, has {float(keys[best]):.2f}. Coordinates are left, top, right, "
                    "bottom, in the units of the model's output. A lower least_iou allows boxes that are further away"
                )
            eligible, condition = eligible & (keys >= self.least_iou), f"{condition} that overlap {self.at} enough"
            keys = keys * detections.scores.detach() if with_scores else keys
        return keys.where(eligible, -1), condition


def _ranks(of: Any) -> int | tuple[int, ...]:
    """A rank, or several. Raises TargetError."""
    if isinstance(of, str):
        raise TargetError(f"Box({shown(of)}): give a rank by score, or a list of ranks; a class is label={shown(of)}")
    of = python_values(of)
    values = list(of) if isinstance(of, Sequence) else [of]
    if not values or not all(hasattr(rank, "__index__") and not isinstance(rank, (bool, type)) for rank in values):
        raise TargetError(
            f"Box({shown(of)}): give a rank by score, 0 the highest, or a list of ranks; coordinates are at=(left, "
            "top, right, bottom)"
        )
    ranks = tuple(operator.index(rank) for rank in values)
    if min(ranks) < 0:
        raise TargetError(f"Box({shown(of)}): ranks count from 0, the highest score, upwards")
    return ranks if isinstance(of, Sequence) else ranks[0]


def _corners(at: Any) -> tuple[float, ...]:
    """Left, top, right and bottom. Raises TargetError."""
    at = python_values(at)
    if (
        isinstance(at, str)
        or not isinstance(at, Sequence)
        or len(at) != 4
        or not all(isinstance(each, (int, float)) and -_MOST < each < _MOST for each in at)
    ):
        raise TargetError(f"Box(at={shown(at)}): give four numbers, left, top, right, bottom")
    left, top, right, bottom = map(float, at)
    if not (left < right and top < bottom):
        raise TargetError(
            f"Box(at={shown(at)}): left has to be below right and top below bottom; these are corners, not a centre "
            "and a size"
        )
    return left, top, right, bottom


def _describe_detection(detections: Detections, index: int) -> str:
    corners = ", ".join(f"{each:.4g}" for each in detections.boxes[index].tolist())
    return f"class {int(detections.labels[index])} at ({corners})"


def _is_one_of(value: object, names: Any) -> bool:
    """Whether this is one of the names of a Literal; an array is none."""
    return isinstance(value, str) and value in get_args(names)

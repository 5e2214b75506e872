"""Target for one detected box: its score, or the position of one of its edges."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

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
from torchpeek.engine.targets.question import python_values
from torchpeek.errors import InputError, TargetError
from torchpeek.hooks import containers

BoxQuantity: TypeAlias = Literal["score", "left", "top", "right", "bottom"]
"""The score of a box, or one of its coordinates."""

_EDGES = ("left", "top", "right", "bottom")  # in the order of a box's four numbers


@dataclass(frozen=True, eq=False)
class BoxScores:
    """Scores, or coordinates, of boxes that were selected on the clean pass and are matched again on every later pass.

    A box is matched to the detection with the greatest product of two factors: the IoU with the clean box, and the
    score of the clean box's class. The IoU has to reach `least_iou`. A score above the clean box's own counts as that,
    so that on the clean pass each box matches itself, even if a box with a higher score lies almost on top of it.

    The match has no gradient; the score or coordinate of the matched box does. A box without a match has the score 0
    and the clean coordinates, both with a gradient of zero.

    A dense detector returns a box for each cell of its grids. There a box is matched to the one with the same number,
    which belongs to the same cell.

    Args:
        labels: (N, K), int64: the class index of each box.
        boxes: (N, K, 4): left, top, right, bottom on the clean pass.
        confidences: (N, K): the scores on the clean pass.
        what: The quantity: "score", "left", "top", "right" or "bottom".
        least_iou: The IoU that a match needs, above 0 and at most 1.
        scored: For models that return logits: what turns these into scores, "softmax" or "sigmoid".
        reader: How the output is read; None for one with named parts, as torchvision and transformers return it.
        numbers: (N, K), int64: the number of each box among the detections of its picture; None where a box is matched
            by overlap.
        part: The path of the boxes in the model's output; "" for the whole output.

    Source: D-RISE, arXiv:2006.03204, weighs detections by IoU, class and score, too, but takes that weight as the
    score.

    Example:
        >>> detections = [{"boxes": torch.tensor([[0.0, 0, 4, 4]]), "scores": torch.tensor([0.9]),
        ...                "labels": torch.tensor([1])}]
        >>> tp.targets.Box(0).bind(detections)(detections, torch.tensor([0]))
        tensor([[0.9000]])
    """

    labels: Tensor  # (N, K), int64
    boxes: Tensor  # (N, K, 4)
    confidences: Tensor  # (N, K)
    what: BoxQuantity = "score"
    least_iou: float = 0.5
    positional: ClassVar[bool] = True
    scored: ScoreActivation = "softmax"
    reader: Reader | None = None
    numbers: Tensor | None = None
    part: str = ""

    @property
    def kind(self) -> str:
        """What a score is, for a heatmap's provenance."""
        if self.what != "score":
            return f"{self.what} edge of a detected box"
        return f"score of a detected box{self.reader.words if self.reader else ''}"

    @property
    def several_scales(self) -> bool:
        """Whether the boxes belong to the cells of several grids, so that the scores come from several layers."""
        return self.numbers is not None

    @property
    def grids(self) -> Sequence[tuple[int, int]]:
        """The grids (h, w) whose cells the boxes belong to, from fine to coarse; empty where these are not known."""
        return self.reader.grids if self.reader else ()

    @property
    def relative(self) -> bool:
        """Whether boxes are in fractions of the picture, 0 to 1, and not in pixels."""
        return self.reader is not None and self.reader.relative

    @property
    def values(self) -> Tensor:
        """(N, K): the scores or coordinates on the clean pass."""
        return self.confidences if self.what == "score" else self.boxes[..., _EDGES.index(self.what)]

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        """Match the boxes in an output, and read their scores or coordinates.

        Args:
            output: What the detector returned for n samples.
            rows: (n,), int64: the clean sample that each of them is a version of.

        Returns:
            (n, K), at least float32.

        Raises:
            TargetError: When the output is not that of a detector, or not of n samples.
            NotFinite: When a box or a score is NaN or infinite.

        Example:
            >>> detections = [{"boxes": torch.tensor([[0.0, 0, 4, 4]]), "scores": torch.tensor([0.9]),
            ...                "labels": torch.tensor([1])}]
            >>> question = tp.targets.Box(0, what="right").bind(detections)
            >>> question([detections[0] | {"boxes": torch.tensor([[0.0, 0, 5, 4]])}], torch.tensor([0]))
            tensor([[5.]])
        """
        reader = self.reader or NamedReader(self.scored)
        detections = finite_detections(reader(containers.at(output, self.part)))
        if len(detections) != len(rows):
            raise TargetError(f"the model returned detections of {len(detections)} pictures for {len(rows)} samples")
        by_row = self.select(rows.to(self.labels.device), slice(None))
        return torch.stack([by_row._values_in_sample(index, each) for index, each in enumerate(detections)])

    def select(self, rows: slice | Tensor, columns: slice) -> BoxScores:
        """Select some of the samples and of the boxes.

        Args:
            rows: Which of the N samples.
            columns: Which of the K boxes.

        Returns:
            The question of these samples and boxes.

        Example:
            >>> question = tp.targets.BoxScores(torch.ones(2, 3), torch.rand(2, 3, 4), torch.rand(2, 3))
            >>> question.select(slice(0, 1), slice(1, 3)).boxes.shape
            torch.Size([1, 2, 4])
        """
        return replace(
            self,
            labels=self.labels[rows][:, columns],
            boxes=self.boxes[rows][:, columns],
            confidences=self.confidences[rows][:, columns],
            numbers=None if self.numbers is None else self.numbers[rows][:, columns],
        )

    def scale_totals(self, output: Any) -> Sequence[Tensor]:
        """Sum up all boxes of each scale, to find the layers that a scale depends on.

        Args:
            output: What the detector returned for n samples.

        Returns:
            For each of the `grids` (n, 5): the sums of left, top, right, bottom and of all class scores over the boxes
            of that grid. Empty where the grids are not known.

        Raises:
            TargetError: When the output is not that of a detector.

        Example:
            >>> rows = torch.cat([torch.full((1, 2, 84), 32.0), torch.ones(1, 2, 84), torch.rand(1, 3, 84)], 1)
            >>> question = tp.targets.Box().for_pictures((1, 3, 64, 64)).bind(rows)
            >>> [totals.shape for totals in question.scale_totals(rows)]
            [torch.Size([1, 5]), torch.Size([1, 5]), torch.Size([1, 5])]
        """
        if self.reader is None or not self.grids:
            return []
        detections = self.reader(containers.at(output, self.part))
        cells = [height * width for height, width in self.grids]
        sizes = [count * (len(detections[0].boxes) // sum(cells)) for count in cells]
        columns = [
            torch.cat([each.boxes, each.scores_of(each.labels.unique()).sum(1, keepdim=True)], dim=1)
            for each in detections
        ]
        return [scale.sum(1) for scale in torch.stack(columns).split(sizes, dim=1)]

    def _values_in_sample(self, index: int, detections: Detections) -> Tensor:
        """(K,): the score or coordinate of each box, matched among the Q detections of one sample."""
        if self.numbers is not None:
            numbers = self.numbers[index].to(detections.labels.device)
            if int(numbers.max()) >= len(detections.boxes):
                raise TargetError(
                    f"the model returned {len(detections.boxes)} boxes, fewer than on the clean pass. A dense detector "
                    "returns the same number for pictures of the same size"
                )
            if self.what != "score":
                return detections.boxes[numbers, _EDGES.index(self.what)]
            by_label = detections.scores_of(self.labels[index].to(numbers.device))  # (Q, K)
            return by_label.gather(0, numbers[None]).squeeze(0)
        boxes, clean_scores = self.boxes[index].to(detections.boxes), self.confidences[index].to(detections.boxes)
        scores = detections.scores_of(self.labels[index].to(detections.labels.device))  # (Q, K)
        iou = overlaps(detections.boxes.detach(), boxes)  # (Q, K)
        weights = iou * scores.detach().minimum(clean_scores)
        weights = weights.where((iou >= self.least_iou) & (scores > 0), -1)
        # One more detection of weight 0 stands for a box without a match. So the result stays on the graph.
        weights = torch.cat([weights, torch.zeros_like(clean_scores)[None]])  # (Q + 1, K)
        if self.what == "score":
            values, unmatched = scores, torch.zeros_like(clean_scores)
        else:
            edge = _EDGES.index(self.what)
            values, unmatched = detections.boxes[:, edge, None].expand(-1, len(clean_scores)), boxes[:, edge]
        # Among boxes in the very same place, the one with the nearest score: on the clean pass that is the box itself.
        distances = torch.cat([(scores.detach() - clean_scores).abs(), torch.zeros_like(clean_scores)[None]])
        matches = distances.where(weights == weights.amax(0), torch.inf).argmin(0, keepdim=True)  # (1, K)
        return torch.cat([values, unmatched[None]]).gather(0, matches).squeeze(0)


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
        if self.what not in get_args(BoxQuantity):
            raise TargetError(f"Box(what={self.what!r}): allowed: {', '.join(map(repr, get_args(BoxQuantity)))}")
        if self.scores is not None and self.scores not in get_args(ScoreActivation):
            raise TargetError(f"Box(scores={self.scores!r}): allowed: 'softmax', 'sigmoid', or None")
        if self.format is not None and self.format not in get_args(BoxFormat):
            raise TargetError(f"Box(format={self.format!r}): allowed: 'cxcywh', 'xyxy', 'xywh', or None")
        if self.classes is not None and (isinstance(self.classes, bool) or not hasattr(self.classes, "__index__")):
            raise TargetError(f"Box(classes={self.classes!r}): give the number of classes; a class is label=")
        if self.classes is not None and self.classes < 1:
            raise TargetError(f"Box(classes={self.classes!r}): a detector has 1 class or more")
        if isinstance(self.least_iou, bool) or not isinstance(self.least_iou, (int, float)):
            raise TargetError(f"Box(least_iou={self.least_iou!r}): give a number above 0, at most 1")
        if not 0 < self.least_iou <= 1:
            raise TargetError(f"Box(least_iou={self.least_iou!r}): an overlap is above 0 and at most 1")

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
        if not self.part:
            return "", output
        spellings = containers.spellings(output)
        part = next((path for path, of_path in spellings.items() if self.part in of_path), self.part)
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
        raise TargetError(f"Box({of!r}): give a rank by score, or a list of ranks; a class is label={of!r}")
    of = python_values(of)
    values = list(of) if isinstance(of, Sequence) else [of]
    if not values or not all(hasattr(rank, "__index__") and not isinstance(rank, bool) for rank in values):
        raise TargetError(
            f"Box({of!r}): give a rank by score, 0 the highest, or a list of ranks; coordinates are at=(left, top, "
            "right, bottom)"
        )
    ranks = tuple(operator.index(rank) for rank in values)
    if min(ranks) < 0:
        raise TargetError(f"Box({of!r}): ranks count from 0, the highest score, upwards")
    return ranks if isinstance(of, Sequence) else ranks[0]


def _corners(at: Any) -> tuple[float, ...]:
    """Left, top, right and bottom. Raises TargetError."""
    at = python_values(at)
    if (
        isinstance(at, str)
        or not isinstance(at, Sequence)
        or len(at) != 4
        or not all(isinstance(each, (int, float)) and math.isfinite(each) for each in at)
    ):
        raise TargetError(f"Box(at={at!r}): give four numbers, left, top, right, bottom")
    left, top, right, bottom = map(float, at)
    if not (left < right and top < bottom):
        raise TargetError(
            f"Box(at={at!r}): left has to be below right and top below bottom; these are corners, not a centre and a "
            "size"
        )
    return left, top, right, bottom


def _describe_detection(detections: Detections, index: int) -> str:
    corners = ", ".join(f"{each:.4g}" for each in detections.boxes[index].tolist())
    return f"class {int(detections.labels[index])} at ({corners})"

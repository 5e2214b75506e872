"""Target for one detected box: its score, or the position of one of its edges."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.targets.classes import ClassId
from torchpeek.engine.targets.naming import class_index
from torchpeek.engine.targets.question import python_values
from torchpeek.errors import NotFinite, TargetError

BoxQuantity: TypeAlias = Literal["score", "left", "top", "right", "bottom"]
"""The score of a box, or one of its coordinates."""

ScoreActivation: TypeAlias = Literal["softmax", "sigmoid"]
"""What turns class logits into scores: a softmax with "no object" as its last class, or the sigmoid of each logit."""

_EDGES = ("left", "top", "right", "bottom")  # in the order of a box's four numbers

# The output types of transformers' detectors end in this. Those with these prefixes are of models that were trained
# with a "no object" class; later models were trained with a focal loss on the sigmoid of each logit.
_DETECTION_OUTPUT = "ObjectDetectionOutput"
_SOFTMAX_DETECTORS = ("Detr", "Yolos", "TableTransformer")


@dataclass(frozen=True, eq=False)
class BoxScores:
    """Scores, or coordinates, of boxes that were selected on the clean pass and are matched again on every later pass.

    A box is matched to the detection with the greatest product of two factors: the IoU with the clean box, and the
    score of the clean box's class. The IoU has to reach `least_iou`. A score above the clean box's own counts as that,
    so that on the clean pass each box matches itself, even if a box with a higher score lies almost on top of it.

    The match has no gradient; the score or coordinate of the matched box does. A box without a match has the score 0
    and the clean coordinates, both with a gradient of zero.

    Args:
        labels: (N, K), int64: the class index of each box.
        boxes: (N, K, 4): left, top, right, bottom on the clean pass.
        confidences: (N, K): the scores on the clean pass.
        what: The quantity: "score", "left", "top", "right" or "bottom".
        least_iou: The IoU that a match needs, above 0 and at most 1.
        scored: For models that return logits: what turns these into scores, "softmax" or "sigmoid".

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

    @property
    def kind(self) -> str:
        """What a score is, for a heatmap's provenance."""
        return "score of a detected box" if self.what == "score" else f"{self.what} edge of a detected box"

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
        detections = _detections(output, self.scored)
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
        )

    def _values_in_sample(self, index: int, detections: _Detections) -> Tensor:
        """(K,): the score or coordinate of each box, matched among the Q detections of one sample."""
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

    Two formats are read. torchvision's detectors return, in eval mode, one dict for each picture with `boxes`,
    `scores` and `labels`. DETR and its relatives return `logits` (or `pred_logits`) and `pred_boxes`; each of their
    queries counts as a detection of its most probable class.

    Boxes are left, top, right, bottom in the units of the output: pixels of the input for torchvision, 0 to 1 for DETR.

    Gradients are those of the model. torchvision's two-stage detectors detach the proposals, and non-maximum
    suppression has no gradient.

    Args:
        of: The rank of the box by score, 0 the highest, or a list of ranks. With `at`, the rank by overlap.
        what: The quantity: "score", or a coordinate, "left", "top", "right" or "bottom".
        label: A class, by index or name: only boxes of this class count.
        at: Left, top, right and bottom of a region: only boxes count that overlap it by `least_iou` or more. So
            `Box(at=(10, 20, 60, 90))` is the detection nearest to a box from a file.
        least_iou: The least IoU, above 0 and at most 1, with `at`, and of a box with itself on later passes.
        scores: For DETR and its relatives, what turns logits into scores: "softmax" over the classes and a last "no
            object" (DETR, YOLOS), or the "sigmoid" of each logit (Deformable DETR, Conditional DETR, RT-DETR). None:
            by the type of the output where it is one of transformers', "softmax" otherwise.

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
    separate_branches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", _ranks(self.of))
        object.__setattr__(self, "at", None if self.at is None else _corners(self.at))
        if self.what not in get_args(BoxQuantity):
            raise TargetError(f"Box(what={self.what!r}): allowed: {', '.join(map(repr, get_args(BoxQuantity)))}")
        if self.scores is not None and self.scores not in get_args(ScoreActivation):
            raise TargetError(f"Box(scores={self.scores!r}): allowed: 'softmax', 'sigmoid', or None")
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
        activation = self.scores or _score_activation_of(output)
        detections = _detections(output, activation)
        selected = [self._select_detections(index, each) for index, each in enumerate(detections)]  # N of (K,)
        pairs = list(zip(detections, selected, strict=True))
        return BoxScores(
            torch.stack([each.labels[index] for each, index in pairs]),
            torch.stack([each.boxes.detach()[index] for each, index in pairs]),
            torch.stack([each.scores.detach()[index] for each, index in pairs]),
            self.what,
            float(self.least_iou),
            activation,
        )

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
        return self if self.label is None else replace(self, label=class_index(self.label, class_names))

    def _select_detections(self, picture: int, detections: _Detections) -> Tensor:
        """(K,): the indices of the boxes among the detections of a picture. Raises TargetError."""
        if not len(detections.boxes):
            raise TargetError(
                f"picture {picture} has no detections, so there is no box to explain. Give another{detections.advice}"
            )
        keys, condition = self._rank_keys(picture, detections)
        ranks, count = [self.of] if isinstance(self.of, int) else list(self.of), int((keys >= 0).sum())
        if max(ranks) >= count:
            raise TargetError(
                f"picture {picture} has {count} detection{'s' if count > 1 else ''}{condition}; the requested rank is "
                f"{max(ranks)}, counted from 0. Choose {f'0 to {count - 1}' if count > 1 else '0'}{detections.advice}"
            )
        selected = keys.argsort(descending=True, stable=True)[ranks]
        for index in selected[_area(detections.boxes[selected]) <= 0].tolist():
            raise TargetError(
                f"picture {picture}: the requested box, {_describe_detection(detections, index)}, has no "
                "area, so later passes cannot match it. Choose another one"
            )
        return selected

    def _rank_keys(self, picture: int, detections: _Detections) -> tuple[Tensor, str]:
        """(Q,): the keys that rank the detections, -1 for those that do not count; and the condition, in words."""
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
        return keys.where(eligible, -1), condition


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """(Q, 4) and (K, 4), left, top, right, bottom -> (Q, K): intersection over union, 0 where neither has an area."""
    sides = torch.minimum(boxes[:, None, 2:], others[:, 2:]) - torch.maximum(boxes[:, None, :2], others[:, :2])
    intersection = sides.clamp(min=0).prod(2)  # (Q, K)
    union = _area(boxes)[:, None] + _area(others) - intersection
    return torch.where(union > 0, intersection / union, 0)


@dataclass(frozen=True, eq=False)
class _Detections:
    """The Q detections in one picture."""

    boxes: Tensor  # (Q, 4): left, top, right, bottom
    labels: Tensor  # (Q,), int64
    scores: Tensor  # (Q,)
    by_class: Tensor | None  # (Q, classes): the scores of all classes; None where only the label has one

    @property
    def advice(self) -> str:
        """The end of an error text: how to get more detections."""
        if self.by_class is not None:  # the model returns all queries, whatever their scores
            return ""
        return ", or lower the model's score threshold (torchvision: box_score_thresh or score_thresh) to keep more"

    def scores_of(self, labels: Tensor) -> Tensor:
        """(Q, K): the score of each detection as these classes (K,); 0 where it is of another one."""
        if self.by_class is not None:
            return self.by_class[:, labels]
        return torch.where(self.labels[:, None] == labels, self.scores[:, None], 0)


def _detections(output: Any, activation: ScoreActivation) -> list[_Detections]:
    """The detections in each picture, at least float32. Raises TargetError and NotFinite."""
    detections = _detections_in_dicts(output) or _detections_in_queries(output, activation)
    if detections is None:
        raise TargetError(
            f"Box reads what a detector returns; got {_describe_output(output)}. Allowed are a list of one dict for "
            "each picture with 'boxes' (Q, 4), 'scores' (Q,) and 'labels' (Q,), as torchvision's detectors return in "
            "eval mode, and 'logits' (N, Q, classes) with 'pred_boxes' (N, Q, 4), as transformers' DETR returns. Wrap "
            "the model so that it returns one of these"
        )
    if not all(each.boxes.isfinite().all() and each.scores.isfinite().all() for each in detections):
        raise NotFinite("the model's boxes or their scores have NaN or infinity; check the input and the weights")
    return detections


def _detections_in_dicts(output: Any) -> list[_Detections] | None:
    """The detections in torchvision's format; None where the output has another one."""
    if not isinstance(output, (list, tuple)):
        return None
    detections = []
    for each in output:
        boxes, scores, labels = (_tensor_named(each, name) for name in ("boxes", "scores", "labels"))
        if boxes is None or scores is None or labels is None or boxes.ndim != 2 or boxes.shape[1] != 4:
            return None
        if not scores.shape == labels.shape == boxes.shape[:1]:
            return None
        detections.append(_Detections(at_least_float32(boxes), labels.long(), at_least_float32(scores), None))
    return detections


def _detections_in_queries(output: Any, activation: ScoreActivation) -> list[_Detections] | None:
    """The detections in DETR's format, one for each query; None where the output has another one."""
    logits, pred_boxes = _query_logits(output), _tensor_named(output, "pred_boxes")  # boxes as centre and size
    if logits is None or pred_boxes is None or logits.ndim != 3 or pred_boxes.shape != (*logits.shape[:2], 4):
        return None
    logits, pred_boxes = at_least_float32(logits), at_least_float32(pred_boxes)
    if activation == "sigmoid":
        by_class = logits.sigmoid()  # (N, Q, classes)
    elif logits.shape[2] > 1:
        by_class = logits.softmax(2)[..., :-1]
    else:
        raise TargetError("the model's logits are of one class, without a 'no object'; give Box(scores='sigmoid')")
    centre, half_size = pred_boxes[..., :2], pred_boxes[..., 2:] / 2
    boxes = torch.cat([centre - half_size, centre + half_size], dim=2)  # (N, Q, 4)
    scores, labels = by_class.max(2)
    parts = zip(boxes.unbind(), labels.unbind(), scores.unbind(), by_class.unbind(), strict=True)
    return [_Detections(*each) for each in parts]


def _score_activation_of(output: Any) -> ScoreActivation:
    """What turns the logits of this output into scores, by its type."""
    name = type(output).__name__
    return "sigmoid" if name.endswith(_DETECTION_OUTPUT) and not name.startswith(_SOFTMAX_DETECTORS) else "softmax"


def _query_logits(output: Any) -> Tensor | None:
    logits = _tensor_named(output, "logits")
    return _tensor_named(output, "pred_logits") if logits is None else logits


def _tensor_named(output: Any, name: str) -> Tensor | None:
    value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    return value if isinstance(value, Tensor) else None


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


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def _describe_detection(detections: _Detections, index: int) -> str:
    corners = ", ".join(f"{each:.4g}" for each in detections.boxes[index].tolist())
    return f"class {int(detections.labels[index])} at ({corners})"


def _describe_output(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(repr, output)) or 'nothing'}"
    if isinstance(output, (list, tuple)):
        types = ", ".join(dict.fromkeys(type(each).__name__ for each in output)) or "nothing"
        return f"a {type(output).__name__} of {types}"
    return f"a {type(output).__name__}"

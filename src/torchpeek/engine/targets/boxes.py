"""Questions about one detected box: how sure of it the model is, or where one of its edges lies."""

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
from torchpeek.errors import NotFinite, TargetError

BoxQuantity: TypeAlias = Literal["score", "left", "top", "right", "bottom"]
"""What is asked of a box: its score, or a coordinate of it."""

ScoreActivation: TypeAlias = Literal["softmax", "sigmoid"]
"""How class logits become scores: with a last "no object", or each class by itself."""

_EDGES = ("left", "top", "right", "bottom")  # in the order in which a box lists them


@dataclass(frozen=True, eq=False)
class BoxScores:
    """Scores, or coordinates, of the boxes that were chosen on the clean pass, found again on every later one.

    The box is the detection whose IoU with the clean one times its score as the clean one's class is the greatest,
    of those that reach `least_iou`. For this a score counts no more than the clean one: on the clean pass each box
    finds itself, also where a surer one lies almost on top of it. The choice has no gradient; what is chosen does. A
    box that is gone scores 0, and its coordinates are the clean ones, both with a gradient of zero. D-RISE
    (arXiv:2006.03204) weighs detections by IoU, class and score, too, but takes that weight as the score.
    """

    labels: Tensor  # (N, K), int64: the class of each box
    boxes: Tensor  # (N, K, 4): left, top, right, bottom on the clean pass
    confidences: Tensor  # (N, K): their scores on the clean pass
    what: BoxQuantity = "score"
    least_iou: float = 0.5
    positional: ClassVar[bool] = True  # in a mirrored picture it is elsewhere
    scored: ScoreActivation = "softmax"  # of models that return logits

    @property
    def kind(self) -> str:
        """What a score is, for a heatmap's provenance."""
        return "score of a detected box" if self.what == "score" else f"{self.what} edge of a detected box"

    @property
    def values(self) -> Tensor:
        """(N, K): what is asked, as it was on the clean pass."""
        return self.confidences if self.what == "score" else self.boxes[..., _EDGES.index(self.what)]

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        found = _detections(output, self.scored)
        if len(found) != len(rows):
            raise TargetError(f"the model returned detections of {len(found)} pictures for {len(rows)} samples")
        asked = self.select(rows.to(self.labels.device), slice(None))
        return torch.stack([asked._scores_in_sample(index, each) for index, each in enumerate(found)])

    def select(self, rows: slice | Tensor, columns: slice) -> BoxScores:
        return replace(
            self,
            labels=self.labels[rows][:, columns],
            boxes=self.boxes[rows][:, columns],
            confidences=self.confidences[rows][:, columns],
        )

    def _scores_in_sample(self, index: int, found: _Detections) -> Tensor:
        """(K,): what is asked of each box, found again among the Q detections of a picture."""
        boxes, clean = self.boxes[index].to(found.boxes), self.confidences[index].to(found.boxes)
        scores = found.scores_of(self.labels[index].to(found.labels.device))  # (Q, K)
        overlap = overlaps(found.boxes.detach(), boxes)  # (Q, K)
        weights = overlap * scores.detach().minimum(clean)
        weights = weights.where((overlap >= self.least_iou) & (scores > 0), -1)
        # What stands for a box that is gone is one more detection, of weight 0: the answer stays on the graph.
        weights = torch.cat([weights, torch.zeros_like(clean)[None]])  # (Q + 1, K)
        if self.what == "score":
            values, gone = scores, torch.zeros_like(clean)
        else:
            edge = _EDGES.index(self.what)
            values, gone = found.boxes[:, edge, None].expand(-1, len(clean)), boxes[:, edge]
        # Of boxes in the very same place the one whose score is nearest, which on the clean pass is the box itself.
        apart = torch.cat([(scores.detach() - clean).abs(), torch.zeros_like(clean)[None]])
        chosen = apart.where(weights == weights.amax(0), torch.inf).argmin(0, keepdim=True)  # (1, K)
        return torch.cat([values, gone[None]]).gather(0, chosen).squeeze(0)


@dataclass(frozen=True)
class Box:
    """One detected box: its score, or with `what` one of its coordinates, "left", "top", "right" or "bottom".

    Which box is decided on the clean pass. `of` is its rank by score, 0 the surest, or a list of ranks. With `label`,
    a class by index or name, only boxes of that class count. With `at`, the left, top, right and bottom of a place,
    only boxes count that overlap it by `least_iou`, and the rank is by overlap: `Box(at=(10, 20, 60, 90))` is the
    detection that is nearest to a box from a file. On later passes, too, a box has to reach `least_iou` to be the same.

    Read are what torchvision's detectors return in eval mode, one dict for each picture with `boxes`, `scores` and
    `labels`, and what DETR and its kin return, `logits` (or `pred_logits`) and `pred_boxes`. Coordinates are those of
    the output: torchvision's are pixels of the input, DETR's run from 0 to 1, and here are left, top, right, bottom in
    either. `scores` says what makes a probability of DETR-like logits: "softmax" over the classes and a last "no
    object" (DETR, YOLOS), or the "sigmoid" of each (Deformable, Conditional, RT-DETR); None goes by the type of output
    where transformers names one, and is softmax otherwise. Each query counts as a detection of its likeliest class.

    A gradient is as the model has it: torchvision's two-stage detectors detach the proposals, and non-maximum
    suppression has none.
    """

    of: int | Sequence[int] = 0
    _: KW_ONLY
    what: BoxQuantity = "score"
    label: ClassId | None = None
    at: Sequence[float] | Tensor | None = None
    least_iou: float = 0.5
    scores: ScoreActivation | None = None
    separate_branches: ClassVar[bool] = True  # what a detector says of a box hangs on that box alone

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
        scored = self.scores or _score_activation_of(output)
        found = _detections(output, scored)
        chosen = [self._select_detections(index, each) for index, each in enumerate(found)]  # N of (K,)
        pairs = list(zip(found, chosen, strict=True))
        return BoxScores(
            torch.stack([each.labels[index] for each, index in pairs]),
            torch.stack([each.boxes.detach()[index] for each, index in pairs]),
            torch.stack([each.scores.detach()[index] for each, index in pairs]),
            self.what,
            float(self.least_iou),
            scored,
        )

    def named(self, class_names: Sequence[str] | None) -> Box:
        return self if self.label is None else replace(self, label=class_index(self.label, class_names))

    def _select_detections(self, picture: int, found: _Detections) -> Tensor:
        """(K,): which of the detections in a picture are meant. Raises TargetError."""
        if not len(found.boxes):
            raise TargetError(
                f"picture {picture} has no detections, so there is no box to ask about. Give another{found.advice}"
            )
        order, which = self._rank_keys(picture, found)
        ranks, count = [self.of] if isinstance(self.of, int) else list(self.of), int((order >= 0).sum())
        if max(ranks) >= count:
            raise TargetError(
                f"picture {picture} has {count} detection{'s' if count > 1 else ''}{which}; asked for number "
                f"{max(ranks)}, counted from 0. Ask for {f'0 to {count - 1}' if count > 1 else '0'}{found.advice}"
            )
        chosen = order.argsort(descending=True, stable=True)[ranks]
        for index in chosen[_area(found.boxes[chosen]) <= 0].tolist():
            raise TargetError(
                f"picture {picture}: what was asked for, {_describe_detection(found, index)}, has no area and could not be found "
                "again. Ask for another one"
            )
        return chosen

    def _rank_keys(self, picture: int, found: _Detections) -> tuple[Tensor, str]:
        """(Q,): by what the detections are ranked, -1 for those that do not count; and in words, which do."""
        order, which = found.scores.detach(), ""
        counted = torch.ones_like(found.labels, dtype=torch.bool)
        if self.label is not None:
            label = class_index(self.label, None)
            counted, which = found.labels == label, f" of class {label}"
            if not counted.any():
                listed = ", ".join(map(str, sorted(set(found.labels.tolist()))))
                raise TargetError(
                    f"picture {picture} has no detection{which}; it has some of {listed}. Ask for one of these"
                    f"{found.advice}"
                )
        if self.at is not None:
            order = overlaps(found.boxes.detach(), found.boxes.new_tensor([list(self.at)])).squeeze(1)
            best = int(order.where(counted, -1).argmax())
            if order[best] < self.least_iou:
                raise TargetError(
                    f"picture {picture} has no detection{which} that overlaps {self.at} by {self.least_iou:g} IoU "
                    f"or more; the nearest, {_describe_detection(found, best)}, has {float(order[best]):.2f}. Coordinates are left, "
                    "top, right, bottom, in the units of the model's output; a lower least_iou takes boxes further off"
                )
            counted, which = counted & (order >= self.least_iou), f"{which} that overlap {self.at} enough"
        return order.where(counted, -1), which


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """(Q, 4) and (K, 4), left, top, right, bottom -> (Q, K): intersection over union, 0 where neither has an area."""
    shared = torch.minimum(boxes[:, None, 2:], others[:, 2:]) - torch.maximum(boxes[:, None, :2], others[:, :2])
    both = shared.clamp(min=0).prod(2)  # (Q, K)
    union = _area(boxes)[:, None] + _area(others) - both
    return torch.where(union > 0, both / union, 0)


@dataclass(frozen=True, eq=False)
class _Detections:
    """What was detected in one picture."""

    boxes: Tensor  # (Q, 4): left, top, right, bottom
    labels: Tensor  # (Q,), int64
    scores: Tensor  # (Q,)
    by_class: Tensor | None  # (Q, classes), where the model has a score for each

    @property
    def advice(self) -> str:
        """The tail of a message: what else to do about a detection that is not there."""
        if self.by_class is not None:  # all queries are there, whatever their scores
            return ""
        return ", or lower the model's score threshold (torchvision: box_score_thresh or score_thresh) to keep more"

    def scores_of(self, labels: Tensor) -> Tensor:
        """(Q, K): the score of each detection as these classes (K,); 0 where it is of another one."""
        if self.by_class is not None:
            return self.by_class[:, labels]
        return torch.where(self.labels[:, None] == labels, self.scores[:, None], 0)


def _detections(output: Any, scored: ScoreActivation) -> list[_Detections]:
    """What was detected in each picture, at least float32. Raises TargetError and NotFinite."""
    found = _detections_in_dicts(output) or _detections_in_queries(output, scored)
    if found is None:
        raise TargetError(
            f"Box reads what a detector returns; got {_describe_output(output)}. Taken are a list of one dict for each "
            "picture with 'boxes' (Q, 4), 'scores' (Q,) and 'labels' (Q,), as torchvision's detectors return in eval "
            "mode, and 'logits' (N, Q, classes) with 'pred_boxes' (N, Q, 4), as transformers' DETR does. Wrap the "
            "model so that it returns one of these"
        )
    if not all(each.boxes.isfinite().all() and each.scores.isfinite().all() for each in found):
        raise NotFinite("the model's boxes or their scores have NaN or infinity; look at the input and the weights")
    return found


def _detections_in_dicts(output: Any) -> list[_Detections] | None:
    if not isinstance(output, (list, tuple)):
        return None
    found = []
    for each in output:
        boxes, scores, labels = (_tensor_named(each, name) for name in ("boxes", "scores", "labels"))
        if boxes is None or scores is None or labels is None or boxes.ndim != 2 or boxes.shape[1] != 4:
            return None
        if not scores.shape == labels.shape == boxes.shape[:1]:
            return None
        found.append(_Detections(at_least_float32(boxes), labels.long(), at_least_float32(scores), None))
    return found


def _detections_in_queries(output: Any, scored: ScoreActivation) -> list[_Detections] | None:
    logits, centred = _logits(output), _tensor_named(output, "pred_boxes")
    if logits is None or centred is None or logits.ndim != 3 or centred.shape != (*logits.shape[:2], 4):
        return None
    logits, centred = at_least_float32(logits), at_least_float32(centred)
    if scored == "sigmoid":
        by_class = logits.sigmoid()  # (N, Q, classes)
    elif logits.shape[2] > 1:
        by_class = logits.softmax(2)[..., :-1]
    else:
        raise TargetError("the model's logits are of one class, without a 'no object'; say Box(scores='sigmoid')")
    centre, half = centred[..., :2], centred[..., 2:] / 2
    boxes = torch.cat([centre - half, centre + half], dim=2)  # (N, Q, 4)
    scores, labels = by_class.max(2)
    parts = zip(boxes.unbind(), labels.unbind(), scores.unbind(), by_class.unbind(), strict=True)
    return [_Detections(*each) for each in parts]


def _score_activation_of(output: Any) -> ScoreActivation:
    """How the model that returned this makes scores of its logits, as far as the output tells."""
    name = type(output).__name__
    # In transformers these were trained with a "no object" class, and all that came later with a focal loss.
    older = ("Detr", "Yolos", "TableTransformer")
    return "sigmoid" if name.endswith("ObjectDetectionOutput") and not name.startswith(older) else "softmax"


def _logits(output: Any) -> Tensor | None:
    given = _tensor_named(output, "logits")
    return _tensor_named(output, "pred_logits") if given is None else given


def _tensor_named(output: Any, name: str) -> Tensor | None:
    given = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    return given if isinstance(given, Tensor) else None


def _ranks(given: Any) -> int | tuple[int, ...]:
    """A rank, or several. Raises TargetError."""
    if isinstance(given, str):
        raise TargetError(f"Box({given!r}): give a rank by score, or a list of ranks; a class is label={given!r}")
    given = given.tolist() if hasattr(given, "tolist") else given
    several = list(given) if isinstance(given, Sequence) else [given]
    if not several or not all(hasattr(rank, "__index__") and not isinstance(rank, bool) for rank in several):
        raise TargetError(
            f"Box({given!r}): give a rank by score, 0 the surest, or a list of ranks; coordinates are at=(left, top, "
            "right, bottom)"
        )
    ranks = tuple(operator.index(rank) for rank in several)
    if min(ranks) < 0:
        raise TargetError(f"Box({given!r}): ranks count from 0, the surest, upwards")
    return ranks if isinstance(given, Sequence) else ranks[0]


def _corners(given: Any) -> tuple[float, ...]:
    """Left, top, right and bottom. Raises TargetError."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if (
        isinstance(given, str)
        or not isinstance(given, Sequence)
        or len(given) != 4
        or not all(isinstance(each, (int, float)) and math.isfinite(each) for each in given)
    ):
        raise TargetError(f"Box(at={given!r}): give four numbers, left, top, right, bottom")
    left, top, right, bottom = map(float, given)
    if not (left < right and top < bottom):
        raise TargetError(
            f"Box(at={given!r}): left is below right and top below bottom; these are corners, not a centre and a size"
        )
    return left, top, right, bottom


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def _describe_detection(found: _Detections, index: int) -> str:
    corners = ", ".join(f"{each:.4g}" for each in found.boxes[index].tolist())
    return f"class {int(found.labels[index])} at ({corners})"


def _describe_output(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(repr, output)) or 'nothing'}"
    if isinstance(output, (list, tuple)):
        inside = ", ".join(dict.fromkeys(type(each).__name__ for each in output)) or "nothing"
        return f"a {type(output).__name__} of {inside}"
    return f"a {type(output).__name__}"

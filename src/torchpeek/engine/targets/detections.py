"""Read the detections in what a detector returned: one dict for each picture, or the queries of DETR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from torchpeek.engine.numerics import at_least_float32
from torchpeek.errors import NotFinite, TargetError, type_shown

ScoreActivation: TypeAlias = Literal["softmax", "sigmoid"]
"""What turns class logits into scores: a softmax with "no object" as its last class, or the sigmoid of each logit."""

# The output types of transformers' detectors end in this. Those with these prefixes are of models that were trained
# with a "no object" class; later models were trained with a focal loss on the sigmoid of each logit.
_DETECTION_OUTPUT = "ObjectDetectionOutput"
_SOFTMAX_DETECTORS = ("Detr", "Yolos", "TableTransformer")


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """(Q, 4) and (K, 4), left, top, right, bottom -> (Q, K): intersection over union, 0 where neither has an area."""
    sides = torch.minimum(boxes[:, None, 2:], others[:, 2:]) - torch.maximum(boxes[:, None, :2], others[:, :2])
    intersection = sides.clamp(min=0).prod(2)  # (Q, K)
    union = area(boxes)[:, None] + area(others) - intersection
    return torch.where(union > 0, intersection / union, 0)


@dataclass(frozen=True, eq=False)
class Detections:
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


class Reader(Protocol):
    """How to read the detections in an output. It is chosen on the clean pass and does not change."""

    @property
    def by_row(self) -> bool:
        """Whether a detection is found again by its number, and not by overlap and class."""
        ...

    @property
    def relative(self) -> bool:
        """Whether boxes are in fractions of the picture, 0 to 1, and not in pixels."""
        ...

    @property
    def several_scales(self) -> bool:
        """Whether the output may hold the boxes of several scales, each with layers of its own."""
        ...

    @property
    def grids(self) -> Sequence[tuple[int, int]]:
        """The grids (h, w) whose cells the boxes belong to; empty where these are not known."""
        ...

    @property
    def words(self) -> str:
        """What a score is, added to the provenance."""
        ...

    def __call__(self, output: Any) -> list[Detections]:
        """The detections of each picture."""
        ...


@dataclass(frozen=True)
class NamedReader:
    """Read a dict of boxes, scores and labels for each picture (torchvision), or logits and boxes of queries (DETR)."""

    activation: ScoreActivation
    relative: bool = False
    by_row: bool = False
    several_scales: bool = False
    grids: Sequence[tuple[int, int]] = ()
    words: str = ""

    def __call__(self, output: Any) -> list[Detections]:
        """The detections of each picture. Raises TargetError where the output has another format."""
        detections = _detections_in_dicts(output) or _detections_in_queries(output, self.activation)
        if detections is None:
            raise TargetError(
                f"Box reads what a detector returns; got {_describe_output(output)}. Allowed are a list of one dict "
                "for each picture with 'boxes' (Q, 4), 'scores' (Q,) and 'labels' (Q,), as torchvision's detectors "
                "return in eval mode; 'logits' (N, Q, classes) with 'pred_boxes' (N, Q, 4), as transformers' DETR "
                "returns; and the tensors of dense detectors, (N, 4 + classes, boxes) or (N, boxes, 5 + classes). "
                "Wrap the model so that it returns one of these"
            )
        return detections


def named_reader(output: Any, activation: ScoreActivation | None) -> NamedReader | None:
    """How to read an output whose parts have names; None where it is no such output."""
    reader = NamedReader(activation or _score_activation_of(output))
    if _detections_in_dicts(output) is not None:
        return reader
    if _detections_in_queries(output, reader.activation) is None:
        return None
    assumed = activation is None and not type(output).__name__.endswith(_DETECTION_OUTPUT)
    # Deformable DETR and RT-DETR read several scales, DETR one.
    words = ", by a softmax with 'no object' as its last class" if assumed else ""
    return replace(reader, relative=True, several_scales=True, words=words)


def finite_detections(detections: list[Detections]) -> list[Detections]:
    """The detections themselves. Raises NotFinite where a box or a score has NaN or infinity."""
    if not all(each.boxes.isfinite().all() and each.scores.isfinite().all() for each in detections):
        raise NotFinite("the model's boxes or their scores have NaN or infinity; check the input and the weights")
    return detections


def _detections_in_dicts(output: Any) -> list[Detections] | None:
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
        detections.append(Detections(at_least_float32(boxes), labels.long(), at_least_float32(scores), None))
    return detections


def _detections_in_queries(output: Any, activation: ScoreActivation) -> list[Detections] | None:
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
    return [Detections(*each) for each in parts]


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


def area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def _describe_output(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"{type_shown(output)} of {', '.join(map(repr, output)) or 'nothing'}"
    if isinstance(output, (list, tuple)):
        types = ", ".join(dict.fromkeys(type(each).__name__ for each in output)) or "nothing"
        return f"{type_shown(output)} of {types}"
    return type_shown(output)

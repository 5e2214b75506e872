"""Read the detections of dense detectors, such as YOLO: a box for each cell of several grids, in a few tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.targets.detections import Detections, Reader, ScoreActivation
from torchpeek.errors import TargetError
from torchpeek.hooks import containers

BoxFormat: TypeAlias = Literal["cxcywh", "xyxy", "xywh"]
"""The four numbers of a box: centre and size; left, top, right, bottom; or left, top and size."""

GridSize: TypeAlias = tuple[int, int]

_QUERY_NAMES = ("logits", "pred_logits", "pred_boxes")
_STRIDES = (2, 4, 8, 16, 32, 64, 128)  # of the grids of a dense detector, neighbours of which are used together
_BOXES_PER_CELL = (1, 3)  # of detectors without and with anchors


@dataclass(frozen=True)
class ReadingOptions:
    """What the user says of a detector's output; None where the output has to show it.

    Args:
        classes: The number of classes.
        names: The number of class names that the model was loaded with. They count where the output fits them.
        format: The four numbers of a box.
        activation: What turns the output's class scores into probabilities.
        size: The sizes (H, W) of the pictures.
    """

    classes: int | None = None
    names: int | None = None
    format: BoxFormat | None = None
    activation: ScoreActivation | None = None
    size: GridSize | None = None


@dataclass(frozen=True)
class DenseReader:
    """Tensors with a row for each box: its four numbers, for some an objectness, and the scores of all classes.

    A box is found again by its row: a row always belongs to the same cell of the same grid.

    Args:
        parts: The paths of the tensors; several are put side by side.
        channel_axis: 2 for (N, boxes, channels), 1 for (N, channels, boxes).
        first_class: The channel of the first class: 4, or 5 after an objectness.
        classes: The number of classes.
        format: The four numbers of a box.
        activation: What turns class scores into probabilities; None where they are.
        relative: Whether the boxes are in fractions of the picture, 0 to 1, and not in pixels.
        grids: The grids (h, w) whose cells the boxes belong to, where the number of boxes shows them.
    """

    parts: Sequence[str]
    channel_axis: int
    first_class: int
    classes: int
    format: BoxFormat
    activation: ScoreActivation | None
    relative: bool
    grids: Sequence[GridSize] = ()
    by_row: bool = True
    several_scales: bool = True

    @property
    def words(self) -> str:
        """What a score is, added to the provenance."""
        return ", objectness times class probability" if self.first_class == 5 else ""

    def __call__(self, output: Any) -> list[Detections]:
        """The detections of each picture."""
        rows = _rows(output, self.parts, self.channel_axis)  # (N, boxes, channels)
        scores = _probabilities(rows[..., self.first_class : self.first_class + self.classes], self.activation)
        if self.first_class == 5:
            scores = scores * _probabilities(rows[..., 4:5], self.activation and "sigmoid")
        return _with_scores(as_corners(rows[..., :4], self.format), scores)


@dataclass(frozen=True)
class ScaleReader:
    """The raw maps (N, 4 * bins + classes, h, w) of YOLOv8 and its successors, one for each scale.

    A distance to an edge is the mean of the bins 0, 1, ... under a softmax of their logits, in strides; with one bin it
    is the number itself. Distances are from the centre of the cell. (Generalized Focal Loss, arXiv:2006.04388, eq. 5)
    """

    parts: Sequence[str]
    classes: int
    bins: int
    size: GridSize
    grids: Sequence[GridSize]
    relative: bool = False
    by_row: bool = True
    several_scales: bool = True
    words: str = ""

    def __call__(self, output: Any) -> list[Detections]:
        """The detections of each picture."""
        tensors = dict(containers.leaves(output))
        boxes, scores = [], []
        for part in self.parts:
            scale = at_least_float32(tensors[part])  # (N, channels, h, w)
            height, width = scale.shape[2:]
            flat = scale.flatten(2).mT  # (N, h * w, channels)
            distances = flat[..., : 4 * self.bins].reshape(*flat.shape[:2], 4, self.bins)
            if self.bins > 1:
                distances = distances.softmax(3) @ torch.arange(self.bins).to(distances)  # (N, h * w, 4)
            else:
                distances = distances.squeeze(3)
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            centre = torch.stack([columns, rows], dim=2).reshape(-1, 2).to(distances) + 0.5  # (h * w, 2)
            stride = distances.new_tensor([self.size[1] / width, self.size[0] / height])
            corners = [(centre - distances[..., :2]) * stride, (centre + distances[..., 2:]) * stride]
            boxes.append(torch.cat(corners, dim=2))
            scores.append(flat[..., 4 * self.bins :].sigmoid())
        return _with_scores(torch.cat(boxes, dim=1), torch.cat(scores, dim=1))


@dataclass(frozen=True)
class ListReader:
    """The result of non-maximum suppression: for each picture rows of left, top, right, bottom, score and class.

    With seven columns the score is the product of two, objectness and class probability (YOLOX). A row belongs to no
    fixed cell, so a box is found again by its overlap and its class.

    Args:
        part: The path of a tensor (N, rows, columns); None for a list of one tensor (rows, columns) for each picture.
        relative: Whether the boxes are in fractions of the picture.
    """

    part: str | None
    relative: bool
    by_row: bool = False
    several_scales: bool = True
    words: str = ""
    grids: Sequence[GridSize] = ()

    def __call__(self, output: Any) -> list[Detections]:
        """The detections of each picture."""
        pictures = output if self.part is None else dict(containers.leaves(output))[self.part]
        found = []
        for rows in map(at_least_float32, pictures):  # (rows, columns)
            scores = rows[:, 4:-1].prod(1)
            rows, scores = rows[scores.detach() > 0], scores[scores.detach() > 0]  # the others are padding
            found.append(Detections(rows[:, :4], rows[:, -1].detach().round().long(), scores, None))
        return found


def dense_reader(output: Any, options: ReadingOptions) -> Reader | None:
    """How to read the output of a dense detector; None where it is none.

    Raises:
        TargetError: When it could be read in more than one way.
    """
    if _is_list_of_rows(output):
        return ListReader(None, _are_fractions(torch.cat([rows[:, :4] for rows in output]), options))
    tensors = {path: each for path, each in containers.leaves(output) if each.is_floating_point() and each.numel()}
    flat = {path: each for path, each in tensors.items() if each.ndim == 3}
    if any(path.rpartition(".")[2] in _QUERY_NAMES for path in flat):
        return None  # the queries of DETR, without their boxes or of other shapes
    outermost = min((path.count(".") for path in flat), default=0)
    flat = {path: each for path, each in flat.items() if path.count(".") == outermost}
    if len(flat) == 1:
        [(path, tensor)] = flat.items()
        if _are_rows(tensor):
            return ListReader(path, _are_fractions(tensor[..., :4], options))
        return _dense_reader((path,), tensor, options, None)
    if len(flat) == 2 and (pair := _boxes_and_scores(flat)):
        return _dense_reader(pair, torch.cat([flat[path] for path in pair], dim=2), options, 2)
    if flat:
        listed = ", ".join(f"{path!r} {tuple(each.shape)}" for path, each in flat.items())
        raise TargetError(
            "the model returned several tensors, and more than one could hold the boxes; choose it with "
            f"Box(part=...): {listed}"
        )
    scales = {path: each for path, each in tensors.items() if each.ndim in (4, 5)}
    grids = {each.shape[2:] if each.ndim == 4 else each.shape[1:4] for each in scales.values()}
    one_for_each_scale = 1 < len(grids) == len(scales) == len(tensors)
    return _scale_reader(scales, options) if one_for_each_scale else None


def as_corners(boxes: Tensor, box_format: BoxFormat) -> Tensor:
    """(..., 4) in any format -> left, top, right, bottom."""
    first, second = boxes[..., :2], boxes[..., 2:]
    match box_format:
        case "xyxy":
            return boxes
        case "xywh":
            return torch.cat([first, first + second], dim=-1)
        case "cxcywh":
            return torch.cat([first - second / 2, first + second / 2], dim=-1)


def _dense_reader(parts: Sequence[str], tensor: Tensor, options: ReadingOptions, axis: int | None) -> DenseReader:
    """How to read (N, boxes, channels) or (N, channels, boxes). Raises TargetError where that cannot be decided."""
    if axis is None:
        axis, first, classes = _columns(tensor, options)
    else:
        first, classes = 4, tensor.shape[2] - 4  # boxes and scores are tensors of their own
    rows = at_least_float32(tensor.detach())
    rows = rows.mT if axis == 1 else rows  # (N, boxes, channels)
    scores = rows[..., 4 : first + classes]
    activation = options.activation
    if activation is None and not bool(((scores >= 0) & (scores <= 1)).all()):
        raise TargetError(
            f"the class scores of the model's boxes go from {float(scores.min()):.3g} to {float(scores.max()):.3g}, so "
            f"they are no probabilities (read as {classes} classes). Give Box(scores='sigmoid') for logits, or "
            "Box(classes=...) if other columns come after the classes"
        )
    if activation == "softmax" and (first == 5 or classes < 2):
        raise TargetError("Box(scores='softmax') needs several classes, the last for no object, and no objectness")
    box_format = options.format or _box_format(rows[..., :4])
    return DenseReader(
        parts,
        axis,
        first,
        classes,
        box_format,
        activation,
        _are_fractions(rows[..., :4], options),
        dict(_cell_counts(options.size)).get(rows.shape[1], ()),
    )


def _columns(tensor: Tensor, options: ReadingOptions) -> tuple[int, int, int]:
    """The axis of the channels, the channel of the first class, and the number of classes. Raises TargetError.

    The evidence is the number of classes, where it is known, and the number of boxes: that of all cells of the grids of
    consecutive strides. With the channels first there is no objectness (YOLOv8 and its successors); with the channels
    last, a box in pixels for each cell has one (YOLOv5, YOLOv7, YOLOX); boxes in fractions are those of RT-DETR.
    """
    shape = tuple(tensor.shape)
    counts = dict(_cell_counts(options.size))
    by_axis = {1: (shape[1], shape[2]), 2: (shape[2], shape[1])}  # channels and boxes
    on_cells = [axis for axis, (channels, boxes) in by_axis.items() if boxes in counts and boxes > channels >= 5]
    known = options.classes
    if known is None and options.names is not None and {shape[1] - options.names, shape[2] - options.names} & {4, 5}:
        known = options.names
    if known is not None:
        before_classes = {axis: channels - known for axis, (channels, _) in by_axis.items()}
        found = [(axis, before_classes[axis]) for axis in (1, 2) if before_classes[axis] in (4, 5)[:axis]]
        if not found and before_classes[1] > 4 and shape[1] < shape[2]:
            found = [(1, 4)]  # more channels come after the classes, such as the coefficients of masks
        found = [(axis, first) for axis, first in found if axis in on_cells] or found
        if len(found) == 1:
            return *found[0], known
    elif len(on_cells) == 1 and (on_cells == [1] or not _are_fractions(tensor[..., :4], options)):
        [axis] = on_cells
        channels = by_axis[axis][0]
        first = 4 if axis == 1 or channels == 5 else 5
        return axis, first, channels - first
    of_size = f" for pictures of {options.size[0]} x {options.size[1]}" if options.size else ""
    channels_first = [f"(N, 4 + {shape[1] - 4} classes, boxes)"] if shape[1] > 4 else []
    channels_last = [f"(N, boxes, {first} + {shape[2] - first} classes)" for first in (4, 5) if shape[2] > first]
    readings = channels_first + channels_last
    got = f"with {known} classes, " if known is not None else ""
    raise TargetError(
        f"the model returned boxes of shape {shape}{of_size}; {got}this may be {', or '.join(readings) or 'none known'}"
        ". 5 is a box and an objectness. Give the number of classes, Box(classes=...), or wrap the model so that "
        "it returns one dict for each picture with 'boxes', 'scores' and 'labels'"
    )


def _cell_counts(size: GridSize | None) -> Iterator[tuple[int, Sequence[GridSize]]]:
    """The numbers of boxes that a dense detector can have for pictures of this size, each with its grids."""
    if size is None:
        return
    grids = [(math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in _STRIDES]
    for first in range(len(grids)):
        for last in range(first + 1, len(grids)):
            cells = sum(math.prod(grid) for grid in grids[first : last + 1])
            for per_cell in _BOXES_PER_CELL:
                yield per_cell * cells, tuple(grids[first : last + 1])


def _box_format(boxes: Tensor) -> BoxFormat:
    """The format of boxes (N, boxes, 4), where only one is possible. Raises TargetError."""
    first, second = boxes[..., :2], boxes[..., 2:]
    corners, sizes = bool((second >= first).all()), bool((second >= 0).all())
    if sizes and not corners:
        return "cxcywh"
    if not sizes and not corners:
        raise TargetError(
            "the model's boxes have negative sizes, so they are not decoded yet: neither centre and size nor corners. "
            "Give the part of the output that is decoded, Box(part=...), or call model.eval() if it decodes only then"
        )
    raise TargetError(
        "the four numbers of the model's boxes may be corners or centre and size. Give Box(format='xyxy') for left, "
        "top, right, bottom; 'cxcywh' for centre and size; 'xywh' for left, top and size"
    )


def _scale_reader(scales: dict[str, Tensor], options: ReadingOptions) -> ScaleReader:
    """How to read the raw maps of several scales. Raises TargetError where they cannot be decoded."""
    shapes = ", ".join(str(tuple(each.shape)) for each in scales.values())
    channels = {each.shape[1] for each in scales.values()}
    advice = "Give the decoded boxes with Box(part=...), or wrap the model so that it returns them"
    if any(each.ndim == 5 for each in scales.values()):
        raise TargetError(
            f"the model returned the raw maps {shapes}, whose boxes are relative to anchors that the output does not "
            f"hold. {advice}; YOLOv5 and YOLOv7 decode in eval mode"
        )
    if len(channels) != 1:
        raise TargetError(f"the model returned {shapes}, maps of several scales with other channels each. {advice}")
    [number] = channels
    classes = options.classes if options.classes is not None else options.names
    if classes is None or options.size is None:
        raise TargetError(
            f"the model returned the raw maps {shapes}: four distances of some bins each, and the classes. Give the "
            "number of classes, Box(classes=...)"
        )
    bins, remainder = divmod(number - classes, 4)
    if bins < 1 or remainder:
        raise TargetError(
            f"the model returned the raw maps {shapes}; {number} channels less {classes} classes are not four times a "
            f"number of bins. {advice}"
        )
    grids = [(each.shape[2], each.shape[3]) for each in scales.values()]
    return ScaleReader(tuple(scales), classes, bins, options.size, tuple(grids))


def _boxes_and_scores(tensors: dict[str, Tensor]) -> tuple[str, str] | None:
    """The paths of (N, boxes, 4) and (N, boxes, classes), where it is clear which is which."""
    (path, tensor), (other, scores) = tensors.items()
    if tensor.shape[:2] != scores.shape[:2] or (tensor.shape[2] == 4) == (scores.shape[2] == 4):
        return None
    return (path, other) if tensor.shape[2] == 4 else (other, path)


def _is_list_of_rows(output: Any) -> bool:
    """Whether this is a list of the rows (rows, columns) of each picture after non-maximum suppression."""
    if not isinstance(output, (list, tuple)) or not output:
        return False
    return all(isinstance(rows, Tensor) and rows.ndim == 2 and _are_rows(rows) for rows in output)


def _are_rows(rows: Tensor) -> bool:
    """Whether (..., rows, columns) are corners, score and class: a class is a whole number, a score in [0, 1]."""
    if not rows.is_floating_point() or rows.shape[-1] not in (6, 7):
        return False
    values = rows.detach()
    corners = bool((values[..., 2:4] >= values[..., :2]).all())
    scores, labels = values[..., 4:-1], values[..., -1]
    probable = bool(((scores >= 0) & (scores <= 1)).all())
    return corners and probable and bool(((labels >= 0) & (labels == labels.round())).all())


def _are_fractions(boxes: Tensor, options: ReadingOptions) -> bool:
    """Whether boxes are in fractions of the picture: their numbers are far below its size in pixels."""
    return bool(boxes.numel()) and bool(boxes.detach().abs().max() <= 2) and max(options.size or (8, 8)) > 4


def _rows(output: Any, parts: Sequence[str], channel_axis: int) -> Tensor:
    """(N, boxes, channels), at least float32. Raises TargetError where the output has other parts than before."""
    tensors = dict(containers.leaves(output))
    if missing := [part for part in parts if part not in tensors]:
        raise TargetError(f"the model returned boxes at {missing[0]!r} on the clean pass, but not on a later pass")
    rows = torch.cat([at_least_float32(tensors[part]) for part in parts], dim=2)
    return rows.mT if channel_axis == 1 else rows


def _probabilities(scores: Tensor, activation: ScoreActivation | None) -> Tensor:
    match activation:
        case None:
            return scores
        case "sigmoid":
            return scores.sigmoid()
        case "softmax":
            return scores.softmax(-1)[..., :-1]


def _with_scores(boxes: Tensor, by_class: Tensor) -> list[Detections]:
    """Detections with boxes (N, Q, 4) and scores of all classes (N, Q, classes), each of its most probable class."""
    scores, labels = by_class.max(2)
    pairs = zip(boxes.unbind(), labels.unbind(), scores.unbind(), by_class.unbind(), strict=True)
    return [Detections(*each) for each in pairs]

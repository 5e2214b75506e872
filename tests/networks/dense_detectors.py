"""A small dense detector, and the forms in which YOLO and its relatives return boxes. Written from their formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 3
STRIDES = (8, 16, 32)
SIZE = (64, 96)  # 96 + 24 + 6 = 126 cells

X = torch.rand(2, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class DenseDetector(nn.Module):
    """A backbone, a neck with a map for each stride, and a head: a box for each cell of each map.

    A map of the neck sees only what its own stride's backbone layer returned. So a score depends on the layers of one
    scale alone, and which ones follows by construction.
    """

    def __init__(self, form: Callable[[DenseDetector, list[Tensor]], Any], bins: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.bins = form, bins
        self.stem = nn.Conv2d(3, 6, 5, stride=4, padding=2)
        self.stages = nn.ModuleList([nn.Conv2d(6, 6, 3, stride=2, padding=1) for _ in STRIDES])
        self.neck = nn.ModuleList([nn.Conv2d(6, 6, 1) for _ in STRIDES])
        self.head = nn.ModuleList([nn.Conv2d(6, 4 * bins + 1 + CLASSES, 1) for _ in STRIDES])
        with torch.no_grad():
            for head in self.head:
                head.weight.mul_(3)

    def raw(self, x: Tensor) -> list[Tensor]:
        """(N, 4 * bins + 1 + classes, h, w) for each stride: distances or sizes, objectness, classes."""
        x, maps = torch.tanh(self.stem(x)), []
        for stage, neck, head in zip(self.stages, self.neck, self.head, strict=True):
            x = torch.tanh(3 * stage(x))
            maps.append(head(torch.tanh(neck(x))))
        return maps

    def decoded(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Centre and size in pixels (N, boxes, 4), objectness (N, boxes, 1) and class logits (N, boxes, classes)."""
        boxes, objectness, classes = [], [], []
        for stride, each in zip(STRIDES, maps, strict=True):
            rows, columns = torch.meshgrid(torch.arange(each.shape[2]), torch.arange(each.shape[3]), indexing="ij")
            cells = torch.stack([columns, rows], dim=2).reshape(-1, 2).to(each)
            flat = each.flatten(2).mT
            centre = (cells + 0.5 + 0.4 * torch.tanh(flat[..., :2])) * stride
            boxes.append(torch.cat([centre, (1 + 0.5 * torch.tanh(flat[..., 2:4])) * stride], dim=2))
            objectness.append(flat[..., 4:5])
            classes.append(flat[..., 5:])
        return torch.cat(boxes, 1), torch.cat(objectness, 1), torch.cat(classes, 1)

    def forward(self, x: Tensor) -> Any:
        return self.form(self, self.raw(x))


def yolov8(net: DenseDetector, maps: list[Tensor]) -> Tensor:
    """(N, 4 + classes, boxes)."""
    boxes, _, classes = net.decoded(maps)
    return torch.cat([boxes, classes.sigmoid()], dim=2).mT


def yolov8_with_raw(net: DenseDetector, maps: list[Tensor]) -> Any:
    return yolov8(net, maps), maps


def yolov8_segmentation(net: DenseDetector, maps: list[Tensor]) -> Any:
    """Mask coefficients after the classes, and their prototypes."""
    out = yolov8(net, maps)
    coefficients = torch.tanh(out[:, :5]) * 2
    return torch.cat([out, coefficients], dim=1), (maps, coefficients, maps[0])


def yolov5(net: DenseDetector, maps: list[Tensor]) -> Any:
    """(N, boxes, 5 + classes), and the raw maps (N, anchors, h, w, 5 + classes)."""
    boxes, objectness, classes = net.decoded(maps)
    return torch.cat([boxes, objectness.sigmoid(), classes.sigmoid()], dim=2), [m[:, None].movedim(2, 4) for m in maps]


def yolox(net: DenseDetector, maps: list[Tensor]) -> Tensor:
    return yolov5(net, maps)[0]


def yolo_nas(net: DenseDetector, maps: list[Tensor]) -> Any:
    """((boxes by their corners, class scores), raw maps)."""
    boxes, _, classes = net.decoded(maps)
    corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=2)
    return (corners, classes.sigmoid()), maps


def rt_detr(net: DenseDetector, maps: list[Tensor]) -> Any:
    """(N, queries, 4 + classes) in fractions of the picture: the first 50 cells stand for queries."""
    boxes, _, classes = net.decoded(maps)
    size = boxes.new_tensor([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
    return torch.cat([boxes / size, classes.sigmoid()], dim=2)[:, :50], maps


def end_to_end(net: DenseDetector, maps: list[Tensor]) -> Tensor:
    """(N, 20, 6): corners, score, class, the best first, and one row of padding."""
    (corners, scores), _ = yolo_nas(net, maps)
    best, labels = scores.max(2)
    order = best.topk(20, dim=1).indices[..., None]
    rows = torch.cat([corners, best[..., None], labels[..., None].to(corners)], dim=2).take_along_dim(order, 1)
    return torch.cat([rows, torch.zeros_like(rows[:, :1])], dim=1)


def rows_of_each_picture(net: DenseDetector, maps: list[Tensor]) -> list[Tensor]:
    """A list of (rows, 6), as after non-maximum suppression."""
    return [rows[: 20 - n] for n, rows in enumerate(end_to_end(net, maps))]


def raw_scales(net: DenseDetector, maps: list[Tensor]) -> list[Tensor]:
    """(N, 4 * bins + classes, h, w) for each scale: no objectness."""
    return [torch.cat([m[:, : 4 * net.bins], m[:, 4 * net.bins + 1 :]], dim=1) for m in maps]


def dense_detector(form: Callable[[DenseDetector, list[Tensor]], Any], bins: int = 1) -> DenseDetector:
    return DenseDetector(form, bins).double().eval()

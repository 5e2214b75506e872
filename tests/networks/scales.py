"""Dense detectors whose necks mix scales, and heads as they are built in practice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.dense_detectors import CLASSES, STRIDES

WIDTH = 6


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2), nn.BatchNorm2d(outputs), nn.SiLU())


class Backbone(nn.Module):
    """Maps of strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, WIDTH, 3, 2), conv(WIDTH, WIDTH, 3, 2))
        self.stages = nn.ModuleList([conv(WIDTH, WIDTH, 3, 2) for _ in STRIDES])

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class PathAggregation(nn.Module):
    """Top down, then bottom up: each map sees all scales, and a finer map is part of the coarser ones."""

    def __init__(self) -> None:
        super().__init__()
        self.top_down = nn.ModuleList([conv(2 * WIDTH, WIDTH) for _ in range(2)])
        self.down = nn.ModuleList([conv(WIDTH, WIDTH, 3, 2) for _ in range(2)])
        self.bottom_up = nn.ModuleList([conv(2 * WIDTH, WIDTH) for _ in range(2)])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = maps
        middle = self.top_down[0](torch.cat([middle, F.interpolate(coarse, size=middle.shape[2:])], 1))
        fine = self.top_down[1](torch.cat([fine, F.interpolate(middle, size=fine.shape[2:])], 1))
        middle = self.bottom_up[0](torch.cat([self.down[0](fine), middle], 1))
        coarse = self.bottom_up[1](torch.cat([self.down[1](middle), coarse], 1))
        return [fine, middle, coarse]


class FeaturePyramid(nn.Module):
    """Top down only, from the coarsest map to the finest, with sums that no module makes."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 1) for _ in STRIDES])
        self.smooth = nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in STRIDES])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        above: Tensor | None = None
        for index in (2, 1, 0):
            each = self.lateral[index](maps[index])
            above = each if above is None else each + F.interpolate(above, size=each.shape[2:])
            found.insert(0, self.smooth[index](above))
        return found


class Decoupled(nn.Module):
    """YOLOX: a convolution, then a branch for the classes, and one for the box and its objectness."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(WIDTH, WIDTH, 1)
        self.classes, self.boxes = conv(WIDTH, WIDTH), nn.Sequential(conv(WIDTH, WIDTH), conv(WIDTH, WIDTH))
        self.class_logits, self.sizes = nn.Conv2d(WIDTH, CLASSES, 1), nn.Conv2d(WIDTH, 4, 1)
        self.objectness = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        boxes = self.boxes(x)
        return torch.cat([self.sizes(boxes), self.objectness(boxes), self.class_logits(self.classes(x))], 1)


class Branches(nn.Module):
    """YOLOv8: two branches from the neck on."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes = nn.Sequential(conv(WIDTH, WIDTH), conv(WIDTH, WIDTH), nn.Conv2d(WIDTH, 5, 1))
        self.classes = nn.Sequential(conv(WIDTH, WIDTH), conv(WIDTH, WIDTH), nn.Conv2d(WIDTH, CLASSES, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.boxes(x), self.classes(x)], 1)


def coupled() -> nn.Module:
    """YOLOv3 and YOLOv5: one convolution predicts everything."""
    return nn.Conv2d(WIDTH, 5 + CLASSES, 1)


class Detector(nn.Module):
    """(N, 4 + classes, boxes), or (N, boxes, 5 + classes) with an objectness; the boxes of all scales in a row.

    Args:
        neck: Makes the neck.
        head: Makes the head of a scale.
        shared: Whether one head is called for each scale.
        pooled: Whether one more scale is pooled from the coarsest map, by a function.
        objectness: Whether the objectness is a column.
    """

    def __init__(
        self,
        neck: Callable[[], nn.Module],
        head: Callable[[], nn.Module],
        *,
        shared: bool = False,
        pooled: bool = False,
        objectness: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pooled, self.objectness = pooled, objectness
        count = len(STRIDES) + pooled
        self.body, self.neck = Backbone(), neck()
        heads = [head() for _ in range(1 if shared else count)]
        self.head = nn.ModuleList(heads * count if shared else heads)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=1.5 / (module.weight[0].numel()) ** 0.5)

    def features(self, x: Tensor) -> list[Tensor]:
        maps = self.neck(self.body(x))
        return [*maps, F.max_pool2d(maps[-1], 1, 2)] if self.pooled else list(maps)

    def rows(self, maps: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """(N, cells, 5 + classes) for each scale: centre and size in pixels, objectness, class probabilities."""
        rows = []
        for each, head in zip(maps, self.head, strict=True):
            raw = head(each)
            stride = size[0] / raw.shape[2]
            y, x = torch.meshgrid(torch.arange(raw.shape[2]), torch.arange(raw.shape[3]), indexing="ij")
            cells = torch.stack([x, y], 2).reshape(-1, 2).to(raw)
            flat = raw.flatten(2).mT
            centre = (cells + 0.5 + 0.4 * torch.tanh(flat[..., :2])) * stride
            sides = (1 + 0.5 * torch.tanh(flat[..., 2:4])) * stride
            rows.append(torch.cat([centre, sides, flat[..., 4:].sigmoid()], 2))
        return rows

    def forward(self, x: Tensor) -> Any:
        rows = torch.cat(self.rows(self.features(x), (x.shape[2], x.shape[3])), 1)
        return rows if self.objectness else torch.cat([rows[..., :4], rows[..., 5:]], 2).mT


def detector(*args: Any, **options: bool) -> Detector:
    return Detector(*args, **options).double().eval()

"""A network that returns what a function makes of its feature maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

X = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ROWS = torch.arange(2)


class Returns(nn.Module):
    """A convolution, and whatever `make` makes of it."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.make = nn.Conv2d(3, 4, 3, padding=1), make

    def forward(self, x: Tensor) -> Any:
        return self.make(torch.nn.functional.softplus(self.conv(x)))


def regression(a: Tensor) -> Tensor:
    return a.square().mean((1, 2, 3))  # (N,)


def segmentation(a: Tensor) -> dict[str, Tensor]:
    return {"out": torch.tanh(a)}  # (N, 4 classes, 8, 6)


def embedding(a: Tensor) -> Tensor:
    return torch.tanh(a).flatten(2).mean(2)  # (N, 4)


def detections(a: Tensor) -> dict[str, Any]:
    return {"boxes": a.flatten(2)[..., :4], "scores": torch.sigmoid(a.amax((2, 3))), "size": 8}


MASK = torch.zeros(8, 6, dtype=torch.bool)
MASK[2:4, 1:5] = True

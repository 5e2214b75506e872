"""A model that takes more than the picture, and the same model wrapped so that it takes one tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

N = 3


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Sided(nn.Module):
    """Two pictures, a row of a table beside them, and more; keyword-only in part. May write into all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3, stride=2)
        self.table, self.head = nn.Linear(7, 5), nn.Linear(5, 4)
        self.writes = False

    def forward(
        self, image: Tensor, second: Tensor, *, meta: dict[str, Any], scale: Tensor, flags: Tensor, hint: Any = None
    ) -> Tensor:
        assert hint is None
        table, ids = meta["table"], meta["ids"][0]
        a, b = torch.tanh(self.conv(image)), torch.tanh(self.other(second)).mean((2, 3))
        row = torch.tanh(self.table(table))
        a = a * (1 + b[:, :, None, None]) * scale + row[:, :, None, None] * a.square()
        a = a * (1 + 0.1 * ids[:, None, None, None]) + flags[:, None, None, None] * a.abs()
        if self.writes:
            for each in (image, second, table):
                each.mul_(0)
        return self.head(a.sigmoid().mean((2, 3)))


FIRST, SECOND = drawn(N, 3, 8, 6), drawn(N, 3, 11, 9, seed=2)


def rest(rows: Any = slice(None)) -> dict[str, Any]:
    """What else it takes, of some of the samples: by sample, broadcast, nested, integer, boolean, nothing."""
    return {
        "meta": {"table": drawn(N, 7, seed=3)[rows], "ids": [torch.tensor([1, 2, 3])[rows]]},
        "scale": torch.full((1, 1, 1, 1), 1.3, dtype=torch.float64),
        "flags": torch.tensor([True, False, True])[rows],
        "hint": None,
    }


class OfOne(nn.Module):
    """Takes one of the pictures of one sample, and knows the rest."""

    def __init__(self, model: nn.Module, picture: str, sample: int) -> None:
        super().__init__()
        self.model, self.picture, self.sample = model, picture, sample

    def forward(self, x: Tensor) -> Tensor:
        row = [self.sample] * len(x)
        pair = (x, SECOND[row]) if self.picture == "0" else (FIRST[row], x)
        return self.model(*pair, **rest(row))

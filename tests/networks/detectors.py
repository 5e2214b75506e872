"""Small detectors and their input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WHAT = ["score", "left", "top", "right", "bottom"]
KEYS = ["boxes", "labels", "scores"]
ROWS = torch.arange(2)


class Cells(nn.Module):
    """A smooth detector: one box for each cell of the grid, of a class that the cell has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def cells(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, size (N, Q, 2), and class logits (N, Q, 4)."""
        a = self.conv(x).flatten(2).movedim(1, 2)  # (N, Q, 8)
        rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
        places = torch.stack([columns, rows], dim=2).reshape(-1, 2) + 0.5  # (Q, 2)
        size = places.new_tensor([x.shape[3], x.shape[2]])
        centre = (places + 0.2 * torch.tanh(a[..., 0:2])) / size
        return centre, (1.2 + 0.5 * torch.tanh(a[..., 2:4])) / size, 3 * a[..., 4:]


class Listing(Cells):
    """As torchvision has it: a list of dicts, boxes by their corners, of the likely ones only."""

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        centre, size, logits = self.cells(x)
        boxes = 8 * torch.cat([centre - size / 2, centre + size / 2], dim=2)
        scores, labels = logits.softmax(2)[..., :-1].max(2)
        order = [each.argsort(descending=True)[: 9 - n % 2] for n, each in enumerate(scores)]
        return [
            {"boxes": boxes[n, kept], "labels": labels[n, kept] + 1, "scores": scores[n, kept], "masks": boxes[n, kept]}
            for n, kept in enumerate(order)
        ]


class Queries(Cells):
    """As DETR has it: class logits, the last of no object, and centres and sizes."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        centre, size, logits = self.cells(x)
        return {"logits": logits, "pred_boxes": torch.cat([centre, size], dim=2)}


X = torch.randn(2, 3, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def detector(kind: type[Cells]) -> Cells:
    torch.manual_seed(0)
    return kind().double().eval()

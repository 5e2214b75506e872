"""Networks that call a layer several times in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """A small convolutional encoder: (N, 3, H, W) -> (N, 8)."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(channels, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Softplus())
        self.layer4 = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.Softplus())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer4(self.layer1(x)).mean((2, 3))


class Siamese(nn.Module):
    """Two pictures through one backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Encoder()
        self.fc = nn.Linear(16, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc(torch.tanh(torch.cat([self.backbone(a), self.backbone(b)], 1)))


class DependentPair(Siamese):
    """Both calls of the backbone depend on the first picture."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return super().forward(a, b + a)


class SharedAct(nn.Module):
    """One activation after each convolution, and around a residual sum; its calls return different shapes."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.act = nn.Softplus() if act is None else act
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.two(self.act(self.one(x))))
        return self.head(self.act(x + self.three(x)).mean((2, 3)))


class Tied(nn.Module):
    """One block, run `depth` times."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.depth, self.stem, self.head = depth, nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 3)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(self.depth):
            x = x + self.block(x)
        return self.head(x.mean((2, 3)))


class Frames(nn.Module):
    """An encoder run on each frame of (N, T, 3, H, W), and a recurrent cell over what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.cell, self.head = Encoder(), nn.GRUCell(8, 5), nn.Linear(5, 4)

    def forward(self, frames: Tensor) -> Tensor:
        state = frames.new_zeros(len(frames), 5)
        for frame in frames.unbind(1):
            state = self.cell(self.encoder(frame), state)
        return self.head(state)


class SampleBySample(nn.Module):
    """Calls its layers once for each sample, so that the number of calls depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.conv, self.head = nn.Tanh(), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        scale = torch.stack([self.act(each.unsqueeze(0)).mean() for each in maps])  # (N,)
        return self.head(self.act(maps).mean((2, 3)) * (1 + scale[:, None]))

"""Networks that fold frames or views into the batch axis, and others whose layers have grids of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def encoder(channels: int = 3) -> nn.Sequential:
    """A small convolutional encoder, (N, channels, H, W) to (N, 5, h, w); smooth, so that finite steps agree."""
    return nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), nn.Tanh(), nn.Conv2d(4, 5, 3, 2, 1), nn.Softplus())


class Frames(nn.Module):
    """The encoder on each frame of (N, T, C, H, W), and a head that reads the frames with unlike weights.

    Args:
        views_first: Fold as (T N) and not as (N T).
        channels_second: Take (N, C, T, H, W).
    """

    def __init__(self, *, views_first: bool = False, channels_second: bool = False, channels: int = 3) -> None:
        super().__init__()
        self.views_first, self.channels_second = views_first, channels_second
        self.encoder, self.head = encoder(channels), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2) if self.channels_second else x
        n, t = x.shape[:2]
        folded = (x.transpose(0, 1) if self.views_first else x).flatten(0, 1)
        features = self.encoder(folded).mean((2, 3))
        frames = features.view(t, n, -1).transpose(0, 1) if self.views_first else features.view(n, t, -1)
        return self.read(frames)

    def read(self, frames: Tensor) -> Tensor:
        """(N, T, 5) to the logits (N, 3)."""
        weights = torch.linspace(1, 2, frames.shape[1], dtype=frames.dtype).unsqueeze(1)
        return self.head(torch.tanh(3 * (frames * weights).mean(1)))


class OneFrame(nn.Module):
    """`Frames` as a function of one frame of one sample, (1, C, H, W): the other frames stay as they are."""

    def __init__(self, frames: Frames, x: Tensor, index: int) -> None:
        super().__init__()
        self.encoder, self.read, self.index = frames.encoder, frames.read, index
        with torch.no_grad():
            others = frames.encoder((x.transpose(1, 2) if frames.channels_second else x)[0]).mean((2, 3))
        self.register_buffer("others", others)

    def forward(self, frame: Tensor) -> Tensor:
        feature = self.encoder(frame).mean((2, 3)).unsqueeze(1)  # (n, 1, 5)
        others = self.others.expand(len(frame), -1, -1)
        return self.read(torch.cat([others[:, : self.index], feature, others[:, self.index + 1 :]], 1))


class Tokens(nn.Module):
    """Patches of each frame as tokens behind a class token, folded as (N T): (N T, 1 + h w, 4)."""

    def __init__(self, *, sequence_first: bool = False) -> None:
        super().__init__()
        self.sequence_first = sequence_first
        self.patch, self.token = nn.Conv2d(3, 4, 4, 4), nn.Parameter(torch.randn(1, 1, 4))
        self.block, self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x.flatten(0, 1)).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.block(tokens.transpose(0, 1)).transpose(0, 1) if self.sequence_first else self.block(tokens)
        mixed = (tokens @ tokens.mT).softmax(-1) @ tokens
        return self.head(mixed[:, 0].unflatten(0, x.shape[:2]).mean(1))


class Spectrogram(nn.Module):
    """Convolutions over the spectrogram of a signal (N, samples), which the network computes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = encoder(1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        window = torch.hann_window(62, dtype=x.dtype)
        spectrum = torch.stft(x, 62, hop_length=20, window=window, return_complex=True).abs()
        return self.head(self.encoder(spectrum.unsqueeze(1)).mean((2, 3)))


class Siamese(nn.Module):
    """One encoder for two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = encoder(), nn.Linear(5, 3)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.head((self.encoder(first) - self.encoder(second)).mean((2, 3)))


class Electrodes(nn.Module):
    """Convolutions of one axis over (N, electrodes, 1, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv1d(4, 6, 5), nn.Conv1d(6, 5, 5, 2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x.squeeze(2))))).mean(2))

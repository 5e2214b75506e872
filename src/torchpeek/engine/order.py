"""How a model has the axes of what it looks at, where that is not (N, C, *grid)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Order:
    """Inside torchpeek pictures are (N, C, *grid): from what the model takes to that, and back."""

    to_grid: Callable[[Tensor], Tensor]
    as_taken: Callable[[Tensor], Tensor]  # contiguous, as the user's own would be


# (N, frames, C, H, W), and (N, time, frequency), whose grid the model convolves as (frequency, time).
_FRAMES_FIRST = Order(lambda given: given.transpose(1, 2), lambda given: given.transpose(1, 2).contiguous())
_SPECTROGRAM = Order(lambda given: given.mT.unsqueeze(1), lambda given: given.squeeze(1).mT.contiguous())


def order_of(model: nn.Module, picture: Tensor) -> Order | None:
    """That of transformers' models of videos and of its AST, also inside of wrappers; None of others."""
    for config in _configs(model):
        of_frames = any(isinstance(getattr(config, name, None), int) for name in ("num_frames", "frames_per_clip"))
        channels = getattr(config, "num_channels", getattr(config, "in_chans", None))
        if of_frames and picture.ndim == 5 and picture.shape[2] == channels:
            return _FRAMES_FIRST
        strided = hasattr(config, "frequency_stride") and hasattr(config, "time_stride")
        if strided and picture.ndim == 3 and picture.shape[2] == getattr(config, "num_mel_bins", None):
            return _SPECTROGRAM
    return None


def _configs(model: nn.Module) -> Iterator[Any]:
    """Of the outermost module that has one, which may be inside a wrapper; and of its half that sees."""
    for module in model.modules():
        if hasattr(config := getattr(module, "config", None), "to_dict"):  # as all of transformers' have
            yield config
            yield getattr(config, "vision_config", None)
            return

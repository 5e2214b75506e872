"""What a model's own configuration says of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torchpeek.engine.layouts import Grid


def declared(model: nn.Module) -> tuple[int | None, int]:
    """How many tokens before and after the grid the model's own configuration says that there are, if it does.

    timm's `num_prefix_tokens`, torchvision's `class_token`, and what transformers' configurations count.
    """
    if isinstance(count := getattr(model, "num_prefix_tokens", None), int):  # timm
        return count, 0
    config: Any = getattr(model, "config", None)
    vision = getattr(config, "vision_config", config)
    for name in ("num_register_tokens", "num_detection_tokens"):
        if isinstance(count := getattr(vision, name, None), int):
            return (1 + count, 0) if name == "num_register_tokens" else (1, count)
    if isinstance(getattr(model, "class_token", None), Tensor):  # torchvision
        return 1, 0
    return None, 0


def declared_grids(model: nn.Module) -> list[Grid]:
    """The grids that parts of the model say that they make of a picture: timm's `grid_size`."""
    sizes = (getattr(module, "grid_size", None) for module in model.modules())
    return [size for size in sizes if isinstance(size, tuple) and size and all(type(each) is int for each in size)]


@dataclass(frozen=True)
class Order:
    """How a model has the axes of what it looks at, where that is not (N, C, *grid)."""

    to_grid: Callable[[Tensor], Tensor]  # as the model takes it -> (N, C, *grid), a view
    as_taken: Callable[[Tensor], Tensor]  # and back


_FRAMES_FIRST = Order(lambda given: given.transpose(1, 2), lambda given: given.transpose(1, 2))  # (N, T, C, H, W)
_SPECTROGRAM = Order(lambda given: given.mT.unsqueeze(1), lambda given: given.squeeze(1).mT)  # (N, T, F); grid (F, T)


def order_of(model: nn.Module, picture: Tensor) -> Order | None:
    """That of transformers' models of videos and of its AST; None of others."""
    config: Any = getattr(model, "config", None)
    of_frames = any(isinstance(getattr(config, name, None), int) for name in ("num_frames", "frames_per_clip"))
    channels = getattr(config, "num_channels", getattr(config, "in_chans", None))
    if of_frames and picture.ndim == 5 and picture.shape[2] == channels:
        return _FRAMES_FIRST
    axes = tuple(getattr(config, name, None) for name in ("max_length", "num_mel_bins"))
    strided = hasattr(config, "frequency_stride") and hasattr(config, "time_stride")
    return _SPECTROGRAM if strided and picture.ndim == 3 and tuple(picture.shape[1:]) == axes else None


def declared_queries(model: nn.Module) -> frozenset[int]:
    """How many objects a model, or its configuration, says that it asks for: as many tokens may look like a grid."""
    config: Any = getattr(model, "config", None)
    parts = [model, config, getattr(config, "decoder_config", None)]
    counts = [getattr(part, name, None) for part in parts for name in ("num_queries", "num_detection_tokens")]
    return frozenset(count for count in counts if isinstance(count, int))

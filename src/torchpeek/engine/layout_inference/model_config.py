"""What a model's own configuration says of its tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torchpeek.engine.layout import Grid


def configured_token_counts(model: nn.Module) -> tuple[int | None, int]:
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
    if isinstance(getattr(model, "class_token", None), Tensor) and hasattr(model, "conv_proj"):  # torchvision
        return 1, 0
    return None, 0


def configured_grids(model: nn.Module) -> list[Grid]:
    """The grids that parts of the model say that they make of a picture: timm's `grid_size`."""
    sizes = (getattr(module, "grid_size", None) for module in model.modules())
    return [size for size in sizes if isinstance(size, tuple) and size and all(type(each) is int for each in size)]


def configured_queries(model: nn.Module) -> frozenset[int]:
    """How many objects a model, or its configuration, says that it asks for: as many tokens may look like a grid."""
    config: Any = getattr(model, "config", None)
    parts = [model, config, getattr(config, "decoder_config", None)]
    counts = [getattr(part, name, None) for part in parts for name in ("num_queries", "num_detection_tokens")]
    return frozenset(count for count in counts if isinstance(count, int))

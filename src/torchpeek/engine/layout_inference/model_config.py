"""What models of known libraries say about themselves, in one table: attributes, configuration keys, class names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from torchpeek.engine.layout import Grid

# The table. Each row names what it is read from and the library that it belongs to.

_PREFIX_COUNT = "num_prefix_tokens"  # attribute of the model; timm
_CONFIG_TOKEN_COUNTS: Mapping[str, Callable[[int], tuple[int, int]]] = {  # keys of the configuration; transformers
    "num_register_tokens": lambda registers: (1 + registers, 0),  # DINOv2, DINOv3: after the class token
    "num_detection_tokens": lambda detections: (1, detections),  # YOLOS: after the grid
}
_CLASS_TOKEN, _CLASS_TOKEN_BESIDE = "class_token", "conv_proj"  # attributes of VisionTransformer; torchvision
_GRID = "grid_size"  # attribute of a patch embedding; timm
_QUERY_COUNTS = ("num_queries", "num_detection_tokens")  # attributes, or keys; DETR and its relatives, YOLOS
_FEATURE_EXTRACTORS = ("backbone", "vision_model")  # attributes; torchvision, and CLIP in transformers
_FEATURE_EXTRACTOR_NAME = "base_model_prefix"  # attribute with the name of an attribute; transformers
_REORDERING_CLASS = "Unroll"  # class name of a module; Hiera in timm
_BOXES = "boxes"  # part of a key of the output; detectors of torchvision and transformers


def configured_token_counts(model: nn.Module) -> tuple[int | None, int]:
    """How many prefix tokens and suffix tokens the model has by its own configuration; (None, 0) if it does not say."""
    if isinstance(count := getattr(model, _PREFIX_COUNT, None), int):
        return count, 0
    config: Any = getattr(model, "config", None)
    vision_config = getattr(config, "vision_config", config)
    for key, prefix_and_suffix in _CONFIG_TOKEN_COUNTS.items():
        if isinstance(count := getattr(vision_config, key, None), int):
            return prefix_and_suffix(count)
    if isinstance(getattr(model, _CLASS_TOKEN, None), Tensor) and hasattr(model, _CLASS_TOKEN_BESIDE):
        return 1, 0
    return None, 0


def configured_grids(model: nn.Module) -> list[Grid]:
    """The grids that modules of the model have as an attribute."""
    grids = (getattr(module, _GRID, None) for module in model.modules())
    return [grid for grid in grids if isinstance(grid, tuple) and grid and all(type(size) is int for size in grid)]


def configured_query_counts(model: nn.Module) -> frozenset[int]:
    """How many object queries the model has, by its attributes or its configuration.

    So many tokens are not a grid, even if their number is that of a grid.
    """
    config: Any = getattr(model, "config", None)
    sources = [model, config, getattr(config, "decoder_config", None)]
    counts = [getattr(source, name, None) for source in sources for name in _QUERY_COUNTS]
    return frozenset(count for count in counts if isinstance(count, int))


def feature_extractors(model: nn.Module) -> Iterator[str]:
    """The names of the model's own feature extractors, such as `backbone`: the modules before its head."""
    for name in (*_FEATURE_EXTRACTORS, str(getattr(model, _FEATURE_EXTRACTOR_NAME, ""))):
        if name and isinstance(getattr(model, name, None), nn.Module):
            yield name


def reorders_tokens(model: nn.Module) -> bool:
    """Whether the model has its tokens in row-major order only in its last stage.

    Before that, the tokens of Hiera are in the order in which they are merged.
    """
    return any(type(module).__name__ == _REORDERING_CLASS for module in model.modules())


def is_boxes(path: str) -> bool:
    """Whether this part of a model's output holds the boxes of a detector."""
    return _BOXES in path

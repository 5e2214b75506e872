"""What models of known libraries say about themselves, in one table: attributes, configuration keys, class names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
_DETECTOR_TRANSFORM = ("min_size", "max_size", "size_divisible", "fixed_size")  # attributes of `transform`; torchvision
_COMPARES_TEXTS = ("get_image_features", "get_text_features")  # methods; CLIP and SigLIP in transformers
_TEXT_ARGUMENTS = frozenset({"input_ids", "attention_mask", "position_ids", "token_type_ids"})  # transformers
_FRAME_COUNTS = ("num_frames", "frames_per_clip")  # keys; video models of transformers
_CHANNEL_COUNTS = ("num_channels", "in_chans")  # keys; the same
_SPECTROGRAM_STRIDES, _MEL_BINS = ("frequency_stride", "time_stride"), "num_mel_bins"  # keys; AST in transformers


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


def takes_a_list(model: nn.Module) -> bool:
    """Whether the model takes a list of pictures (C, H, W) in place of a batch, and scales and pads them itself."""
    transform = getattr(model, "transform", None)
    return all(hasattr(transform, name) for name in _DETECTOR_TRANSFORM)


def compares_texts(model: nn.Module) -> bool:
    """Whether the model compares every picture with every text, as CLIP and SigLIP do in transformers."""
    return all(callable(getattr(model, name, None)) for name in _COMPARES_TEXTS)


def is_text_argument(path: str) -> bool:
    """Whether an argument of such a model belongs to the texts, which are the same for all pictures."""
    return path in _TEXT_ARGUMENTS


def takes_frames_first(model: nn.Module, shape: Sequence[int]) -> bool:
    """Whether the model takes videos (N, frames, C, H, W), and `shape` is one."""
    if len(shape) != 5:  # first, because the search for a configuration takes time
        return False
    for config in _configs(model):
        channels = next((getattr(config, key) for key in _CHANNEL_COUNTS if hasattr(config, key)), None)
        has_frames = any(isinstance(getattr(config, key, None), int) for key in _FRAME_COUNTS)
        if has_frames and shape[2] == channels:
            return True
    return False


def takes_time_first(model: nn.Module, shape: Sequence[int]) -> bool:
    """Whether the model takes spectrograms (N, time, frequency) and convolves them as (frequency, time)."""
    return len(shape) == 3 and any(
        all(hasattr(config, key) for key in _SPECTROGRAM_STRIDES) and shape[2] == getattr(config, _MEL_BINS, None)
        for config in _configs(model)
    )


def _configs(model: nn.Module) -> Iterator[Any]:
    """The configuration of the outermost module that has one, and that of its vision part."""
    for module in model.modules():
        if hasattr(config := getattr(module, "config", None), "to_dict"):  # as all of transformers' configurations have
            yield config
            yield getattr(config, "vision_config", None)
            return

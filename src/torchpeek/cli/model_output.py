"""Recognise what a model returns: boxes, classes for each pixel, or an embedding."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchpeek.engine.targets.output_parts import locate_logits, resolve_part
from torchpeek.errors import TargetError
from torchpeek.hooks import containers


def is_detection(output: Any) -> bool:
    """Whether a detector returned it: a dict of boxes for each picture, or boxes for each query."""
    if isinstance(output, (list, tuple)):
        return bool(output) and all(isinstance(each, dict) and {"boxes", "scores"} <= each.keys() for each in output)
    return "pred_boxes" in _floating_point_parts(output)


def pixels_part(output: Any, part: str = "") -> str | None:
    """The path of the (N, classes, H, W) tensor of a segmentation. None where there is none, or it is ambiguous.

    Args:
        output: What the model returned.
        part: The part that the user chose; "" for any.
    """
    parts = _floating_point_parts(output)
    if part:
        path = resolve_part(output, part, ())
        return path if path in parts and parts[path].ndim >= 4 else None
    grids = [path for path, tensor in parts.items() if tensor.ndim >= 4]
    named = next((path for path in ("out", "logits") if path in grids), None)
    return named or (grids[0] if len(grids) == len(parts) == 1 else None)


def embedding_part(output: Any) -> str | None:
    """The path of the picture's embedding in the output of a transformers model. None if there are class scores."""
    parts = _floating_point_parts(output)
    if any(path.startswith("logits") for path in parts):
        return None
    return next((path for path in ("image_embeds", "pooler_output") if path in parts), None)


def class_count(output: Any) -> int | None:
    """How many classes the output scores, of each picture or of each pixel. None where that cannot be told."""
    if is_detection(output) or embedding_part(output) is not None:
        return None
    if (path := pixels_part(output)) is not None:
        return int(_floating_point_parts(output)[path].shape[1])
    try:
        return int(locate_logits(output)[1].shape[1])
    except TargetError:
        return None


def _floating_point_parts(output: Any) -> dict[str, Tensor]:
    return {path: tensor for path, tensor in containers.leaves(output) if tensor.is_floating_point()}

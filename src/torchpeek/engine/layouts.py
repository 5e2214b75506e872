"""What a layer returned, seen as (N, C, *grid), or why it cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.errors import NoSpatialLayer, NotFinite


def check_spatial(name: str, module: nn.Module, output: Any, inputs: Tensor) -> None:
    """Raise NoSpatialLayer or NotFinite unless a heatmap can be read from what the layer returned."""
    if not isinstance(output, Tensor):
        raise NoSpatialLayer(
            f"layer {name!r} returned a {type(output).__name__}; a heatmap is read from one tensor (N, C, *grid). "
            "Choose a layer inside or after it (torchpeek layers shows the shapes)"
        )
    if not output.is_floating_point():
        raise NoSpatialLayer(
            f"layer {name!r} returned {output.dtype}; a heatmap is read from floating-point activations"
        )
    if is_channels_last(module, output, inputs):
        raise NoSpatialLayer(
            f"layer {name!r} returned shape {tuple(output.shape)}, which is channels last, (N, *grid, C); a heatmap "
            "is read from (N, C, *grid). Choose a layer that returns that, as torchpeek layers shows them"
        )
    if not has_grid(module, output, inputs):
        raise NoSpatialLayer(
            f"layer {name!r} returned shape {tuple(output.shape)} for an input of {tuple(inputs.shape)}; allowed: (N, "
            "C, *grid) with as many grid axes as the input, more than one position, and no more than the input has. "
            "torchpeek layers shows the shapes; layer=None takes a suggested layer"
        )
    if not torch.isfinite(output).all():
        raise NotFinite(f"layer {name!r} returned NaN or infinity{why_not_finite(inputs, output)}")


def has_grid(module: nn.Module, output: Tensor, inputs: Tensor) -> bool:
    """Whether `output` is (N, C, *grid) with a grid of more than one position that fits the input's axes."""
    return (
        output.ndim == inputs.ndim >= 3
        and output.shape[0] == inputs.shape[0]
        and math.prod(output.shape[2:]) > 1
        and all(size <= given for size, given in zip(output.shape[2:], inputs.shape[2:], strict=True))
        and not is_channels_last(module, output, inputs)
    )


def is_channels_last(module: nn.Module, output: Tensor, inputs: Tensor) -> bool:
    """Whether only (N, *grid, C) makes sense: read so all axes shrank alike, and read as (N, C, *grid) they did not.

    Not where the last part of the module is one that works on (N, C, *grid), such as a convolution: a stride may differ
    from axis to axis.
    """
    return (
        output.ndim == inputs.ndim >= 4
        and _shrank_alike(output.shape[1:-1], inputs.shape[2:])
        and not _shrank_alike(output.shape[2:], inputs.shape[2:])
        and not _ends_channels_first(module)
    )


def _ends_channels_first(module: nn.Module) -> bool:
    for part in reversed(list(module.modules())):
        if isinstance(part, (nn.LayerNorm, nn.Linear)):
            return False
        if isinstance(part, _CHANNELS_FIRST):
            return True
    return False


_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


def _shrank_alike(grid: Sequence[int], given: Sequence[int]) -> bool:
    """Whether one stride gives all sizes of the grid, each up to one position, as padding and rounding may add."""
    least = max(have / (size + 1) for size, have in zip(grid, given, strict=True))
    most = min(have / (size - 1) if size > 1 else math.inf for size, have in zip(grid, given, strict=True))
    return least <= most


def why_not_finite(inputs: Tensor, found: Tensor) -> str:
    """The rest of a message that says that `found` has NaN or infinity: where, and what to look at."""
    if inputs.is_floating_point() and not torch.isfinite(inputs).all():
        return "; the input has them already"
    samples = (~torch.isfinite(found)).flatten(1).any(1).nonzero().flatten().tolist()
    half = " Half precision overflows above 65504; try float32." if found.dtype == torch.float16 else ""
    where = ", ".join(map(str, samples[:8]))
    return f" in sample {where}; the input has none. Check the weights and the input's range.{half}"

"""What the kind of a module says of the axes of what it returns."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from torchpeek.engine.layout import Grid

ChannelAxis: TypeAlias = Literal["first", "last"]


def channel_axis(module: nn.Module, output: Tensor) -> ChannelAxis | None:
    """Whether what it returns has its channels first or last, by the kind of module; None where that says nothing.

    What a module does with its parts is not to be seen, so of those with parts only a Sequential says anything.
    """
    if isinstance(module, CHANNELS_FIRST):
        return "first"
    if type(module) is nn.Linear:
        return "last" if output.ndim > 3 else None  # tokens may be what it mixes
    if type(module) in (nn.LayerNorm, nn.RMSNorm):
        return "last"
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        parts = [part for part in module if not isinstance(part, _ELEMENTWISE)]
        return channel_axis(parts[-1], output) if parts else None
    weight = getattr(module, "weight", None)
    if "Norm" not in type(module).__name__ or not isinstance(weight, Tensor) or weight.ndim != 1:
        return None
    # Other libraries' own, of which some work on (N, C, *grid): the axis that is as long as the weight.
    first, last = output.shape[1] == len(weight), output.shape[-1] == len(weight)
    if first and type(module).__name__.endswith(("1d", "2d", "3d")):
        return "first"
    return None if first == last else "first" if first else "last"


_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish),
    *(nn.Identity, nn.modules.dropout._DropoutNd),
)


CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


def grid_of(module: nn.Module, output: Any) -> Grid | None:
    """The grid of what a convolution, or the like, returns, whatever it has in the place of the samples."""
    if not isinstance(module, CHANNELS_FIRST) or not isinstance(output, Tensor) or output.ndim < 3:
        return None
    grid = tuple(output.shape[2:])
    return grid if math.prod(grid) > 1 and (len(grid) == 1 or min(grid) > 1) else None

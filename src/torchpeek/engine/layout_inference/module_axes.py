"""Infer a module's channel axis from its type."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from torchpeek.engine.layout import Grid
from torchpeek.hooks import CHANNELS_FIRST, CHANNELS_LAST_NORMS, ChannelAxis

# Their output has the layout of their input.
_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish),
    *(nn.Identity, nn.modules.dropout._DropoutNd),
)


def channel_axis(module: nn.Module, output: Tensor) -> ChannelAxis | None:
    """Infer the channel axis of a module's output from the module's type; None where the type does not decide it.

    What a module with children does with their outputs cannot be read from its type. Sequential is the exception: its
    output is that of its last child.
    """
    if isinstance(module, CHANNELS_FIRST):
        return "first"
    if type(module) is nn.Linear:
        return "last" if output.ndim > 3 else None  # three axes may be (N, C, T), whose tokens it mixes
    if type(module) in CHANNELS_LAST_NORMS:
        return "last"
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        children = [child for child in module if not isinstance(child, _ELEMENTWISE)]
        return channel_axis(children[-1], output) if children else None
    weight = getattr(module, "weight", None)
    if "Norm" not in type(module).__name__ or not isinstance(weight, Tensor) or weight.ndim != 1:
        return None
    # A normalisation of another library, which may be over axis 1 or the last: the axis as long as the weight.
    first, last = output.shape[1] == len(weight), output.shape[-1] == len(weight)
    if first and type(module).__name__.endswith(("1d", "2d", "3d")):
        return "first"
    return None if first == last else "first" if first else "last"


def grid_of(module: nn.Module, output: Any) -> Grid | None:
    """The grid of the output of a convolution or another channels-first module, whatever axis 0 holds."""
    if not isinstance(module, CHANNELS_FIRST) or not isinstance(output, Tensor) or output.ndim < 3:
        return None
    grid = tuple(output.shape[2:])
    return grid if math.prod(grid) > 1 and (len(grid) == 1 or min(grid) > 1) else None

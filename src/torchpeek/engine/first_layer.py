"""FirstLayer: the first layer with weights that a model calls, and what it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.attempts import NEVER_REFUSALS
from torchpeek.hooks import attached, containers, takes_hooks
from torchpeek.signal_gate import is_of_handler

CONVOLUTION = nn.modules.conv._ConvNd
_STRICT = (CONVOLUTION, nn.Linear, nn.Embedding)
_NORMS = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}
_GRID_AXES = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


class _Reached(BaseException):
    """Ends a pass at the first layer with weights. It is not an Exception, so that no network catches it."""


@dataclass(frozen=True)
class FirstLayer:
    """The first layer with weights that a pass called, and the tensor that it was called with.

    Args:
        name: The layer's name.
        module: The layer.
        shape: The shape of the tensor.
        dtype: The type of its numbers.
        device: Its device.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def weight(self) -> Tensor | None:
        """The layer's first floating-point parameter."""
        return next((each for each in self.module.parameters() if each.is_floating_point()), None)

    @property
    def grid_ndim(self) -> int:
        """How many axes the grid of a convolution or a normalisation of channels has; 0 for other layers."""
        if isinstance(self.module, CONVOLUTION):
            return len(self.module.kernel_size)
        return next((axes for norm, axes in _NORMS.items() if isinstance(self.module, norm)), 0)

    @property
    def channels(self) -> int:
        """How many channels such a layer takes."""
        count: int = getattr(self.module, "in_channels" if isinstance(self.module, CONVOLUTION) else "num_features")
        return count

    @property
    def is_strict(self) -> bool:
        """Whether it is of a type that takes its own number of channels and its own type of numbers only."""
        return isinstance(self.module, _STRICT)

    @property
    def refuses_shape(self) -> bool:
        """Whether it is a linear layer or a convolution that takes no tensor of this shape."""
        if isinstance(self.module, nn.Linear):
            return self.shape[-1] != self.module.in_features
        return self.grid_ndim > 0 and len(self.shape) not in (self.grid_ndim + 1, self.grid_ndim + 2)

    @property
    def in_words(self) -> str:
        """The layer and what it takes: 'conv1' (Conv2d), takes (N, 3, H, W) of torch.float32 on cpu."""
        weight, module = self.weight, self.module
        if isinstance(module, nn.Embedding):
            return f"{self.name!r} (Embedding), takes indices, torch.int64"
        takes = "numbers"
        if self.grid_ndim:
            takes = "(" + ", ".join(("N", str(self.channels), *_GRID_AXES[self.grid_ndim])) + ")"
        elif isinstance(module, nn.Linear):
            takes = f"(..., {module.in_features})"
        typed = "" if weight is None else f" of {weight.dtype} on {weight.device}"
        return f"{self.name!r} ({type(module).__name__}), takes {takes}{typed}"


def first_layer(model: nn.Module, run: Callable[[], object]) -> FirstLayer | None:
    """The first layer with weights that `run` calls in the model. The pass ends there. None where it calls none."""
    found: list[FirstLayer] = []

    def before(name: str, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        for _, tensor in containers.leaves((args, kwargs)):
            found.append(FirstLayer(name, module, tuple(tensor.shape), tensor.dtype, tensor.device))
            raise _Reached

    hooks = [(module, partial(before, name)) for name, module in model.named_modules() if _has_weights(module)]
    try:
        with attached(called=hooks):
            run()
    except _Reached:
        pass
    except NEVER_REFUSALS:
        raise
    except Exception as error:  # before any layer with weights: the caller raises it, or makes the pass that does
        if is_of_handler(error):
            raise
        return None
    return found[0] if found else None


def _has_weights(module: nn.Module) -> bool:
    if not takes_hooks(module):
        return False
    if isinstance(module, _STRICT):
        return True
    return bool(module._parameters) and not module._modules

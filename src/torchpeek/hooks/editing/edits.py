"""Ready-made changes for edit(): `edit(model, outputs={"layer3": tp.edits.zero(channels=[3, 7])})`.

Each is a function of a tensor that returns a new one; `at` applies it to one tensor in a container.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchpeek.errors import InputError
from torchpeek.hooks import containers
from torchpeek.hooks.recording.call import Call, Calls, Part

Change: TypeAlias = Callable[[Tensor], Tensor]


def scale(factor: float, *, channels: Sequence[int] | None = None, axis: int = 1) -> Change:
    """Multiply these channels, or all, by `factor`. Channels are along `axis`: (N, C, ...), or -1 for tokens."""

    def change(tensor: Tensor) -> Tensor:
        mask = _channel_mask(tensor, channels, axis)
        # Where, not a product with a mask: zero times infinity would be NaN.
        return torch.where(mask, tensor * factor if factor else tensor.new_zeros(()), tensor)

    return change


def zero(*, channels: Sequence[int] | None = None, axis: int = 1) -> Change:
    """Set these channels, or all, to zero, whatever they are."""
    return scale(0.0, channels=channels, axis=axis)


def patch(
    source: Call | Calls | Part | Tensor,
    *,
    channels: Sequence[int] | None = None,
    axis: int = 1,
    where: Tensor | None = None,
) -> Change:
    """Put in what another pass had here: the output of a recorded call, or a tensor that fits the layer's.

    In all of it, or only in these channels, or only `where` a mask that broadcasts to it is true.
    """
    value = source if isinstance(source, Tensor) else source.output
    if not isinstance(value, Tensor):
        raise InputError(f"the call returned a {type(value).__name__}; patch one tensor of it: call.at(path), edits.at")

    def change(tensor: Tensor) -> Tensor:
        try:
            replacement = value.to(tensor).expand(tensor.shape)
        except RuntimeError:
            raise InputError(
                f"a patch of shape {tuple(value.shape)} does not fit an output of {tuple(tensor.shape)}"
            ) from None
        mask = _channel_mask(tensor, channels, axis)
        if where is not None:
            mask = mask & where.to(tensor.device).bool()
        return torch.where(mask, replacement, tensor)

    return change


def at(path: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Apply `change` to what is at `path` in a container, and leave the rest: `at("0.k", zero())`."""
    return lambda container: containers.with_part(container, path, change(containers.at(container, path)))


def _channel_mask(tensor: Tensor, channels: Sequence[int] | None, axis: int) -> Tensor:
    """A mask that broadcasts to the tensor."""
    if not isinstance(tensor, Tensor):
        raise InputError(
            f"the layer returned a {type(tensor).__name__}; say which tensor of it is meant: tp.edits.at('0', ...)"
        )
    if channels is None:
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    if not -tensor.ndim <= axis < tensor.ndim:
        raise InputError(f"axis is {axis}, but the layer returned shape {tuple(tensor.shape)}")
    size = tensor.shape[axis]
    wrong = [channel for channel in channels if not -size <= channel < size]
    if wrong:
        raise InputError(f"channels {wrong} of a layer that has {size}, 0 to {size - 1}, on axis {axis}")
    mask = torch.zeros(size, dtype=torch.bool, device=tensor.device)
    mask[list(channels)] = True
    return mask.view([-1 if each == axis % tensor.ndim else 1 for each in range(tensor.ndim)])

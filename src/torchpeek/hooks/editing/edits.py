"""Ready-made changes for edit(): `edit(model, outputs={"layer3": tp.edits.zero(channels=[3, 7])})`.

Each is a function of a tensor that returns a new one. `at` applies it to one tensor in a container.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchpeek.errors import InputError, listed_names
from torchpeek.hooks import containers
from torchpeek.hooks.editing.changed_value import tensor_paths
from torchpeek.hooks.recording.call import Call, Calls, Part

__all__ = ["at", "patch", "scale", "zero"]

Change: TypeAlias = Callable[[Tensor], Tensor]


def scale(factor: float, *, channels: Sequence[int] | None = None, axis: int = 1) -> Change:
    """Multiply channels by a factor.

    Args:
        factor: The factor. 0 gives zeros, also where the values are infinite or NaN.
        channels: The channel indices; None for all channels.
        axis: The axis of the channels: 1 for (N, C, ...), -1 for tokens (N, T, C).

    Returns:
        A function from a tensor to a new tensor of the same shape.

    Raises:
        InputError: When the tensor does not have the axis or a channel. It is raised by the function.

    Example:
        >>> model = nn.Sequential(nn.Identity())
        >>> with tp.edit(model, outputs={"0": tp.edits.scale(10.0, channels=[1])}):
        ...     model(torch.ones(1, 3))
        tensor([[ 1., 10.,  1.]])
    """

    def change(tensor: Tensor) -> Tensor:
        mask = _channel_mask(tensor, channels, axis)
        # torch.where, not a product with a mask: zero times infinity is NaN.
        return torch.where(mask, tensor * factor if factor else tensor.new_zeros(()), tensor)

    return change


def zero(*, channels: Sequence[int] | None = None, axis: int = 1) -> Change:
    """Set channels to zero, also where the values are infinite or NaN.

    Args:
        channels: The channel indices; None for all channels.
        axis: The axis of the channels: 1 for (N, C, ...), -1 for tokens (N, T, C).

    Returns:
        A function from a tensor to a new tensor of the same shape.

    Raises:
        InputError: When the tensor does not have the axis or a channel. It is raised by the function.

    Example:
        >>> model = nn.Sequential(nn.Identity())
        >>> with tp.edit(model, outputs={"0": tp.edits.zero(channels=[0, 2])}):
        ...     model(torch.ones(1, 3))
        tensor([[0., 1., 0.]])
    """
    return scale(0.0, channels=channels, axis=axis)


def patch(
    source: Call | Calls | Part | Tensor,
    *,
    channels: Sequence[int] | None = None,
    axis: int = 1,
    where: Tensor | None = None,
) -> Change:
    """Replace activations by those of another pass (activation patching).

    Args:
        source: A recorded call, whose output is used, or a tensor. Its shape must broadcast to that of the layer's
            output.
        channels: The channel indices to replace; None for all channels.
        axis: The axis of the channels: 1 for (N, C, ...), -1 for tokens (N, T, C).
        where: A mask that broadcasts to the output; only where it is true are values replaced.

    Returns:
        A function from a tensor to a new tensor of the same shape.

    Raises:
        InputError: When the output of the call is not one tensor. Also when the patch does not fit the layer's output,
            or the output does not have the axis or a channel; this is raised by the function.

    Example:
        >>> model = nn.Sequential(nn.Identity())
        >>> with tp.record(model, "0") as tape:
        ...     output = model(torch.zeros(1, 3))
        >>> tp.edits.patch(tape["0"], channels=[1])(torch.ones(1, 3))
        tensor([[1., 0., 1.]])
    """
    value = source if isinstance(source, Tensor) else source.output
    if not isinstance(value, Tensor):
        paths = tensor_paths(value)
        raise InputError(
            f"the recorded call returned a {type(value).__name__}, and a patch is one tensor{_tensors_at(paths)}"
            + (f". Next: tp.edits.at({paths[0]!r}, tp.edits.patch(call.at({paths[0]!r})))" if paths else "")
        )

    def change(tensor: Tensor) -> Tensor:
        _check_tensor(tensor)
        try:
            replacement = value.to(tensor).expand(tensor.shape)
        except RuntimeError:
            raise InputError(
                f"a patch of shape {tuple(value.shape)} does not fit an output of {tuple(tensor.shape)}; allowed: a "
                "shape that broadcasts to it"
            ) from None
        mask = _channel_mask(tensor, channels, axis)
        if where is not None:
            mask = mask & where.to(tensor.device).bool()
        return torch.where(mask, replacement, tensor)

    return change


def at(path: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Apply a change to one member of a container, and leave the other members as they are.

    Args:
        path: The path of the member: `"0.k"` is entry k of the first member.
        change: A function of the member that returns the new member.

    Returns:
        A function from a container to a new container of the same type.

    Raises:
        InputError: When there is nothing at the path. It is raised by the function.

    Example:
        >>> change = tp.edits.at("0", tp.edits.zero())
        >>> change((torch.ones(2), torch.ones(1)))
        (tensor([0., 0.]), tensor([1.]))
    """
    return lambda container: containers.with_part(container, path, change(containers.at(container, path)))


def _check_tensor(value: object) -> None:
    if not isinstance(value, Tensor):
        paths = tensor_paths(value)
        next_step = f"choose which tensor to change: tp.edits.at({paths[0]!r}, ...)" if paths else "write a function"
        raise InputError(
            f"the edit changes a tensor and got a {type(value).__name__}{_tensors_at(paths)}. Next: {next_step}"
        )


def _tensors_at(paths: list[str]) -> str:
    return f"; its tensors are at {listed_names(paths)}" if paths else "; no path leads to a tensor in it"


def _channel_mask(tensor: Tensor, channels: Sequence[int] | None, axis: int) -> Tensor:
    """A mask of these channels that broadcasts to the tensor."""
    _check_tensor(tensor)
    if channels is None:
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    if not -tensor.ndim <= axis < tensor.ndim:
        raise InputError(
            f"axis is {axis}, but the layer returned shape {tuple(tensor.shape)}; allowed: {-tensor.ndim} to "
            f"{tensor.ndim - 1}"
        )
    size = tensor.shape[axis]
    wrong = [channel for channel in channels if not -size <= channel < size]
    if wrong:
        raise InputError(f"channels are {wrong}, but the layer has {size} on axis {axis}; allowed: 0 to {size - 1}")
    mask = torch.zeros(size, dtype=torch.bool, device=tensor.device)
    mask[list(channels)] = True
    return mask.view([-1 if each == axis % tensor.ndim else 1 for each in range(tensor.ndim)])

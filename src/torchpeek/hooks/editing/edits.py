"""Ready-made changes for edit(): `edit(model, outputs={"layer3": tp.edits.zero(channels=[3, 7])})`.

Each is a function of a tensor that returns a new one of the same format: a quantised tensor is quantised again with
the same scales, a sparse one is sparse again, and the parts of a nested one are changed one by one. `at` applies a
change to one tensor in a container.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchpeek.errors import InputError, listed_names, shown, type_shown
from torchpeek.hooks import containers
from torchpeek.hooks.editing.changed_value import tensor_paths
from torchpeek.hooks.recording.call import Call
from torchpeek.hooks.recording.calls import Calls
from torchpeek.hooks.recording.part import Part
from torchpeek.keywords import checked_keywords
from torchpeek.tensor_formats import has_values, shape_sizes, shape_text, with_values

__all__ = ["at", "patch", "scale", "zero"]

Change: TypeAlias = Callable[[Tensor], Tensor]


@checked_keywords
def scale(factor: float, *, channels: Sequence[int] | None = None, axis: int = 1) -> Change:
    """Multiply channels by a factor.

    Args:
        factor: The factor. 0 gives zeros, also where the values are infinite or NaN. With another factor, integers
            become floating-point numbers.
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

    def scaled(values: Tensor) -> Tensor:
        mask = _channel_mask(values, channels, axis)
        # torch.where, not a product with a mask: zero times infinity is NaN.
        return torch.where(mask, values * factor if factor else values.new_zeros(()), values)

    def change(tensor: Tensor) -> Tensor:
        _check_tensor(tensor)
        if channels is not None:
            _check_axis(tensor, channels, axis)
        return with_values(tensor, scaled)

    return change


@checked_keywords
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


@checked_keywords
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
    if not isinstance(source, Tensor) and not hasattr(source, "output"):
        raise InputError(f"source is {shown(source)}; allowed: a recorded call, such as tape['layer'], or a tensor")
    value = source if isinstance(source, Tensor) else source.output
    if not isinstance(value, Tensor):
        paths = tensor_paths(value)
        raise InputError(
            f"the recorded call returned {type_shown(value)}, and a patch is one tensor{_tensors_at(paths)}"
            + (f". Next: tp.edits.at({paths[0]!r}, tp.edits.patch(call.at({paths[0]!r})))" if paths else "")
        )

    def patched(values: Tensor, patch: Tensor, where: Tensor | None) -> Tensor:
        try:
            replacement = patch.to(values).expand(values.shape)
        except RuntimeError:
            raise InputError(
                f"a patch of shape {tuple(patch.shape)} does not fit an output of {tuple(values.shape)}; allowed: a "
                "shape that broadcasts to it"
            ) from None
        mask = _channel_mask(values, channels, axis)
        if where is not None:
            mask = mask & where.to(values.device).bool()
        return torch.where(mask, replacement, values)

    def change(tensor: Tensor) -> Tensor:
        _check_tensor(tensor)
        if channels is not None:
            _check_axis(tensor, channels, axis)
        if value.is_nested and not tensor.is_nested:
            raise InputError(
                f"a patch of shape {shape_text(value)} does not fit an output of {shape_text(tensor)}; allowed: a "
                "dense tensor. Next: torch.nested.to_padded_tensor(patch, 0.0)"
            )
        return with_values(tensor, patched, value, where)

    return change


@checked_keywords
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
            f"the edit changes a tensor and got {type_shown(value)}{_tensors_at(paths)}. Next: {next_step}"
        )


def _tensors_at(paths: list[str]) -> str:
    return f"; its tensors are at {listed_names(paths)}" if paths else "; no path leads to a tensor in it"


def _check_axis(tensor: Tensor, channels: Sequence[int], axis: int) -> None:
    """Raise InputError where the tensor does not have these channels."""
    lengths = shape_sizes(tensor)
    if not -len(lengths) <= axis < len(lengths):
        raise InputError(
            f"axis is {axis}, but the layer returned shape {shape_text(tensor)}; allowed: {-len(lengths)} to "
            f"{len(lengths) - 1}"
        )
    size = lengths[axis]
    if not isinstance(size, int) or (tensor.is_nested and axis % len(lengths) == 0):
        fixed = [place for place, length in enumerate(lengths) if place and isinstance(length, int)]
        raise InputError(
            f"axis is {axis}, but the layer returned a nested tensor of shape {shape_text(tensor)}; allowed for its "
            f"channels: the axes of one length, {', '.join(map(str, fixed)) or 'of which it has none'}"
        )
    wrong = [channel for channel in channels if not -size <= channel < size]
    if wrong:
        raise InputError(f"channels are {wrong}, but the layer has {size} on axis {axis}; allowed: 0 to {size - 1}")


def _channel_mask(tensor: Tensor, channels: Sequence[int] | None, axis: int) -> Tensor:
    """A mask of these channels that broadcasts to the tensor."""
    if channels is None:
        return tensor.new_ones((), dtype=torch.bool)
    size = tensor.shape[axis]
    mask = tensor.new_zeros(size, dtype=torch.bool)
    if has_values(tensor):
        mask[list(channels)] = True
    else:  # indices are a tensor with values, which a fake one does not take
        for channel in channels:
            mask[channel] = True
    return mask.view([-1 if each == axis % tensor.ndim else 1 for each in range(tensor.ndim)])

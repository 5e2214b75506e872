"""Operations that methods share. Tensors are (N, K, C, *grid), with K = 1 where they do not depend on the score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Annotated, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from torchpeek.engine import Trace
from torchpeek.engine.numerics import at_least_float32
from torchpeek.errors import MethodNotApplicable, OptionError, notify
from torchpeek.heatmap import upsample

# Up to this size all eigenvectors of a symmetric matrix are computed; for a larger one only the first.
_WHOLE = 512


def grid_mean(tensor: Tensor) -> Tensor:
    """Return the mean over the positions, (N, K, C, *grid) -> (N, K, C, *1)."""
    return tensor.mean(dim=grid_axes(tensor), keepdim=True)


def grid_sum(tensor: Tensor) -> Tensor:
    """Return the sum over the positions, (N, K, C, *grid) -> (N, K, C, *1)."""
    return tensor.sum(dim=grid_axes(tensor), keepdim=True)


def weighted_sum(weights: Tensor, activations: Tensor) -> Tensor:
    """Return the weighted sum over the channels: (N, K, C, *1 or *grid), (N, 1, C, *grid) -> (N, K, *grid)."""
    if weights.shape[3:].numel() == 1:
        # As a matrix product: the (N, K, C, *grid) product is never made.
        summed = weights.flatten(2) @ activations.flatten(3).squeeze(1)  # (N, K, positions)
        return summed.reshape(*summed.shape[:2], *activations.shape[3:])
    return (weights * activations).sum(dim=2)


def first_component(tensor: Tensor, towards: Tensor) -> Tensor:
    """Return each position's coordinate along the first right singular vector, (N, K, C, *grid) -> (N, K, *grid).

    The singular value decomposition is that of the (positions, C) matrix, not centred. It is computed from the smaller
    of the two Gram matrices. A singular vector's sign is arbitrary: here it is chosen so that the inner product of the
    map with `towards` (N, K or 1, *grid) is not negative.
    """
    rows = tensor.flatten(3)  # (N, K, C, positions)
    channels, positions = rows.shape[2:]
    if positions <= channels:
        value, vector = first_eigenpair(rows.mT @ rows)  # of (positions, positions)
        component = vector * value.clamp(min=0).sqrt()  # (N, K, positions): u1 times s1
    else:
        _, vector = first_eigenpair(rows @ rows.mT)  # of (C, C)
        component = (vector.unsqueeze(-2) @ rows).squeeze(-2)  # v1 applied
    return agreeing(component, towards.flatten(2)).reshape(*tensor.shape[:2], *tensor.shape[3:])


def agreeing(component: Tensor, towards: Tensor) -> Tensor:
    """Return each map (N, K, positions), negated if its inner product with `towards` is negative."""
    agreement = (component * towards).sum(dim=-1, keepdim=True)
    return torch.where(agreement < 0, -component, component)


def first_eigenpair(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalue and its unit eigenvector: (..., n, n) -> (..., 1) and (..., n).

    The matrices are symmetric, and no eigenvalue is below minus the largest. Large matrices are solved by subspace
    iteration, up to a residual of rounding size. If the first eigenvalues are too close together for that, all
    eigenvectors are computed.
    """
    size = matrices.shape[-1]
    if size > _WHOLE:
        value, vector = _by_iteration(matrices)
        off = (matrices @ vector.unsqueeze(-1)).squeeze(-1) - value * vector
        if bool((off.norm(dim=-1, keepdim=True) <= 32 * size**0.5 * _eps(matrices) * value.abs()).all()):
            return value, vector
    values, vectors = torch.linalg.eigh(matrices)  # ascending
    return values[..., -1:], vectors[..., -1]


def _by_iteration(matrices: Tensor, *, width: int = 8, most: int = 200) -> tuple[Tensor, Tensor]:
    """Return the largest Ritz pair of a subspace that is multiplied by the matrix repeatedly."""
    generator = torch.Generator().manual_seed(0)  # a fixed start: the same map every time
    start = torch.randn(matrices.shape[-1], width, generator=generator, dtype=torch.float64)
    basis = start.to(matrices).expand(*matrices.shape[:-2], -1, -1)
    basis = torch.linalg.qr(basis).Q
    last = None
    for _ in range(most):
        product = matrices @ basis  # (..., n, width)
        values, turns = torch.linalg.eigh(basis.mT @ product)  # Rayleigh and Ritz
        value = values[..., -1:]
        vector = (basis @ turns[..., -1:]).squeeze(-1)
        off = ((product @ turns[..., -1:]).squeeze(-1) - value * vector).norm(dim=-1, keepdim=True)
        worst = float((off / value.abs().clamp(min=torch.finfo(value.dtype).tiny)).max())
        if worst <= 4 * _eps(matrices) or (last is not None and worst > 0.999 * last and worst < 1e-5):
            break
        last = worst
        basis = torch.linalg.qr(product).Q
    return value, vector


def _eps(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps


def live_channels(activations: Tensor) -> Tensor:
    """Return whether each channel is not constant over the grid, (N, 1, C, *grid) -> (N, C)."""
    flat = activations.flatten(3).squeeze(1)
    return flat.amax(2) != flat.amin(2)


def spread(values: Tensor) -> Tensor:
    """Scale each map (b, *grid) linearly to [0, 1]. A constant map becomes zero."""
    flat = values.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return torch.where(high > low, (flat - low) / torch.where(high > low, high - low, 1), 0).view_as(values)


def quantile(values: Tensor, share: float) -> Tensor:
    """Return the quantile over the last axis, (..., n) -> (..., 1), interpolated linearly.

    It is torch.quantile without its limit of 16 million numbers.
    """
    ordered = values.sort(dim=-1).values
    place = share * (values.shape[-1] - 1)
    below = min(int(place), values.shape[-1] - 1)
    above = min(below + 1, values.shape[-1] - 1)
    return torch.lerp(ordered[..., below : below + 1], ordered[..., above : above + 1], place - below)


def area_average(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return the mean over the area of each position of a coarser grid, (N, K, *grid) -> (N, K, *size)."""
    pooled = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[maps.ndim - 3]
    return pooled(maps, tuple(size))  # type: ignore[arg-type]  # one size for each axis


def resized(values: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate (b, *grid) to (b, 1, *size), ready to multiply with inputs (b, C, *size)."""
    if len(size) != values.ndim - 1:
        grid, shape = " x ".join(map(str, values.shape[1:])), " x ".join(map(str, size))
        raise MethodNotApplicable(
            f"the layer's grid, {grid}, cannot mask inputs (N, C, {shape}): their numbers of axes differ. Next: "
            "if the model adds the channel axis itself, wrap it so that it takes (N, 1, *grid); else choose a method "
            "that does not mask (torchpeek methods)"
        )
    return upsample(values.unsqueeze(1), size)


def share_of_live(scores: Tensor, live: Tensor, axes: int) -> Tensor:
    """Return the softmax over the live channels (N, C), 0 for the others: (N, C, K) -> (N, K, C, *1)."""
    known = torch.where(live.unsqueeze(2), scores, -torch.inf)
    share = torch.where(live.unsqueeze(2), known.softmax(dim=1), 0)  # NaN where none is live
    return per_channel(share, axes)


def per_channel(weights: Tensor, axes: int) -> Tensor:
    """Reshape (N, C, K) to (N, K, C, *1), with `axes` axes for the grid."""
    return weights.mT.reshape(*weights.mT.shape, *(1 for _ in range(axes)))


def gaussian_blur(inputs: Tensor, kernel: int, sigma: float) -> Tensor:
    """Blur inputs (N, C, *size) along each axis of the size with `kernel` taps, reflected at the borders.

    If an axis is too short to reflect half the kernel, fewer taps are used. The taps add up to 1.
    """
    for axis in range(2, inputs.ndim):
        radius = min(kernel // 2, inputs.shape[axis] - 1)
        offsets = torch.arange(-radius, radius + 1, device=inputs.device, dtype=inputs.dtype)
        taps = torch.exp(-(offsets**2) / (2 * sigma**2))
        moved = inputs.movedim(axis, -1)
        rows = moved.reshape(1, -1, moved.shape[-1])  # (1, everything else, size)
        padded = F.pad(rows, (radius, radius), mode="reflect") if radius else rows
        blurred = F.conv1d(padded.transpose(0, 1), (taps / taps.sum()).view(1, 1, -1)).transpose(0, 1)
        inputs = blurred.reshape(moved.shape).movedim(-1, axis)
    return inputs


def noise(seed: int, samples: int, shape: Sequence[int], like: Tensor) -> Callable[[int], Tensor]:
    """Return `draw(i)`, which gives the i-th of `samples` standard normal tensors, the same on every device."""
    seeds = torch.randint(2**62, (samples,), generator=torch.Generator().manual_seed(seed)).tolist()

    def draw(index: int) -> Tensor:
        generator = torch.Generator().manual_seed(seeds[index])
        return torch.randn(tuple(shape), generator=generator, dtype=like.dtype).to(like.device)

    return draw


def grid_axes(tensor: Tensor) -> tuple[int, ...]:
    """Return the axes of the grid in (N, K, C, *grid)."""
    return tuple(range(3, tensor.ndim))


def along_samples(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (b,) to (b, 1, ...), with as many axes as `like`."""
    return values.view(-1, *(1 for _ in like.shape[1:]))


def floating_inputs(trace: Trace, method: str) -> Tensor:
    """Return the inputs (N, C, *grid) as float32 at least. Raises MethodNotApplicable for other inputs.

    The second axis is read as the channels. A notice says so if the first convolution takes more axes than the inputs
    have: then the model may add the axis of the channels itself. Where another axis has the channels of that
    convolution, such as in videos (N, frames, C, H, W), the error says how to move it.
    """
    inputs = trace.inputs
    if inputs.ndim < 3 or not inputs.is_floating_point():
        raise MethodNotApplicable(
            f"{method} needs floating-point inputs (N, C, *grid); got {inputs.dtype} of shape {tuple(inputs.shape)}. "
            "Next: if the model adds the channel axis itself, wrap it so that it takes (N, 1, *grid)"
        )
    convolutions = (each for each in trace.forward_pass.model.modules() if isinstance(each, _ConvNd))
    first = next(convolutions, None)
    if first is not None and trace.view is None:
        _check_channel_axis(inputs, first, method, known=trace.forward_pass.call.axis_order is not None)
    if first is not None and inputs.shape[1] > 1 and len(first.kernel_size) + 2 > inputs.ndim:
        channels, *grid = inputs.shape[1:]
        notify(
            f"{method}: the inputs are read as {channels} channels on a grid of {' x '.join(map(str, grid))}. If the "
            "model adds the axis of channels itself, wrap it so that it takes (N, 1, *grid)"
        )
    return at_least_float32(inputs)


def _check_channel_axis(inputs: Tensor, convolution: _ConvNd, method: str, *, known: bool) -> None:
    """Raise MethodNotApplicable where the channels that the convolution takes are on another axis than 1."""
    count, shape = convolution.in_channels, tuple(inputs.shape)
    before = range(2, inputs.ndim - len(convolution.kernel_size))  # axes before the grid of the convolution
    axes = [axis for axis in (*before, inputs.ndim - 1) if shape[axis] == count]
    if not axes or known:
        return
    if shape[1] != count:
        raise MethodNotApplicable(
            f"{method} reads axis 1 of the inputs as the channels; in {shape} the {count} channels that the first "
            f"convolution takes are on axis {axes[0]}. Next: give x.movedim({axes[0]}, 1) to a module whose forward "
            f"returns model(x.movedim(1, {axes[0]}))"
        )
    if before and axes[0] in before:
        notify(
            f"{method}: axis 1 of the inputs {shape} is read as the channels. If they are on axis {axes[0]}, give "
            f"x.movedim({axes[0]}, 1) to a module whose forward returns model(x.movedim(1, {axes[0]}))"
        )


class _NumberOrTensor:
    """What a filling may be, as an option. `filled` says more of a tensor that does not fit."""

    allowed = "a finite number or a tensor"

    def take(self, value: Any) -> Any:
        """The filling, also a NumPy array. Raises ValueError for what is none."""
        if isinstance(value, Tensor) or hasattr(value, "__array__"):
            return value
        if isinstance(value, bool) or not -math.inf < float(value) < math.inf:
            raise ValueError
        return value


Filling: TypeAlias = Annotated[float | Tensor, _NumberOrTensor()]
"""A number, or a tensor or an array (*grid), (C, *grid) or (N, C, *grid) with 1 in place of any length."""


def filled(name: str, value: object, inputs: Tensor) -> Tensor:
    """Return an option's value, a number or a tensor, at the size of the inputs (N, C, *grid). Raises OptionError."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return expanded(torch.tensor(float(value), dtype=torch.float64), inputs, f"option {name} is {value}")
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        tensor = as_tensor(name, value)
        return expanded(tensor, inputs, f"option {name} is a tensor {tuple(tensor.shape)} of {tensor.dtype}")
    raise OptionError(f"option {name} is {value!r}; allowed: a number or a tensor")


def as_tensor(name: str, array: Any) -> Tensor:
    """Return a tensor, or what NumPy takes for an array, as a tensor. Raises OptionError for what is none."""
    try:
        return torch.as_tensor(array)
    except (TypeError, ValueError) as error:
        raise OptionError(f"option {name} is {array!r}, which is no tensor: {error}; give real numbers") from error


def expanded(tensor: Tensor, inputs: Tensor, got: str) -> Tensor:
    """Expand a tensor to the inputs. It needs all axes of the grid, so that no channel is taken for a column.

    Args:
        tensor: Real numbers of shape (*grid), (C, *grid) or (N, C, *grid), with 1 in place of any length, or a single
            number.
        inputs: (N, C, *grid).
        got: What the user gave, for the error text.

    Raises:
        OptionError: When the tensor has another shape, or has NaN or infinity.
    """
    size = tuple(inputs.shape)
    shapes = size, size[1:], size[2:], ()
    fits = any(
        len(tensor.shape) == len(shape) and all(a in (1, b) for a, b in zip(tensor.shape, shape, strict=True))
        for shape in shapes
    )
    plain = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)
    if not (fits and plain) or tensor.is_complex() or tensor.dtype == torch.bool:
        raise OptionError(
            f"{got}; allowed: real numbers of shape {size[2:]}, {size[1:]} or {size}, or with 1 in place of any of "
            f"these lengths: one number for each channel is {(size[1], *(1 for _ in size[2:]))}"
        )
    values = tensor.detach().to(inputs)
    if not bool(values.isfinite().all()):
        raise OptionError(f"{got}, with NaN or infinity as {inputs.dtype}; give finite numbers")
    return values.expand_as(inputs)

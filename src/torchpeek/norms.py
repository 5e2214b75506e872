"""Norms of tensors that neither overflow nor underflow: right for every magnitude that the dtype can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchpeek.tensor_formats import dense, has_values, is_plain

# Where the root mean square is above this, values whose squares underflow in float32 do not matter.
_LEAST_SAFE_RMS = 1e-15


class Magnitude(NamedTuple):
    """The size of a tensor.

    Args:
        norm: Its Euclidean norm.
        mean_abs: The mean absolute value; 0 for a tensor without values.
        max_abs: The largest absolute value; 0 for a tensor without values, and only then or if all values are zero.
    """

    norm: float
    mean_abs: float
    max_abs: float


def magnitude(tensor: Tensor) -> Magnitude:
    """Return the Euclidean norm, the mean and the largest absolute value of a tensor.

    The values are scaled by a power of two before they are squared, so that the largest is near 1.

    Args:
        tensor: A tensor of any shape, dtype and layout, also complex or sparse.

    Returns:
        Magnitude: NaN where the tensor has NaN, infinity where it has infinity. A sum that float64 cannot hold is
        infinity, too.
    """
    scaled, exponent = scaled_to_one(_real_values(tensor))
    if not scaled.numel():
        return Magnitude(0.0, 0.0, 0.0)
    sizes = scaled.abs() if not tensor.is_complex() else torch.hypot(*scaled.unbind(-1))
    wide = sizes if sizes.device.type == "mps" else sizes.double()  # MPS has no float64
    numbers = torch.stack([torch.linalg.vector_norm(wide), wide.mean(), wide.amax()]).tolist()
    return Magnitude(*(times_power_of_two(number, exponent) for number in numbers))


def norm(tensor: Tensor) -> float:
    """Return the Euclidean norm of a tensor, as `magnitude` does."""
    return magnitude(tensor).norm


def mean_and_std(values: Tensor) -> tuple[float, float]:
    """Return the mean and the standard deviation (of the population) of all values.

    Args:
        values: Real values of a floating-point dtype, any shape.

    Returns:
        Both numbers: NaN where there is NaN or infinity, or no value. Equal values have exactly their mean, and 0.
    """
    if not values.numel():
        return math.nan, math.nan
    scaled, exponent = scaled_to_one(values.detach())
    low, high = torch.aminmax(scaled)
    if low == high and low.isfinite():  # a sum would be rounded, and so would differ from the values
        return times_power_of_two(float(low), exponent), 0.0
    wide = scaled if scaled.device.type == "mps" else scaled.double()  # MPS has no float64
    numbers = (float(wide.mean()), float(wide.std(correction=0)))
    return times_power_of_two(numbers[0], exponent), times_power_of_two(numbers[1], exponent)


def norms(tensors: Sequence[Tensor]) -> list[float]:
    """Return the Euclidean norms of many tensors, with one transfer from each device.

    The sums are in float32, with a relative error of about 1e-4 for ten million values. Only the tensors for which
    that overflows or underflows are read again, scaled.

    Args:
        tensors: Tensors of any shape, dtype and layout.
    """
    found: list[float | None] = [None] * len(tensors)
    fast: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in enumerate(tensors):
        if is_plain(tensor) and tensor.is_floating_point() and tensor.numel():
            fast.setdefault((tensor.device, tensor.dtype), []).append(place)
    for (_, dtype), places in fast.items():
        wide = dtype if dtype == torch.float64 else torch.float32
        group = [tensors[place].detach() for place in places]
        for place, value in zip(places, torch.stack(torch._foreach_norm(group, 2, wide)).tolist(), strict=True):
            # Infinity may be an overflow. NaN is exact: no sum of squares of numbers gives it.
            if math.isnan(value) or (
                math.isfinite(value) and value > _LEAST_SAFE_RMS * math.sqrt(tensors[place].numel())
            ):
                found[place] = value
    return [norm(tensor) if value is None else value for tensor, value in zip(tensors, found, strict=True)]


def total_norm(parts: Sequence[float]) -> float:
    """Return the Euclidean norm of a vector whose parts have these norms."""
    return math.nan if any(map(math.isnan, parts)) else math.hypot(*parts)


def scaled_to_one(values: Tensor) -> tuple[Tensor, int]:
    """Scale values by a power of two, so that the largest finite absolute value is from 0.5 to 1.

    The products are exact, but for values that are too small beside the largest to matter.

    Args:
        values: Real values of a floating-point dtype, any shape.

    Returns:
        The scaled values, and the exponent e for which `values = scaled * 2**e`.
    """
    sizes = values.abs()
    sizes = sizes.where(sizes.isfinite(), 0)
    largest = float(sizes.amax()) if values.numel() else 0.0
    exponent = math.frexp(largest)[1]
    half = -exponent // 2  # in two steps, because 2**-exponent alone may not be a number of the dtype
    return (values if exponent == 0 else values * 2.0**half * 2.0 ** (-exponent - half)), exponent


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2**exponent, exactly, in float64.

    Args:
        exponent: Integers from -1022 to 1023, any shape.
    """
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def times_power_of_two(number: float, exponent: int) -> float:
    """Return `number * 2**exponent`; infinity where that is more than a float64 can hold."""
    try:
        return math.ldexp(number, exponent)
    except OverflowError:
        return math.copysign(math.inf, number)


def _real_values(tensor: Tensor) -> Tensor:
    """The values as float32 or float64; complex numbers as pairs in the last axis."""
    values = tensor.detach()
    if values.is_nested:
        values = torch.cat([part.flatten() for part in values.unbind()])
    if not is_plain(values) and has_values(values):
        values = dense(values, "the tensor")
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    if values.dtype in (torch.float64, torch.float32):
        return values
    exact = values.is_floating_point() or values.device.type == "mps"  # float32 holds all of float16 and bfloat16
    return values.float() if exact else values.double()

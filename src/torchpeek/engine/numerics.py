"""Precision: the dtype that scores, gradients and heatmaps are computed in, and when two results count as equal."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert to float32; a float64 tensor stays as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. Waits for the device.

    A sum is NaN or infinite if an element is, and takes one pass over the memory. That of large elements may overflow,
    so where it is not finite, each element is looked at.
    """
    values = tensor.detach()
    has_sum = not values.is_complex() and values.dtype.itemsize > 1  # floats of 8 bits have none
    sum_is_finite = has_sum and math.isfinite(values.sum())
    return sum_is_finite or bool(values.isfinite().all())


# The allowed difference, relative to the largest value: the rounding that other batch sizes and memory formats cause.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def close(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors have one shape and, up to rounding in `dtype`, the same values, NaN and infinities too.

    The tolerance is relative to the largest finite value of `theirs`. Integers and bools have to be equal.
    """
    if ours.shape != theirs.shape:
        return False
    if not theirs.is_floating_point():
        return torch.equal(ours, theirs)
    # On the CPU, because not every device has float64.
    actual, expected = ours.detach().cpu().double(), theirs.detach().cpu().double()
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(actual, expected, rtol=0, atol=_TOLERANCE.get(dtype, 1e-3) * largest, equal_nan=True)


def weighted_sum(tensors: Iterable[Tensor]) -> Tensor:
    """A sum over all entries, with weights that do not cancel by a normalisation or a symmetry of the tensors."""
    total = torch.zeros(())
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            weights = torch.cos(torch.arange(tensor.numel(), device=tensor.device)).view(tensor.shape)
            total = total + (tensor.float() * weights).sum().cpu()
    return total

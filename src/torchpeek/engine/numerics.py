"""Precision: what scores, gradients and maps are computed in, and when two results count as equal."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """As float32, or, where it is of float64, as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


# How far they may be off, relative to the largest number: rounding, as other batch sizes and memory formats have it.
_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def close(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Whether they are of one shape and, but for what rounding in `dtype` does, the same, NaN and infinities too."""
    if ours.shape != theirs.shape:
        return False
    if not theirs.is_floating_point():
        return torch.equal(ours, theirs)
    one, other = ours.detach().cpu().double(), theirs.detach().cpu().double()  # not every device has float64
    finite = other[other.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=_ROUNDING.get(dtype, 1e-3) * largest, equal_nan=True)

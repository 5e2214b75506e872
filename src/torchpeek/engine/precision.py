"""The precision that scores, gradients and maps are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """As float32, or, where it is of float64, as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()

"""Patches: the input cut into equally many cells along each axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchpeek.errors import InputError


def patches(size: Sequence[int], cells: int) -> Tensor:
    """Return the number of the patch that each position is in, (*size), int64."""
    if cells > min(size):
        raise InputError(f"option cells is {cells}; allowed: up to {min(size)}, the shortest axis of the input")
    number = torch.zeros(tuple(size), dtype=torch.long)
    for axis, length in enumerate(size):
        along = torch.arange(length) * cells // length
        number = number * cells + along.view(-1, *(1 for _ in size[axis + 1 :]))
    return number


def patch_sums(values: Tensor, index: Tensor, number: int) -> Tensor:
    """Return the sum over each patch, (N, J, *size) -> (N, J, number)."""
    sums = values.new_zeros(*values.shape[:2], number)
    return sums.index_add(2, index.flatten(), values.flatten(2))

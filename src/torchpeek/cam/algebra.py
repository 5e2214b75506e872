"""The few operations that methods are made of. Every tensor is (N, K, C, *grid), with K = 1 where it has no scores."""

from __future__ import annotations

import torch
from torch import Tensor


def grid_mean(tensor: Tensor) -> Tensor:
    """(N, K, C, *grid) -> (N, K, C, *1): the mean over the positions, ready to multiply with."""
    return tensor.mean(dim=grid_axes(tensor), keepdim=True)


def grid_sum(tensor: Tensor) -> Tensor:
    """(N, K, C, *grid) -> (N, K, C, *1): the sum over the positions, ready to multiply with."""
    return tensor.sum(dim=grid_axes(tensor), keepdim=True)


def weighted_sum(weights: Tensor, activations: Tensor) -> Tensor:
    """(N, K, C, *1 or *grid) times (N, 1, C, *grid) -> (N, K, *grid): the sum over the channels."""
    if weights.shape[3:].numel() == 1:
        # As a matrix product: the (N, K, C, *grid) product is never made.
        summed = weights.flatten(2) @ activations.flatten(3).squeeze(1)  # (N, K, positions)
        return summed.reshape(*summed.shape[:2], *activations.shape[3:])
    return (weights * activations).sum(dim=2)


def first_component(tensor: Tensor, towards: Tensor) -> Tensor:
    """(N, K, C, *grid) -> (N, K, *grid): each position's coordinate along the first right singular vector.

    The singular value decomposition is of the (positions, C) matrix, not centred. It is taken from the smaller of the
    two Gram matrices. A singular vector's sign is arbitrary: here it is the one that makes the map agree with `towards`
    (N, K or 1, *grid), that is, their inner product is not negative.
    """
    rows = tensor.flatten(3)  # (N, K, C, positions)
    channels, positions = rows.shape[2:]
    if positions <= channels:
        values, vectors = torch.linalg.eigh(rows.mT @ rows)  # of (positions, positions), ascending
        component = vectors[..., -1] * values[..., -1:].clamp(min=0).sqrt()  # (N, K, positions): u1 times s1
    else:
        vectors = torch.linalg.eigh(rows @ rows.mT).eigenvectors  # of (C, C)
        component = (vectors[..., -1:].mT @ rows).squeeze(2)  # v1 applied
    agreement = (component * towards.flatten(2)).sum(dim=2, keepdim=True)
    signed = torch.where(agreement < 0, -component, component)
    return signed.reshape(*signed.shape[:2], *tensor.shape[3:])


def grid_axes(tensor: Tensor) -> tuple[int, ...]:
    """The axes of the grid in (N, K, C, *grid)."""
    return tuple(range(3, tensor.ndim))

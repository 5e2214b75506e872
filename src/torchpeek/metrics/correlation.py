"""Correlations over the last axis, and ranks in which equal values share their mean rank."""

from __future__ import annotations

import torch
from torch import Tensor

from torchpeek.metrics.case import round_to_levels


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return Pearson's correlation over the last axis, (N, J, n) twice -> (N, J); 0 if one of them is constant."""
    first, second = _centred(one.double()), _centred(other.double())
    return (first * second).sum(2).to(one)


def _centred(values: Tensor) -> Tensor:
    """Subtract the mean and divide by the norm, (N, J, n). Values that vary by rounding alone become zeros."""
    centred = values - values.mean(2, keepdim=True)
    norm, whole = centred.norm(dim=2, keepdim=True), values.norm(dim=2, keepdim=True)
    return torch.where(norm > 1e-7 * whole, centred / norm, 0)


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return Spearman's correlation over the last axis, (N, J, n) twice -> (N, J). Equal values have their mean rank.

    It is 0 if one of them is constant, and 1 if both are.
    """
    first, second = round_to_levels(one), round_to_levels(other)
    neither = ((first == first[..., :1]) & (second == second[..., :1])).all(2)
    return torch.where(neither, 1, correlation(mean_ranks(first), mean_ranks(second)).to(one))


def mean_ranks(values: Tensor) -> Tensor:
    """Return the rank of each value, (N, J, n), float64: the number of lower values, and half that of equal ones."""
    ordered = values.contiguous().sort(dim=2).values
    low = torch.searchsorted(ordered, values.contiguous())
    high = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (low + high).double() / 2

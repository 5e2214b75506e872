"""Imputation: removed positions are replaced by the weighted mean of their neighbours (arXiv:2202.00449).

At every removed position i, sum_j w_ij (x_j - x_i) = 0 over the neighbours j inside the picture. The weights are the
product of 1-2-1 along each axis, without the centre. In a picture they are 2 for direct and 1 for diagonal neighbours,
which is the paper's 1/6 and 1/12; in a signal 1 and 1; in a volume 4, 2 and 1 for faces, edges and corners. The paper's
noise is not added.

This is a linear system A x = b for all removed positions together. A is symmetric positive definite if at least one
position is known. About seven rounds of conjugate gradients solve it. Each round is preconditioned by a multigrid
cycle, that is over coarser and coarser grids, which carries values across a large hole in one step. Every operation is
a sum of shifted pictures, so a batch is solved together, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from torchpeek.errors import InputError, OptionError

# Two sweeps multiply an error with eigenvalue t of A / total by (1 - 1.1 t) (1 - 2.5 t). 0 < t <= 1, as 1-2-1 has no
# negative eigenvalue. For t >= 0.3 that is at most 0.18. Smoother errors are left to the coarser grid.
_SWEEPS = (1.1, 2.5)
_ROUNDS = 100  # far more than any mask needs
_CHUNK = 2**19  # numbers in a chunk on a CPU: more do not fit its cache, fewer are mostly overhead on coarse grids


@torch.no_grad()
def imputed(pictures: Tensor, removed: Tensor, *, tolerance: float = 1e-4) -> Tensor:
    """Replace removed positions by the solution of the linear system.

    Values at removed positions are not read. The result for one picture does not depend on the rest of the batch.

    Args:
        pictures: (b, C, *grid), float32 or float64, with one to three grid axes.
        removed: (b, *grid), bool, True where a position is removed.
        tolerance: The largest norm(A x - b) / norm(b) for each picture and channel. Values are measured from the
            constant that makes norm(b) smallest, so an offset changes nothing but rounding.

    Returns:
        (b, C, *grid), the pictures with the removed positions filled.

    Raises:
        InputError: When shape, dtype or device do not fit, a picture has no known position, or there is no solution.
        OptionError: When the tolerance is too small for the dtype, or not below 1.
    """
    _check(pictures, removed, tolerance)
    chunk = _CHUNK // max(1, math.prod(pictures.shape[1:])) if pictures.device.type == "cpu" else len(pictures)
    parts = zip(torch.split(pictures, max(1, chunk)), torch.split(removed, max(1, chunk)), strict=True)
    return torch.cat([_solved(some, holes.unsqueeze(1), tolerance) for some, holes in parts])


def _check(pictures: Tensor, removed: Tensor, tolerance: float) -> None:
    shape, dtype, device = tuple(pictures.shape), pictures.dtype, pictures.device
    if not 3 <= len(shape) <= 5 or 0 in shape[2:]:
        raise InputError(
            f"pictures has shape {shape}; give (b, C, L), (b, C, H, W) or (b, C, D, H, W), no axis of length 0"
        )
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"pictures is {dtype}; give float32 or float64")
    if removed.dtype != torch.bool or removed.shape != (shape[0], *shape[2:]) or removed.device != device:
        raise InputError(
            f"removed is {removed.dtype} {tuple(removed.shape)} on {removed.device}; "
            f"give torch.bool {(shape[0], *shape[2:])} on {device}, True where a position is removed"
        )
    least = 100 * torch.finfo(dtype).eps  # below it, rounding decides
    if not least <= tolerance < 1:
        raise OptionError(f"tolerance is {tolerance:g} for {dtype}; give {least:.1e} or more, and less than 1")
    if (hidden := removed.flatten(1).all(1)).any():
        raise InputError(f"all of picture {int(hidden.int().argmax())} is removed; leave at least one position known")


def _solved(pictures: Tensor, removed: Tensor, tolerance: float) -> Tensor:
    """Solve the system by preconditioned conjugate gradients; pictures (b, C, *grid), removed (b, 1, *grid)."""
    grids = _grids(removed.to(pictures.dtype))
    finest, epsilon = grids[0], torch.finfo(pictures.dtype).eps
    right = _around(torch.where(removed, 0, pictures)).mul_(finest.removed)  # b: the sum over known neighbours
    touch = _around(1 - finest.removed).mul_(finest.removed)  # the same for a picture of ones
    constant = _dot(right, touch) / _dot(touch, touch).clamp(min=1)  # the best start; 0 where nothing is removed
    rest = right - constant * touch  # the residual, here and below
    goal = torch.maximum(tolerance**2 * _dot(rest, rest), (4 * epsilon) ** 2 * _dot(right, right))
    solution, direction, before = torch.zeros_like(rest), torch.zeros_like(rest), torch.ones_like(goal)
    for _ in range(_ROUNDS):
        active = _dot(rest, rest) > goal  # each stops on its own: the rest of the batch must not change it
        if not active.any():
            return torch.where(removed, solution + constant, pictures)
        step = _cycle(grids, rest)  # approximately the remaining error
        now = _dot(rest, step)
        direction.mul_(now / before).add_(step)  # so that no later step undoes an earlier one
        change = finest.laplacian(direction).mul_(finest.removed)
        length = torch.where(active, now / -_dot(direction, change), 0)
        solution.addcmul_(length, direction)
        rest.addcmul_(length, change)
        before = torch.where(active, now, 1)
    raise InputError(f"no solution to tolerance {tolerance:g} in {_ROUNDS} rounds; give a larger tolerance")


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each picture and channel, (b, C, 1, ...)."""
    return (a * b).sum(tuple(range(2, a.ndim)), keepdim=True)


def _around(values: Tensor) -> Tensor:
    """Return the 1-2-1 sum over each position and its neighbours, 0 outside: twice the sum of two, along each axis."""
    axes = range(2, values.ndim)
    values = F.pad(values, [1, 1] * len(axes))
    for axis in (*axes, *axes):
        size = values.shape[axis] - 1
        values = values.narrow(axis, 0, size) + values.narrow(axis, 1, size)
    return values


@dataclass(frozen=True, eq=False)
class _Grid:
    """One resolution. The weights are the same on all of them; which cells are removed differs."""

    removed: Tensor  # (b, 1, *grid), 1 where the position is removed, 0 where it is known
    total: Tensor  # (1, 1, *grid), the sum of the weights inside the picture, with the centre's
    inverse: Tensor  # (b, 1, *grid), 1 / total where removed, 0 elsewhere

    def laplacian(self, values: Tensor) -> Tensor:
        """Return sum_j w_ij (x_j - x_i), in which the centre's own weight cancels: -A x where removed."""
        return _around(values).addcmul_(self.total, values, value=-1)


def _grids(removed: Tensor) -> list[_Grid]:
    """Return the grids, the finest first, each with half the resolution, until no cell is removed.

    A coarse cell is removed if all positions in it are. So a coarse value never reaches a known position, and the cycle
    is also right for masks of scattered pixels.
    """
    ones = torch.ones_like(removed[:1])
    total = _around(ones)
    coarser = (_pooled(removed) == _pooled(ones)).to(removed.dtype)
    return [_Grid(removed, total, removed / total), *(_grids(coarser) if coarser.any() else [])]


def _cycle(grids: list[_Grid], right: Tensor) -> Tensor:
    """Approximate A^-1 right: smooth, correct on the coarser grid, smooth. Conjugate gradients need it symmetric."""
    grid, *coarser = grids
    values = right * (_SWEEPS[0] * grid.inverse)  # the first sweep, from 0
    for weight in _SWEEPS[1:]:
        values.addcmul_(grid.inverse, grid.laplacian(values).add_(right), value=weight)
    if coarser:
        # With cells twice as wide the same curvature is four times the difference: hence four times the mean residual.
        mean = 0.5 ** sum(size > 1 for size in right.shape[2:])
        rest = _pooled(grid.laplacian(values).add_(right)).mul_(4 * mean * coarser[0].removed)
        for part, cell in _pairs(values, _cycle(coarser, rest)):
            part += cell
    for weight in reversed(_SWEEPS):
        values.addcmul_(grid.inverse, grid.laplacian(values).add_(right), value=weight)
    return values


def _pooled(fine: Tensor) -> Tensor:
    """Return the sum over each cell of the coarser grid: two positions along each axis, or one at an odd end."""
    coarse = fine.new_zeros([*fine.shape[:2], *((size + 1) // 2 for size in fine.shape[2:])])
    for part, cell in _pairs(fine, coarse):
        cell += part
    return coarse


def _pairs(fine: Tensor, coarse: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield matching views of both: the first position of each cell, then the next, up to two along each axis."""
    for starts in product((0, 1), repeat=fine.ndim - 2):
        part = fine[:, :, *(slice(start, None, 2) for start in starts)]
        yield part, coarse[:, :, *(slice(size) for size in part.shape[2:])]

"""Imputation: removed positions become the weighted mean of their neighbours, all at once (arXiv:2202.00449).

At every removed position i, sum_j w_ij (x_j - x_i) = 0 over the neighbours j inside the picture. The weights are 1-2-1
along each axis, multiplied, the centre left out: 2 for direct and 1 for diagonal neighbours in a picture, which is the
paper's 1/6 and 1/12; 1 and 1 in a signal; 4, 2 and 1 (face, edge, corner) in a volume. The paper's noise is not added.

That is a linear system A x = b, and A is symmetric positive definite as soon as one position is known. Some seven
rounds of conjugate gradients solve it, each preconditioned by a cycle over ever coarser grids (multigrid), which
carries values across a large hole at once. All of it is sums of shifted pictures: a batch is solved together, on any
device.
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
# negative eigenvalue. From t = 0.3 on that is at most 0.18; what is smoother is left to the coarser grid.
_SWEEPS = (1.1, 2.5)
_ROUNDS = 100  # far more than any mask needs
_CHUNK = 2**19  # numbers that a CPU works on at once: more leave its cache, fewer are all overhead on coarse grids


@torch.no_grad()
def imputed(pictures: Tensor, removed: Tensor, *, tolerance: float = 1e-4) -> Tensor:
    """`pictures` (b, C, *grid), one to three axes, with what is `removed` (b, *grid) replaced by the solution.

    `tolerance` is the largest norm(A x - b) / norm(b) of each picture and channel, values counted from the constant
    that makes norm(b) smallest, so that an offset changes nothing (but for its rounding). What lies under `removed` is
    not read, and the rest of the batch does not matter.
    """
    _check(pictures, removed, tolerance)
    chunk = _CHUNK // max(1, math.prod(pictures.shape[1:])) if pictures.device.type == "cpu" else len(pictures)
    parts = zip(torch.split(pictures, max(1, chunk)), torch.split(removed, max(1, chunk)), strict=True)
    return torch.cat([_solved(some, holes.unsqueeze(1), tolerance) for some, holes in parts])


def _check(pictures: Tensor, removed: Tensor, tolerance: float) -> None:
    shape, kind, place = tuple(pictures.shape), pictures.dtype, pictures.device
    if not 3 <= len(shape) <= 5 or 0 in shape[2:]:
        raise InputError(f"pictures are {shape}; give (b, C, L), (b, C, H, W) or (b, C, D, H, W), no axis of length 0")
    if kind not in (torch.float32, torch.float64):
        raise InputError(f"pictures are {kind}; give float32 or float64")
    if removed.dtype != torch.bool or removed.shape != (shape[0], *shape[2:]) or removed.device != place:
        raise InputError(
            f"removed is {removed.dtype} {tuple(removed.shape)} on {removed.device}; "
            f"give torch.bool {(shape[0], *shape[2:])} on {place}, True where a position is removed"
        )
    least = 100 * torch.finfo(kind).eps  # below, rounding decides
    if not least <= tolerance < 1:
        raise OptionError(f"tolerance {tolerance:g} for {kind}; give {least:.1e} or more, and less than 1")
    if (hidden := removed.flatten(1).all(1)).any():
        raise InputError(f"all of picture {int(hidden.int().argmax())} is removed; leave at least one position known")


def _solved(pictures: Tensor, removed: Tensor, tolerance: float) -> Tensor:
    """Preconditioned conjugate gradients on (b, C, *grid), with `removed` (b, 1, *grid)."""
    grids = _grids(removed.to(pictures.dtype))
    finest, epsilon = grids[0], torch.finfo(pictures.dtype).eps
    right = _around(torch.where(removed, 0, pictures)).mul_(finest.removed)  # b: what known neighbours add
    touch = _around(1 - finest.removed).mul_(finest.removed)  # the same of a picture of ones
    constant = _dot(right, touch) / _dot(touch, touch).clamp(min=1)  # the best start; 0 where nothing is removed
    rest = right - constant * touch  # the residual, here and below
    goal = torch.maximum(tolerance**2 * _dot(rest, rest), (4 * epsilon) ** 2 * _dot(right, right))
    solution, direction, before = torch.zeros_like(rest), torch.zeros_like(rest), torch.ones_like(goal)
    for _ in range(_ROUNDS):
        active = _dot(rest, rest) > goal  # each stops for itself: what it is solved with must not change it
        if not active.any():
            return torch.where(removed, solution + constant, pictures)
        step = _cycle(grids, rest)  # about the error that is left
        now = _dot(rest, step)
        direction.mul_(now / before).add_(step)  # so that no later step undoes an earlier one
        change = finest.laplacian(direction).mul_(finest.removed)
        length = torch.where(active, now / -_dot(direction, change), 0)
        solution.addcmul_(length, direction)
        rest.addcmul_(length, change)
        before = torch.where(active, now, 1)
    raise InputError(f"no solution to tolerance {tolerance:g} in {_ROUNDS} rounds; give a larger tolerance")


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(b, C, 1, ...): the inner product of each picture and channel."""
    return (a * b).sum(tuple(range(2, a.ndim)), keepdim=True)


def _around(values: Tensor) -> Tensor:
    """The 1-2-1 sum of each position and its neighbours, 0 outside: along each axis, twice the sum of two."""
    axes = range(2, values.ndim)
    values = F.pad(values, [1, 1] * len(axes))
    for axis in (*axes, *axes):
        size = values.shape[axis] - 1
        values = values.narrow(axis, 0, size) + values.narrow(axis, 1, size)
    return values


@dataclass(frozen=True, eq=False)
class _Grid:
    """One resolution. The weights are the same on all; what differs is which cells are removed."""

    removed: Tensor  # (b, 1, *grid), 1 where a value is asked for, 0 where it is known
    total: Tensor  # (1, 1, *grid), the weights inside the picture, with the centre's
    inverse: Tensor  # (b, 1, *grid), 1 / total where removed, else 0

    def laplacian(self, values: Tensor) -> Tensor:
        """sum_j w_ij (x_j - x_i), the centre's own weight cancelling out; -A x where removed."""
        return _around(values).addcmul_(self.total, values, value=-1)


def _grids(removed: Tensor) -> list[_Grid]:
    """Finest first, each half as fine, until nothing is removed. A cell is removed where all that it covers is.

    A coarse value then never reaches a known position, which keeps the cycle right for masks of scattered pixels, too.
    """
    ones = torch.ones_like(removed[:1])
    total = _around(ones)
    coarser = (_pooled(removed) == _pooled(ones)).to(removed.dtype)
    return [_Grid(removed, total, removed / total), *(_grids(coarser) if coarser.any() else [])]


def _cycle(grids: list[_Grid], right: Tensor) -> Tensor:
    """About A^-1 right: smooth, correct on the coarser grid, smooth. Symmetric, which conjugate gradients need."""
    grid, *coarser = grids
    values = right * (_SWEEPS[0] * grid.inverse)  # the first sweep, from 0
    for weight in _SWEEPS[1:]:
        values.addcmul_(grid.inverse, grid.laplacian(values).add_(right), value=weight)
    if coarser:
        # Over cells twice as wide the same bend is four times the difference: hence four times the mean residual.
        mean = 0.5 ** sum(size > 1 for size in right.shape[2:])
        rest = _pooled(grid.laplacian(values).add_(right)).mul_(4 * mean * coarser[0].removed)
        for part, cell in _pairs(values, _cycle(coarser, rest)):
            part += cell
    for weight in reversed(_SWEEPS):
        values.addcmul_(grid.inverse, grid.laplacian(values).add_(right), value=weight)
    return values


def _pooled(fine: Tensor) -> Tensor:
    """The sum over each cell of the coarser grid: two positions along each axis, or one at an odd end."""
    coarse = fine.new_zeros([*fine.shape[:2], *((size + 1) // 2 for size in fine.shape[2:])])
    for part, cell in _pairs(fine, coarse):
        cell += part
    return coarse


def _pairs(fine: Tensor, coarse: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of both that match: of each cell the first position, then the next, up to 2 per axis."""
    for starts in product((0, 1), repeat=fine.ndim - 2):
        part = fine[:, :, *(slice(start, None, 2) for start in starts)]
        yield part, coarse[:, :, *(slice(size) for size in part.shape[2:])]

"""Mosaics of pictures, for the grid pointing game."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchpeek.errors import InputError


class Mosaic(NamedTuple):
    """Pictures side by side in a square, as one input."""

    inputs: Tensor  # (1, C, n * H, n * W)
    regions: Tensor  # (1, n * n, n * H, n * W), bool: the cell of each picture


def mosaic(pictures: Tensor) -> Mosaic:
    """n * n pictures (n * n, C, H, W), row by row, as one input, and the cell of each; arXiv:2104.00032.

    Ask about the class of every picture, `target=[[...]]`, and give `regions` as `masks` to `evaluate`. Each class
    should be of one picture only. Raises InputError for another number of pictures.
    """
    side = math.isqrt(len(pictures)) if pictures.ndim == 4 else 0
    if side < 2 or side * side != len(pictures):
        raise InputError(f"a mosaic is of (4, C, H, W), (9, C, H, W) or so; got {tuple(pictures.shape)}")
    rows = pictures.view(side, side, *pictures.shape[1:])  # (n, n, C, H, W)
    inputs = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2).unsqueeze(0)
    height, width = pictures.shape[2:]
    regions = torch.zeros(1, side * side, side * height, side * width, dtype=torch.bool, device=pictures.device)
    for cell in range(side * side):
        top, left = cell // side * height, cell % side * width
        regions[0, cell, top : top + height, left : left + width] = True
    return Mosaic(inputs, regions)

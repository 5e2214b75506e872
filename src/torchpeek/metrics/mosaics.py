"""Mosaics: several pictures as one input, for the grid pointing game."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchpeek.errors import InputError
from torchpeek.keywords import checked_keywords


class Mosaic(NamedTuple):
    """n * n pictures side by side in a square, as one input.

    Args:
        inputs: (1, C, n * H, n * W).
        regions: (1, n * n, n * H, n * W), bool: the cell of each picture.

    Example:
        >>> inputs, regions = tp.metrics.mosaic(torch.rand(4, 3, 8, 8))
        >>> inputs.shape, regions.shape
        (torch.Size([1, 3, 16, 16]), torch.Size([1, 4, 16, 16]))
    """

    inputs: Tensor
    regions: Tensor


@checked_keywords
def mosaic(pictures: Tensor) -> Mosaic:
    """Put n * n pictures into one input, row by row.

    Explain the class of every picture, `target=[[...]]`, and give `regions` as `masks` to `evaluate`. Take pictures of
    different classes.

    Args:
        pictures: (n * n, C, H, W), n at least 2.

    Returns:
        A Mosaic: the input (1, C, n * H, n * W), and the cell of each picture (1, n * n, n * H, n * W), bool.

    Raises:
        InputError: When the number of pictures is not 4, 9, 16, ...

    Source: CoDA Nets, arXiv:2104.00032.

    Example:
        >>> mosaic = tp.metrics.mosaic(torch.rand(4, 3, 8, 8))
        >>> mosaic.inputs.shape, int(mosaic.regions[0, 3].sum())
        (torch.Size([1, 3, 16, 16]), 64)
    """
    side = math.isqrt(len(pictures)) if pictures.ndim == 4 else 0
    if side < 2 or side * side != len(pictures):
        raise InputError(
            f"pictures has shape {tuple(pictures.shape)}; allowed: (4, C, H, W), (9, C, H, W), (16, C, H, W), ..."
        )
    rows = pictures.view(side, side, *pictures.shape[1:])  # (n, n, C, H, W)
    inputs = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2).unsqueeze(0)
    height, width = pictures.shape[2:]
    regions = torch.zeros(1, side * side, side * height, side * width, dtype=torch.bool, device=pictures.device)
    for cell in range(side * side):
        top, left = cell // side * height, cell % side * width
        regions[0, cell, top : top + height, left : left + width] = True
    return Mosaic(inputs, regions)

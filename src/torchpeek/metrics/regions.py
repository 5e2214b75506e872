"""Regions: where the object is in the input, from masks or boxes in pixels of the original picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchpeek.errors import InputError, notify, shown
from torchpeek.keywords import checked_keywords
from torchpeek.picture import Geometry
from torchpeek.tensor_formats import dense


@checked_keywords
def regions_of(masks: Any, boxes: Any, shape: torch.Size, scores: int, geometry: Geometry | None) -> Tensor | None:
    """Return the regions of the objects in the positions of the input.

    Args:
        masks: (N, H, W) or (N, K, H, W), bool, a tensor or a list of one for each sample. None if there are boxes.
        boxes: (N, 4), or for each sample (b, 4), as left, top, right, bottom. None if there are masks.
        shape: Shape of the inputs, (N, C, *size).
        scores: Number of scores, K.
        geometry: How the original picture lies in the input. Masks and boxes are in pixels of the original then. None
            if they are in pixels of the input.

    Returns:
        (N, 1 or K, *size), bool; None if both masks and boxes are None.

    Raises:
        InputError: When both are given, or their shape, dtype or number does not fit.

    Example:
        >>> regions = tp.metrics.regions_of(None, [(0, 0, 4, 2)], torch.Size([1, 3, 8, 8]), 1, None)
        >>> regions.shape, int(regions.sum())
        (torch.Size([1, 1, 8, 8]), 8)
    """
    if masks is None and boxes is None:
        return None
    if masks is not None and boxes is not None:
        raise InputError("masks and boxes are both given; give one of them")
    if masks is not None:
        if isinstance(masks, (list, tuple)) and all(isinstance(each, Tensor) for each in masks):
            sizes = sorted({tuple(each.shape) for each in masks})
            if len(sizes) > 1:
                raise InputError(
                    f"masks has tensors of the shapes {shown(sizes)}; allowed: one mask of one size per sample"
                )
            masks = torch.stack(list(masks)) if masks else masks
        return _of_masks(_as_tensor("masks", masks), shape, scores, geometry)
    if len(shape) != 4:
        raise InputError(f"boxes need inputs (N, C, H, W); for inputs {tuple(shape)} give masks")
    return _of_boxes(boxes, shape, geometry)


def _of_masks(masks: Tensor, shape: torch.Size, scores: int, geometry: Geometry | None) -> Tensor:
    size = shape[2:]
    expected = size if geometry is None else torch.Size(geometry.size[::-1])
    of_scores = masks if masks.ndim > len(size) else masks.unsqueeze(0)
    of_scores = of_scores if of_scores.ndim > len(size) + 1 else of_scores.unsqueeze(1)  # (N, 1 or K, *size)
    fits = of_scores.shape[2:] == expected and len(of_scores) == shape[0] and of_scores.shape[1] in (1, scores)
    if masks.dtype != torch.bool or not fits:
        whose = "the input" if geometry is None else "the original picture"
        raise InputError(
            f"masks is {masks.dtype} of shape {tuple(masks.shape)}; allowed: torch.bool (N, H, W) or (N, K, H, W), "
            f"with N = {shape[0]}, K = {scores} and the size of {whose}, {' x '.join(map(str, expected))}"
        )
    if geometry is None:
        return of_scores
    rows, columns = _in_original(geometry, size)
    height, width = expected
    inside = ((rows >= 0) & (rows < height)).unsqueeze(1) & ((columns >= 0) & (columns < width))
    at = rows.clamp(0, height - 1).long(), columns.clamp(0, width - 1).long()
    return of_scores[..., at[0], :][..., at[1]] & inside.to(of_scores.device)


def _of_boxes(boxes: Any, shape: torch.Size, geometry: Geometry | None) -> Tensor:
    if not isinstance(boxes, (list, tuple)) and getattr(boxes, "ndim", 0) == 0:
        raise InputError(f"boxes is {shown(boxes)}; allowed: (left, top, right, bottom) for each sample, or several")
    each = list(boxes) if len(boxes) == shape[0] and not _is_box(boxes) else [boxes]
    if len(each) != shape[0]:
        raise InputError(f"boxes has {len(each)} entries for a batch of {shape[0]}; give one entry for each sample")
    geometry = geometry or Geometry.whole((shape[3], shape[2]))
    rows, columns = _in_original(geometry, shape[2:])
    original = geometry.size
    regions = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
    for number, of_sample in enumerate(each):
        table = _as_tensor(f"boxes of sample {number}", of_sample).double()
        table = table.reshape(-1, 4) if table.numel() % 4 == 0 and table.ndim <= 2 else table
        flat = table.ndim == 2 and table.shape[1] == 4 and bool(table.isfinite().all())
        if not flat or bool((table[:, 2:] <= table[:, :2]).any()):
            raise InputError(
                f"the boxes of sample {number} are {shown(of_sample)}; allowed: (left, top, right, bottom) with left < "
                "right and top < bottom, or several of these"
            )
        for left, top, right, bottom in table.tolist():
            _check_inside((left, top, right, bottom), number, original)
            inside = ((rows >= top) & (rows < bottom)).unsqueeze(1) & ((columns >= left) & (columns < right))
            regions[number, 0] |= inside
    return regions


def _as_tensor(name: str, value: Any) -> Tensor:
    """The numbers of the user as a tensor. Raises InputError where they are none."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError, RecursionError):
        raise InputError(f"{name} is {shown(value)}; allowed: a tensor, an array, or lists of numbers") from None
    if tensor.is_meta or tensor.is_complex():
        raise InputError(f"{name} is {shown(value)} on {tensor.device}; allowed: real values")
    return dense(tensor, name)


def _check_inside(box: tuple[float, ...], number: int, size: tuple[int, int]) -> None:
    """Raise InputError for a box outside the picture; say so where a part of it lies outside."""
    left, top, right, bottom = box
    width, height = size
    named = f"the box ({left:g}, {top:g}, {right:g}, {bottom:g}) of sample {number}"
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise InputError(
            f"{named} lies outside the picture of {width} x {height}; allowed: boxes in pixels of that picture, as "
            "(left, top, right, bottom)"
        )
    if left < 0 or top < 0 or right > width or bottom > height:
        notify(f"{named} reaches beyond the picture of {width} x {height}; only the part inside counts")


def _is_box(boxes: Any) -> bool:
    """Whether this is a single box, not one for each of four samples."""
    return len(boxes) == 4 and all(isinstance(each, (int, float)) or getattr(each, "ndim", 1) == 0 for each in boxes)


def _in_original(geometry: Geometry, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the rows (H,) and columns (W,) of the original at the centres of the input's pixels."""
    left, top, right, bottom = geometry.box
    height, width = size
    rows = top + (torch.arange(height, dtype=torch.float64) + 0.5) * (bottom - top) / height
    columns = left + (torch.arange(width, dtype=torch.float64) + 0.5) * (right - left) / width
    return rows, columns

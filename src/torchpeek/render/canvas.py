"""Canvas: the image that a heatmap lies on, and which part of it the model saw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from torchpeek.errors import InputError, type_shown
from torchpeek.picture import Geometry, Picture
from torchpeek.render.colormaps import Plane
from torchpeek.render.heatmap_like import HeatmapLike
from torchpeek.tensor_formats import dense

Flat: TypeAlias = Picture | Image.Image | Tensor
"""What has one image: a Picture, a PIL image, or the tensor that the model took."""
_NEXT = {
    1: "a signal has one axis",
    2: "a picture has two axes. Next: tp.render.signal draws one axis; overlay, filmstrip and montage draw three",
    3: "a volume or a video has three axes",
}

_SAMPLE = {1: "(C, T)", 2: "(C, H, W)", 3: "(C, D, H, W)"}

SMALLEST = 224
"""Pixels of the longer side below which a picture is drawn enlarged."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """An RGB image, and which part of it the model's input shows."""

    image: Image.Image
    geometry: Geometry

    def enlarged(self) -> Canvas:
        """Return a small image enlarged, and the box with it. Others stay as they are."""
        factor = enlargement(self.image.size)
        width, height = self.image.size
        left, top, right, bottom = (side * factor for side in self.geometry.box)
        return Canvas(enlarged(self.image), Geometry((width * factor, height * factor), (left, top, right, bottom)))


def enlargement(size: tuple[int, int]) -> int:
    """Return the whole factor that makes the longer side at least 224 pixels; 1 for larger pictures."""
    return max(1, math.ceil(SMALLEST / max(size)))


def enlarged(image: Image.Image) -> Image.Image:
    """Return a small image with each pixel drawn as a square, so that no pixel is invented."""
    factor = enlargement(image.size)
    if factor == 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def canvas_of(picture: object) -> Canvas:
    """Return the canvas of one image. A tensor is scaled to its own range, as it has no way back to a photograph."""
    if isinstance(picture, Picture):
        return Canvas(picture.image, picture.geometry)
    if isinstance(picture, Tensor):
        picture = image_of(channels_first(picture, 2))
    if isinstance(picture, Image.Image):
        image = picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy
        return Canvas(image, Geometry.whole(picture.size))
    raise InputError(
        f"picture is {type_shown(picture)}; allowed: a Picture (LoadedModel.read), a PIL image, or the tensor "
        "of one sample"
    )


def image_of(values: Tensor, lowest: float | None = None, highest: float | None = None) -> Image.Image:
    """Return values (C, h, w) as an image, from black at the lowest to white at the highest value.

    Three channels are RGB. Any other number is drawn as the mean of the channels, in grey. The range is that of the
    values unless it is named.
    """
    plane = as_drawn(values)
    low, high = value_range(plane)
    low, high = (low if lowest is None else lowest), (high if highest is None else highest)
    unit = (plane - low) / (high - low) if high > low else torch.full_like(plane, 0.5)
    pixels: npt.NDArray[np.uint8] = (unit.nan_to_num(0).clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    return Image.fromarray(pixels if len(plane) == 3 else pixels[..., 0]).convert("RGB")


def as_drawn(values: Tensor) -> Tensor:
    """Return (C, ...) as three channels or one, in float32 on the CPU."""
    plane = values.detach().cpu().float()
    return plane if len(plane) in (1, 3) else plane.mean(0, keepdim=True)


def value_range(values: Tensor) -> tuple[float, float]:
    """Return the lowest and the highest finite value; 0 and 0 if there is none."""
    finite = values[values.isfinite()]
    return (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)


def one_map(heatmap: HeatmapLike, grid: int) -> Tensor:
    """Return the values (*grid) of a heatmap of one sample and score."""
    shape = tuple(heatmap.values.shape)
    if shape[:2] != (1, 1):
        raise InputError(
            f"heatmap has values of shape {shape}; allowed: one map, (1, 1, *grid). Next: give heatmap[n, k]"
        )
    if len(shape) - 2 != grid:
        raise InputError(f"heatmap has values of shape {shape}, with {len(shape) - 2} axes of the grid; {_NEXT[grid]}")
    return heatmap.values[0, 0]


def as_numpy(values: Tensor) -> Plane:
    """Return a tensor as a NumPy array, float32."""
    plane: Plane = values.detach().float().cpu().numpy()
    return plane


def interpolation(pixels: int, start: float, stop: float, cells: int) -> Plane:
    """Return the weights (pixels, cells) of linear interpolation on one axis, where the cells tile [start, stop].

    A cell's value belongs to its middle. Beyond the middles of the outermost cells, their values are continued.
    """
    middles = np.arange(pixels) + 0.5
    position = np.clip((middles - start) / (stop - start) * cells - 0.5, 0, cells - 1)
    weights: Plane = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells))).astype(np.float32)
    return weights


def channels_first(tensor: Tensor, grid: int, name: str = "picture", *, frames: bool = False) -> Tensor:
    """Return one sample's tensor as (C, *grid), with or without its batch and channel axes."""
    tensor = dense(tensor, name)
    shape = tuple(tensor.shape)
    if tensor.is_complex() or not tensor.numel():
        raise InputError(f"{name} is a tensor {shape} of {tensor.dtype}; allowed: real numbers, at least one")
    if tensor.ndim == grid + 2 and shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim == grid:
        tensor = tensor[None]
    if tensor.ndim != grid + 1:
        raise InputError(
            f"{name} is a tensor of shape {shape}, and the heatmap has a grid of {grid} axes; allowed: one sample "
            f"{_SAMPLE.get(grid, '(C, *grid)')}, also with a batch axis of 1. Next: give x[n]"
        )
    colours = (1, 3)
    if grid == 3 and tensor.shape[1] in colours and (frames or tensor.shape[0] not in colours):
        return tensor.movedim(1, 0)  # (T, C, H, W)
    if grid == 2 and tensor.shape[-1] in colours and tensor.shape[0] not in colours:
        return tensor.movedim(-1, 0)  # channels last
    return tensor

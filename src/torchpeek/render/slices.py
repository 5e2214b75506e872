"""Slices: a volume or a video cut into images, each with the map's values there."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from torchpeek.argument_types import Allowed, Whole
from torchpeek.cached import cached_property
from torchpeek.errors import InputError, OptionError, type_shown
from torchpeek.picture import Picture
from torchpeek.render.canvas import (
    Canvas,
    Flat,
    as_drawn,
    canvas_of,
    channels_first,
    image_of,
    interpolation,
    one_map,
    value_range,
)
from torchpeek.render.heatmap_like import HeatmapLike

Stack: TypeAlias = Tensor | Sequence[Picture | Image.Image]
"""What has several images: the tensor of a volume or a video, or its frames."""

Axis: TypeAlias = Annotated[int, Whole(0, 2), Allowed("0 (depth or time), 1 (rows), 2 (columns)")]
"""The axis of a grid with three that is cut into slices."""


@dataclass(frozen=True, eq=False)
class Slices:
    """The slices of a volume across an axis, or the frames of a video."""

    frames: Sequence[Picture | Image.Image] | Tensor  # a tensor is (count, 1 or 3, H, W)
    grid: Tensor  # (d, h, w): the values at the positions of the grid
    noun: str  # "slice" or "frame"

    def __len__(self) -> int:
        return len(self.frames)

    def canvas(self, index: int) -> Canvas:
        """Return the image of a slice. The range of grey values is that of the whole volume."""
        if isinstance(self.frames, Tensor):
            return canvas_of(image_of(self.frames[index], *self._range))
        return canvas_of(self.frames[index])

    def values(self, index: int) -> Tensor:
        """Return the map of a slice, (h, w): interpolated between the grid's positions as it is within a picture."""
        weights = self._weights()[index]  # d
        plane: Tensor = torch.tensordot(weights, self.grid, dims=1)
        return plane

    def strongest(self, *, signed: bool) -> int:
        """Return the index of the slice with the highest value, or the largest magnitude."""
        planes = self._weights() @ self.grid.flatten(1)  # (count, h * w)
        return int((planes.abs() if signed else planes).amax(1).argmax())

    def checked(self, index: int) -> int:
        """Return the index, counted from the start."""
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise OptionError(f"index {number} is out of range; allowed: 0 to {len(self) - 1}")
        return number % len(self)

    def name(self, index: int) -> str:
        """Return what an image of the slice says, as `slice_name`."""
        return slice_name(index, len(self), self.noun)

    @cached_property
    def _range(self) -> tuple[float, float]:
        return value_range(self.frames) if isinstance(self.frames, Tensor) else (0.0, 0.0)

    def _weights(self) -> Tensor:
        return torch.from_numpy(interpolation(len(self), 0, len(self), len(self.grid)))  # (count, d)


def slice_name(index: int, count: int, noun: str = "slice") -> str:
    """Return the name of a slice: "slice 3 of 8, counted from 0"."""
    return f"{noun} {index} of {count}, counted from 0"


def slices_of(stack: Flat | Stack, heatmap: HeatmapLike, axis: Axis, noun: str = "slice") -> Slices:
    """Return the slices of a volume and of its map across an axis.

    Args:
        stack: A volume (C, D, H, W), a video (C, T, H, W) or frames (T, C, H, W), also with a batch axis of 1, or a
            sequence of frames.
        heatmap: One map with a grid of three axes.
        axis: The axis of the grid that is cut: 0 for depth and time.
        noun: What a slice is called.

    Raises:
        InputError: When `stack` is something else, or the map has another grid.
        OptionError: When frames are to be cut along another axis than 0.
    """
    grid = one_map(heatmap, 3).detach().float().cpu().movedim(axis, 0)
    if isinstance(stack, Tensor):
        # Frames that the model takes as samples of a batch: "(N 4) C 7 7", or "(4 N) C 7 7".
        folded = bool(re.search(r"\((N \d+|\d+ N)\)", heatmap.provenance.layout))
        volume = as_drawn(channels_first(stack, 3, frames=folded))
        return Slices(volume.movedim(1 + axis, 0), grid, noun)
    if isinstance(stack, (Picture, Image.Image, str)) or not isinstance(stack, Sequence) or not stack:
        got = "an empty sequence" if isinstance(stack, Sequence) and not stack else type_shown(stack)
        got = "one image" if isinstance(stack, (Picture, Image.Image)) else got
        raise InputError(
            f"picture is {got}, and the heatmap has a grid of three axes; allowed: the tensor of the volume or the "
            "video, or a sequence of its frames"
        )
    if axis != 0:
        raise OptionError(f"axis is {axis}; a sequence of frames is cut along axis 0 only")
    return Slices(stack, grid, "frame")

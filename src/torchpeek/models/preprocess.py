"""Preprocess: resize, crop, scale and pad a picture, as data that can be printed and undone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from torchpeek.argument_types import Allowed, PixelCount
from torchpeek.errors import InputError, PictureError
from torchpeek.keywords import checked_class
from torchpeek.picture import Geometry

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Rounding: TypeAlias = Literal["even", "down"]
HeightAndWidth: TypeAlias = Annotated[tuple[PixelCount, PixelCount], Allowed("(height, width) in pixels")]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@checked_class
@dataclass(frozen=True)
class Preprocess:
    """Resize, crop the centre, scale to [0, 1], subtract the mean, divide by the standard deviation, pad.

    Args:
        resize: Length of the shorter side in pixels; or (height, width), which may change the aspect ratio; or None.
        crop: (height, width) of the central crop, filled with black where the resized picture is smaller; or None.
        mean: The mean of each channel in [0, 1]: three entries for RGB, one for grey.
        std: The standard deviation of each channel, as many entries.
        interpolation: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming".
        longest: Largest length of the longer side. If it would be exceeded, the picture is resized to less.
        pad: (height, width) to fill up to with zeros, on the right and at the bottom; or None.
        bgr: Whether the channels are in the order blue, green, red, also in `mean` and `std`.
        rounding: How a crop's half pixels are rounded: "even" as in torchvision, or "down", to the top left, as in
            transformers.

    Raises:
        InputError: When an argument has a value that is not allowed.

    Example:
        >>> print(tp.Preprocess(resize=32, crop=(28, 28)))
        resize to 32, shorter side (bilinear, antialiased); crop the centre 28 x 28; mean 0.485, 0.456, 0.406; ...
        >>> print(tp.Preprocess(resize=None, crop=None, mean=(0.5,), std=(0.5,)))
        mean 0.5; std 0.5
    """

    resize: PixelCount | HeightAndWidth | None = 256
    crop: HeightAndWidth | None = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    longest: PixelCount | None = None
    pad: HeightAndWidth | None = None
    bgr: bool = False
    rounding: Rounding = "even"

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            got = f"mean has {len(self.mean)} entries and std {len(self.std)}"
            raise InputError(f"{got}; allowed: 1 (grey) or 3 (RGB) each")
        if 0 in self.std:
            raise InputError(f"std is {self.std}; allowed: no entry is 0, because the picture is divided by it")
        if self.longest is not None and not isinstance(self.resize, int):
            got = f"longest is {self.longest!r} and resize {self.resize!r}"
            raise InputError(f"{got}; allowed: a number of pixels each, or longest None")

    def __call__(self, image: Annotated[Image.Image, Allowed("a PIL image")]) -> tuple[Tensor, Geometry]:
        """Make a model's input of an image.

        Args:
            image: PIL image, upright.

        Returns:
            The tensor (1, C, H, W), float32 on the CPU, and the Geometry: which part of the image it shows.

        Raises:
            InputError: When `image` is no PIL image.
            PictureError: When the resized picture would be too large, or does not fit into `pad`.

        Example:
            >>> from PIL import Image
            >>> tensor, geometry = tp.Preprocess(resize=24, crop=(24, 24))(Image.new("RGB", (64, 48)))
            >>> tensor.shape, geometry.box
            (torch.Size([1, 3, 24, 24]), (8.0, 0.0, 56.0, 48.0))
        """
        mode = "L" if len(self.mean) == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        width, height = self._resized_size(image.size)
        if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise PictureError(
                f"{image.width} x {image.height} is too long for its width: the preprocessing would resize it to "
                f"{width} x {height}. Next: cut it to the part that matters"
            )
        resized = image
        if image.size != (width, height):  # else it would be copied
            resized = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = 0, 0
        if self.crop is not None:
            starts = _crop_start_even if self.rounding == "even" else _crop_start_down
            left, top = starts(width, self.crop[1]), starts(height, self.crop[0])
            resized = resized.crop((left, top, left + self.crop[1], top + self.crop[0]))
        tensor = self._padded(self._scaled(resized))
        scale_x, scale_y = image.width / width, image.height / height
        right, bottom = left + tensor.shape[3], top + tensor.shape[2]
        return tensor, Geometry(image.size, (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y))

    def __str__(self) -> str:
        steps = []
        if self.resize is not None:
            size = (
                f"{self.resize}, shorter side"
                if isinstance(self.resize, int)
                else f"{self.resize[0]} x {self.resize[1]}"
            )
            most = "" if self.longest is None else f", the longer at most {self.longest}"
            steps.append(f"resize to {size}{most} ({self.interpolation}, antialiased)")
        if self.crop is not None and self.crop != self.resize:
            steps.append(f"crop the centre {self.crop[0]} x {self.crop[1]}")
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        steps.append(f"mean {mean}; std {std}" + (", blue first" if self.bgr else ""))
        if self.pad is not None:
            steps.append(f"pad to {self.pad[0]} x {self.pad[1]}")
        return "; ".join(steps)

    def _resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        width, height = size
        if self.resize is None:
            return size
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        shorter: float = self.resize
        if self.longest is not None and max(size) / min(size) * shorter > self.longest:
            shorter = self.longest * min(size) / max(size)
        if width <= height:
            return round(shorter), int(shorter * height / width)
        return int(shorter * width / height), round(shorter)

    def _scaled(self, image: Image.Image) -> Tensor:
        rows = max(1, _PIXELS_AT_ONCE // max(1, image.width))
        if image.height <= rows:
            return self._normalised(image)
        # Of a large picture in parts, because each step makes a copy in floating point.
        scaled = torch.empty(1, len(self.mean), image.height, image.width)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            scaled[..., top:bottom, :] = self._normalised(image.crop((0, top, image.width, bottom)))
        return scaled

    def _normalised(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, -1)  # (H, W, C), uint8
        tensor = pixels.permute(2, 0, 1).contiguous().float().div(255)
        tensor = tensor.flip(0) if self.bgr else tensor
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return ((tensor - mean) / std).unsqueeze(0)

    def _padded(self, tensor: Tensor) -> Tensor:
        if self.pad is None:
            return tensor
        height, width = tensor.shape[2:]
        if height > self.pad[0] or width > self.pad[1]:
            raise PictureError(
                f"resized to {width} x {height}, the picture does not fit into {self.pad[1]} x {self.pad[0]}, the size "
                "that it is padded to. Next: cut it to the part that matters"
            )
        return functional.pad(tensor, (0, self.pad[1] - width, 0, self.pad[0] - height))


@dataclass(frozen=True)
class PreprocessChanges:
    """What is changed of a model's own preprocessing.

    Args:
        size: (height, width) of the input. A square size is the central square of the picture, whose shorter side is
            resized to it. To any other size, the whole picture is resized, which may change its aspect ratio.
        grey: Whether the input has one channel.
        mean: The mean of each channel in [0, 1], or one number for all; None for the model's own.
        std: The standard deviation of each channel, or one number for all; None for the model's own.
    """

    size: tuple[int, int] | None = None
    grey: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is left of the model's own preprocessing but the interpolation."""
        return self.size is not None and self.mean is not None and self.std is not None

    def applied(self, base: Preprocess) -> Preprocess:
        """Return the changed preprocessing. Raises InputError where mean and std do not fit the channels."""
        own_mean, own_std = base.mean, base.std
        if self.grey and len(own_mean) != 1:  # RGB's numbers say nothing of grey: pictures in 0..1 as they are
            own_mean, own_std = (0.0,), (1.0,)
        channels = 1 if self.grey else len(own_mean)
        changed = replace(
            base,
            mean=own_mean if self.mean is None else _for_channels("mean", self.mean, channels),
            std=own_std if self.std is None else _for_channels("std", self.std, channels),
            bgr=base.bgr and channels == 3,
        )
        if self.size is None:
            return changed
        height, width = self.size
        resize = height if height == width else self.size
        return replace(changed, resize=resize, crop=self.size, longest=None, pad=None)


def _for_channels(name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        kind = "1 (grey)" if channels == 1 else "1 for all channels, or 3 (RGB)"
        raise InputError(f"{name} has {len(values)} entries; allowed: {kind}")
    return values * channels if len(values) == 1 else values


@dataclass(frozen=True)
class TensorsOnly:
    """The preprocessing of a model that takes no pictures: raises an InputError that says what it takes."""

    instead: str

    def __call__(self, image: Annotated[Image.Image, Allowed("a PIL image")]) -> Tensor:
        raise InputError(self.instead)


_PIXELS_AT_ONCE = 2**20
"""Pixels that are converted to floating point at once."""


def _crop_start_even(have: int, want: int) -> int:
    """Round half pixels to the even number; if the picture is smaller than the crop, to the top left."""
    return round((have - want) / 2.0) if have >= want else -((want - have) // 2)


def _crop_start_down(have: int, want: int) -> int:
    return (have - want) // 2

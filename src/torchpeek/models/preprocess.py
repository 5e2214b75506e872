"""How a picture becomes a model's input: resize, crop, scale; as data, so that it can be printed and undone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchpeek.errors import InputError, PictureError
from torchpeek.picture import Geometry

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop the centre, scale to [0, 1], subtract `mean`, divide by `std`.

    `resize` is the length that the shorter side gets, or (height, width) to squash to, or None; `crop` is (height,
    width), padded with black where the resized picture is smaller, or None. One colour channel for each entry of
    `mean`: three, or one for grey.
    """

    resize: int | tuple[int, int] | None = 256
    crop: tuple[int, int] | None = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            got = f"mean has {len(self.mean)} entries and std {len(self.std)}"
            raise InputError(f"{got}; allowed: 1 (grey) or 3 (RGB) each")
        if 0 in self.std:
            raise InputError(f"std is {self.std}; the picture is divided by it, so no entry is 0")
        if self.interpolation not in get_args(Interpolation):
            raise InputError(f"interpolation {self.interpolation!r}; allowed: {', '.join(get_args(Interpolation))}")
        if not (self.resize is None or _is_size(self.resize) or _are_sizes(self.resize)):
            raise InputError(f"resize is {self.resize!r}; allowed: a number of pixels, (height, width), None")
        if not (self.crop is None or _are_sizes(self.crop)):
            raise InputError(f"crop is {self.crop!r}; allowed: (height, width), None")

    def __call__(self, image: Image.Image) -> tuple[Tensor, Geometry]:
        """The input (1, C, H, W), and where in the image it lies."""
        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        width, height = self._resized_size(image.size)
        if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise PictureError(
                f"{image.width} x {image.height} is too long for its width: as the model wants it, it would be "
                f"resized to {width} x {height}. Next: cut it to the part that matters"
            )
        resized = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = 0, 0
        if self.crop is not None:
            # As torchvision rounds: half pixels go to the even side; where there is too little, to the top left.
            left, top = (
                _crop_start(have, want) for have, want in zip((width, height), reversed(self.crop), strict=True)
            )
            resized = resized.crop((left, top, left + self.crop[1], top + self.crop[0]))
        scale_x, scale_y = image.width / width, image.height / height
        box = (left * scale_x, top * scale_y, (left + resized.width) * scale_x, (top + resized.height) * scale_y)
        return self._scaled(resized), Geometry(image.size, box)

    def __str__(self) -> str:
        steps = []
        if self.resize is not None:
            size = (
                f"{self.resize}, shorter side"
                if isinstance(self.resize, int)
                else f"{self.resize[0]} x {self.resize[1]}"
            )
            steps.append(f"resize to {size} ({self.interpolation}, antialiased)")
        if self.crop is not None:
            steps.append(f"crop the centre {self.crop[0]} x {self.crop[1]}")
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return "; ".join([*steps, f"mean {mean}; std {std}"])

    def _resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        width, height = size
        if self.resize is None:
            return size
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize

    def _scaled(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, -1)  # (H, W, C), uint8
        tensor = pixels.permute(2, 0, 1).contiguous().float().div(255)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return ((tensor - mean) / std).unsqueeze(0)


def _crop_start(have: int, want: int) -> int:
    return round((have - want) / 2.0) if have >= want else -((want - have) // 2)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_sizes(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_size, value))

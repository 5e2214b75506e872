"""How a picture becomes the input of a detector that resizes and pads it itself, as torchvision's do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor, nn

from torchpeek.engine import takes_a_list
from torchpeek.models.preprocess import Preprocess
from torchpeek.picture import Geometry

_UNSCALED = Preprocess(resize=None, crop=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True, eq=False)
class DetectorPreprocess:
    """The whole picture in [0, 1], as it is; the Geometry is that of what the detector makes of it inside.

    Its layers see the picture resized, and padded on the right and at the bottom: so the box reaches beyond the picture
    where there is padding, and what a layer returned lies right on the picture.
    """

    transform: Any  # torchvision's GeneralizedRCNNTransform; asked at each picture, as its sizes may be set later

    def __call__(self, image: Image.Image) -> tuple[Tensor, Geometry]:
        """The input (1, 3, H, W), and where in the image that of the layers inside lies."""
        tensor, _ = _UNSCALED(image)
        resized = self._resized_size(image.size)
        multiple = self.transform.size_divisible
        padded = [math.ceil(side / multiple) * multiple for side in resized]
        across, down = (have * pad / small for have, pad, small in zip(image.size, padded, resized, strict=True))
        return tensor, Geometry(image.size, (0.0, 0.0, across, down))

    def _resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.transform.fixed_size is not None:
            width, height = self.transform.fixed_size
            return width, height
        # Of several sizes one is drawn in training, and the last is taken else.
        scale = min(self.transform.min_size[-1] / min(size), self.transform.max_size / max(size))
        return math.floor(size[0] * scale), math.floor(size[1] * scale)

    def __str__(self) -> str:
        inside = self.transform
        if inside.fixed_size is not None:
            how = f"{inside.fixed_size[1]} x {inside.fixed_size[0]}"
        else:
            how = f"{inside.min_size[-1]}, shorter side, the longer at most {inside.max_size}"
        return f"as it is, in 0..1; inside: resize to {how}; pad to multiples of {inside.size_divisible}"


def detector_preprocess(module: nn.Module) -> DetectorPreprocess | None:
    """That of a module which resizes and pads its pictures itself; None of another."""
    return DetectorPreprocess(module.transform) if takes_a_list(module) else None

"""The preprocessing of detectors that resize and pad pictures themselves, like torchvision's."""

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
    """The whole picture in [0, 1], with the Geometry of the resized and padded picture inside the detector.

    The detector's layers see the picture resized, and padded on the right and at the bottom. So the box reaches beyond
    the picture by the padding, and a layer's output is placed correctly on the picture.
    """

    transform: Any  # torchvision's GeneralizedRCNNTransform, read at each picture, because its sizes may be set later

    def __call__(self, image: Image.Image) -> tuple[Tensor, Geometry]:
        """Return the input (1, 3, H, W), and which part of the image the inner layers see."""
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
        # Of several sizes, training draws one, and evaluation takes the last.
        scale = min(self.transform.min_size[-1] / min(size), self.transform.max_size / max(size))
        return math.floor(size[0] * scale), math.floor(size[1] * scale)

    def __str__(self) -> str:
        inside = self.transform
        if inside.fixed_size is not None:
            resized_to = f"{inside.fixed_size[1]} x {inside.fixed_size[0]}"
        else:
            resized_to = f"{inside.min_size[-1]}, shorter side, the longer at most {inside.max_size}"
        return f"as it is, in 0..1; inside: resize to {resized_to}; pad to multiples of {inside.size_divisible}"


def detector_preprocess(module: nn.Module) -> DetectorPreprocess | None:
    """Return the preprocessing of a module that resizes and pads pictures itself; None for any other."""
    return DetectorPreprocess(module.transform) if takes_a_list(module) else None

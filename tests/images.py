"""Images that several tests use."""

from __future__ import annotations

import torch
from PIL import Image


def noise(size: tuple[int, int]) -> Image.Image:
    """Smooth colour noise, the same for a size every time."""
    width, height = size
    generator = torch.Generator().manual_seed(width * 1000 + height)
    small = torch.randint(0, 256, (height // 4 + 1, width // 4 + 1, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize(size, Image.Resampling.BICUBIC)

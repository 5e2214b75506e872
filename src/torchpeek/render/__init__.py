"""From tensors to pictures: uint8 RGB, as PIL images, and pages of them."""

from torchpeek.render.colormaps import COLORMAPS
from torchpeek.render.mosaic import mosaic
from torchpeek.render.overlay import extract, overlay, placed

__all__ = ["COLORMAPS", "extract", "mosaic", "overlay", "placed"]

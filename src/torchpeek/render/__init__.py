"""Pictures of tensors: PIL images in uint8 RGB, HTML pages, and plots."""

from torchpeek.render.colormaps import COLORMAPS
from torchpeek.render.curves import curves
from torchpeek.render.grids import feature_grid, kernel_grid
from torchpeek.render.mosaic import mosaic
from torchpeek.render.overlay import extract, overlay, placed
from torchpeek.render.plots import gradient_flow, histograms
from torchpeek.render.signal import signal
from torchpeek.render.training import training_flow
from torchpeek.render.volumes import filmstrip, montage

__all__ = [
    "COLORMAPS",
    "curves",
    "extract",
    "feature_grid",
    "filmstrip",
    "gradient_flow",
    "histograms",
    "kernel_grid",
    "montage",
    "mosaic",
    "overlay",
    "placed",
    "signal",
    "training_flow",
]

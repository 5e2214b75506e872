"""Checks of the options that say how pictures are drawn, made before any work starts."""

from __future__ import annotations

from torchpeek.cli.options import OverlayOptions
from torchpeek.errors import OptionError
from torchpeek.render import COLORMAPS
from torchpeek.render.colormaps import DIVERGING


def check_overlay(options: OverlayOptions) -> None:
    """Raise OptionError for a colormap that does not exist, or options that contradict each other."""
    if options.colormap not in COLORMAPS:
        raise OptionError(f"--colormap is one of {', '.join(COLORMAPS)}; got {options.colormap}")
    if options.fade and options.even:
        raise OptionError("--fade and --even are opposites; give one of them, or none, as --fade is the default")
    if options.signed and options.colormap not in ("viridis", DIVERGING):
        raise OptionError(f"--signed is drawn in the colormap {DIVERGING}; leave --colormap {options.colormap} out")


def check_grid(*, most: int, scale: str, colormap: str = "viridis") -> None:
    """Raise OptionError for options that no grid of kernels or feature maps can have."""
    if most < 1:
        raise OptionError(f"--most is {most}; allowed: 1 or more")
    if scale not in ("shared", "each"):
        raise OptionError(f"no scale {scale!r}; allowed: --scale shared, --scale each")
    if colormap not in COLORMAPS:
        raise OptionError(f"--colormap is one of {', '.join(COLORMAPS)}; got {colormap}")

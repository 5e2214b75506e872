"""Checks of the options that say how pictures are drawn, made before any work starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchpeek.cli.option_values import layer_names
from torchpeek.cli.options import FeatureMapOptions, OverlayOptions, TargetOptions
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


def check_grid(*, scale: str, colormap: str | None = None) -> None:
    """Raise OptionError for options that no grid of kernels or feature maps can have."""
    if scale not in ("shared", "each"):
        raise OptionError(f"no scale {scale!r}; allowed: --scale shared, --scale each")
    if colormap is not None and colormap not in COLORMAPS:
        raise OptionError(f"--colormap is one of {', '.join(COLORMAPS)}; got {colormap}")


def feature_grid_options(drawing: FeatureMapOptions, target: TargetOptions) -> dict[str, Any]:
    """The options of `feature_grid`. Raises OptionError for those that no grid can have, or for an unused score."""
    check_grid(scale=drawing.scale, colormap=drawing.colormap)
    if drawing.sort not in ("index", "contribution"):
        raise OptionError(f"no sort {drawing.sort!r}; allowed: --sort index, --sort contribution")
    if drawing.clip is not None and not 0 <= drawing.clip[0] < drawing.clip[1] <= 100:
        low, high = drawing.clip
        raise OptionError(
            f"--clip is {low:g} {high:g}; allowed: two percentiles from 0 to 100, the lower one first: --clip 1 99"
        )
    if drawing.sort == "index" and target != TargetOptions():
        raise OptionError(
            "the score that is named, such as by --class, is what --sort contribution sorts by; add --sort "
            "contribution, or leave the score out"
        )
    if (count := max(len(each or ()) for each in (target.classes, target.boxes, target.texts))) > 1:
        raise OptionError(f"--sort contribution sorts by one score; got {count}. Run it once for each")
    return {
        "channels": _channel_indices(drawing.channels),
        "sort": drawing.sort,
        "most": drawing.most,
        "scale": drawing.scale,
        "clip": drawing.clip,
        "colormap": drawing.colormap,
    }


def _channel_indices(values: Sequence[str] | None) -> list[int] | None:
    """The indices of a repeated --channels, each of which may hold several with commas between them."""
    words = layer_names(values)
    wrong = [word for word in words or () if not word.isdecimal()]
    if wrong:
        raise OptionError(f"--channels is {wrong[0]!r}; allowed: indices from 0, such as --channels 3,17,250")
    return None if words is None else list(map(int, words))

"""Overlay: a heatmap on the picture that it explains."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from torchpeek.errors import InputError, OptionError
from torchpeek.heatmap import Heatmap
from torchpeek.picture import Geometry, Picture
from torchpeek.render.colormaps import DIVERGING, coloured
from torchpeek.render.text import stamped

Plane: TypeAlias = npt.NDArray[np.float32]  # (H, W)


def overlay(
    picture: Picture | Image.Image,
    heatmap: Heatmap,
    *,
    colormap: str = "viridis",
    alpha: float = 0.5,
    fade: bool = False,
    limit: float | None = None,
) -> Image.Image:
    """Draw a heatmap over the whole original picture.

    A sequential colormap shows positive values, `heatmap.positive()`, from 0 to `limit`. The colormap "diverging" shows
    signed values from -limit to limit. What the preprocessing cropped away stays as it is. If the weights are random,
    the picture says so.

    Args:
        picture: A Picture, or a PIL image, which is taken to be shown to the model as a whole.
        heatmap: A heatmap of one sample and score, `heatmap[n, k]`: values (1, 1, h, w).
        colormap: A key of `render.COLORMAPS`.
        alpha: How much of the colour is mixed in, from 0 (the picture) to 1 (the colour).
        fade: Whether the colour is mixed in proportion to the value, up to `alpha`.
        limit: The value of the last colour. None is the map's own largest. Give one to compare maps.

    Returns:
        A PIL image in RGB, in the size of the original picture.

    Raises:
        InputError: When `picture` is something else, or the heatmap has several maps.
        OptionError: When `alpha` is out of range, or there is no such colormap.

    Example:
        >>> from PIL import Image
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0")
        >>> tp.render.overlay(Image.new("RGB", (64, 48)), heatmap[0, 0]).size
        (64, 48)
    """
    if not 0 <= alpha <= 1:
        raise OptionError(f"alpha is {alpha}; allowed: 0 (the picture) to 1 (the colour)")
    image, geometry = _image_of(picture)
    heat = placed(_one_map(heatmap), geometry)  # (H, W), NaN outside of the model's input
    unit = _scaled(heat, limit, signed=colormap == DIVERGING)
    strength = np.abs(unit * 2 - 1) if colormap == DIVERGING else unit
    weight = np.where(np.isnan(heat), np.float32(0), alpha * strength if fade else np.float32(alpha))
    mask = Image.fromarray(np.rint(weight * 255).astype(np.uint8))
    return _stamped_if_random(Image.composite(Image.fromarray(coloured(unit, colormap)), image, mask), heatmap)


def extract(picture: Picture | Image.Image, heatmap: Heatmap) -> Image.Image:
    """Multiply the picture by the heatmap, so that everything without positive values is black.

    The factor is `heatmap.positive()` scaled to a maximum of 1. It is 0 outside of the model's input.

    Args:
        picture: A Picture, or a PIL image, which is taken to be shown to the model as a whole.
        heatmap: A heatmap of one sample and score, `heatmap[n, k]`: values (1, 1, h, w).

    Returns:
        A PIL image in RGB, in the size of the original picture.

    Raises:
        InputError: When `picture` is something else, or the heatmap has several maps.

    Example:
        >>> from PIL import Image
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0")
        >>> tp.render.extract(Image.new("RGB", (64, 48)), heatmap[0, 0]).size
        (64, 48)
    """
    image, geometry = _image_of(picture)
    factor = _scaled(placed(_one_map(heatmap), geometry), None, signed=False)
    mask = Image.fromarray(np.rint(np.nan_to_num(factor) * 255).astype(np.uint8))
    return _stamped_if_random(Image.composite(image, Image.new("RGB", image.size), mask), heatmap)


def placed(values: Tensor, geometry: Geometry) -> Plane:
    """Interpolate a map to every pixel of the original image, bilinearly.

    The cells of the grid tile the input evenly, and a value belongs to the centre of its cell. Beyond the centres of
    the outermost cells, their values are continued.

    Args:
        values: The map, (h, w).
        geometry: Which part of the original image the model's input shows.

    Returns:
        A NumPy array (H, W), float32, NaN outside of the model's input.

    Example:
        >>> geometry = tp.Geometry(size=(4, 2), box=(1.0, 0.0, 3.0, 2.0))
        >>> np.isnan(tp.render.placed(torch.ones(1, 1), geometry)[0]).tolist()
        [True, False, False, True]
    """
    width, height = geometry.size
    left, top, right, bottom = geometry.box
    rows, rows_in_box = _interpolation(height, top, bottom, values.shape[0])  # (H, h), (H,)
    columns, columns_in_box = _interpolation(width, left, right, values.shape[1])  # (W, w), (W,)
    plane = rows @ values.detach().float().cpu().numpy() @ columns.T  # (H, W)
    return np.where(rows_in_box[:, None] & columns_in_box, plane, np.float32(np.nan))


def _interpolation(pixels: int, start: float, stop: float, cells: int) -> tuple[Plane, npt.NDArray[np.bool_]]:
    """Return the weights (pixels, cells) of linear interpolation on one axis, and which pixels are in [start, stop]."""
    middles = np.arange(pixels) + 0.5
    position = np.clip((middles - start) / (stop - start) * cells - 0.5, 0, cells - 1)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells))).astype(np.float32)
    return weights, (middles > start) & (middles < stop)


def _scaled(heat: Plane, limit: float | None, *, signed: bool) -> Plane:
    """Scale values from 0 to limit, or from -limit to limit, to [0, 1]."""
    size = np.abs(heat) if signed else heat
    top = float(np.nanmax(size, initial=0)) if limit is None else limit
    unit = np.clip(heat / top, -1 if signed else 0, 1) if top > 0 else heat * 0
    return ((unit + 1) / 2 if signed else unit).astype(np.float32)


def _image_of(picture: Picture | Image.Image) -> tuple[Image.Image, Geometry]:
    if isinstance(picture, Picture):
        return picture.image, picture.geometry
    if isinstance(picture, Image.Image):
        return picture.convert("RGB"), Geometry.whole(picture.size)
    raise InputError(f"picture is a {type(picture).__name__}; allowed: a Picture (LoadedModel.read) or a PIL image")


def _one_map(heatmap: Heatmap) -> Tensor:
    if heatmap.values.shape[:2] != (1, 1) or heatmap.values.ndim != 4:
        raise InputError(
            f"heatmap has values of shape {tuple(heatmap.values.shape)}; allowed: one map (1, 1, h, w). Next: give "
            "heatmap[n, k]"
        )
    return heatmap.values[0, 0]


def _stamped_if_random(image: Image.Image, heatmap: Heatmap) -> Image.Image:
    return stamped(image, "random weights") if heatmap.provenance.weights == "random" else image

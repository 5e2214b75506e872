"""A heatmap on the picture that it explains."""

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
    """The heat over the whole original picture, as an RGB image of its size.

    A sequential colormap shows what speaks for the class, `heatmap.positive()`, from 0 to `limit`; "diverging" shows
    signed values from -limit to limit. `limit` is the map's own largest, unless given: give one to compare maps.
    `alpha` is how much of the heat is mixed in; with `fade` it grows with the value, up to alpha. What the model was
    not shown, because the preprocessing cropped it away, stays as it was. Give one sample and score, `heatmap[n, k]`;
    for a plain image, the model is taken to have seen all of it. Untrained weights are written on the picture.
    """
    if not 0 <= alpha <= 1:
        raise OptionError(f"alpha is {alpha}; allowed: 0 (the picture) to 1 (the heat)")
    image, geometry = _image_of(picture)
    heat = placed(_one_map(heatmap), geometry)  # (H, W), NaN where the model saw nothing
    unit = _scaled(heat, limit, signed=colormap == DIVERGING)
    strength = np.abs(unit * 2 - 1) if colormap == DIVERGING else unit
    weight = np.where(np.isnan(heat), np.float32(0), alpha * strength if fade else np.float32(alpha))
    mask = Image.fromarray(np.rint(weight * 255).astype(np.uint8))
    return _stamped_if_random(Image.composite(Image.fromarray(coloured(unit, colormap)), image, mask), heatmap)


def extract(picture: Picture | Image.Image, heatmap: Heatmap) -> Image.Image:
    """The picture times the heatmap: only what speaks for the class, the rest black.

    The factor is `heatmap.positive()` scaled to a maximum of 1, and 0 where the model saw nothing.
    """
    image, geometry = _image_of(picture)
    factor = _scaled(placed(_one_map(heatmap), geometry), None, signed=False)
    mask = Image.fromarray(np.rint(np.nan_to_num(factor) * 255).astype(np.uint8))
    return _stamped_if_random(Image.composite(image, Image.new("RGB", image.size), mask), heatmap)


def placed(values: Tensor, geometry: Geometry) -> Plane:
    """A map (h, w) at every pixel of the original image: (H, W), bilinear, NaN outside of what the model was shown.

    The cells of the grid tile the input evenly, so a value belongs to the middle of its cell; further out than the
    middle of the outermost cells, theirs goes on.
    """
    width, height = geometry.size
    left, top, right, bottom = geometry.box
    rows, rows_in_box = _interpolation(height, top, bottom, values.shape[0])  # (H, h), (H,)
    columns, columns_in_box = _interpolation(width, left, right, values.shape[1])  # (W, w), (W,)
    plane = rows @ values.detach().float().cpu().numpy() @ columns.T  # (H, W)
    return np.where(rows_in_box[:, None] & columns_in_box, plane, np.float32(np.nan))


def _interpolation(pixels: int, start: float, stop: float, cells: int) -> tuple[Plane, npt.NDArray[np.bool_]]:
    """The weights (pixels, cells) of linear interpolation along one axis, and which pixels lie in [start, stop]."""
    middles = np.arange(pixels) + 0.5
    position = np.clip((middles - start) / (stop - start) * cells - 0.5, 0, cells - 1)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells))).astype(np.float32)
    return weights, (middles > start) & (middles < stop)


def _scaled(heat: Plane, limit: float | None, *, signed: bool) -> Plane:
    """To [0, 1]: from 0 to limit, or from -limit to limit."""
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
            f"heatmap has values of shape {tuple(heatmap.values.shape)}; a picture shows one map (1, 1, h, w): take "
            "heatmap[n, k]"
        )
    return heatmap.values[0, 0]


def _stamped_if_random(image: Image.Image, heatmap: Heatmap) -> Image.Image:
    return stamped(image, "random weights") if heatmap.provenance.weights == "random" else image

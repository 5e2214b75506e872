"""Overlay: a heatmap on the picture that it explains."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from torchpeek.argument_types import Allowed, Number
from torchpeek.errors import InputError, shown
from torchpeek.keywords import checked_keywords
from torchpeek.picture import Geometry, draw_outline
from torchpeek.render.canvas import Canvas, Flat, as_numpy, canvas_of, interpolation, one_map
from torchpeek.render.colormaps import DIVERGING, Colormap, Plane
from torchpeek.render.heatmap_like import HeatmapLike
from torchpeek.render.scale import ColourScale, Limit, scale_of, sign_words, with_colorbar
from torchpeek.render.slices import Axis, Stack, slices_of
from torchpeek.render.text import stamped
from torchpeek.tensor_formats import dense

_BAND = 1 << 21  # pixels that are coloured at a time, so that a huge picture needs little more memory than its own

Alpha: TypeAlias = Annotated[float, Number(most=1), Allowed("0 (the picture) to 1 (the colour)")]
"""The share of the colour in an overlay."""


@checked_keywords
def overlay(
    picture: Flat | Stack,
    heatmap: HeatmapLike,
    *,
    colormap: Colormap = "viridis",
    alpha: Alpha = 0.6,
    fade: bool = True,
    limit: Limit | None = None,
    signed: bool = False,
    colorbar: bool = False,
    edge: bool = True,
    enlarge: bool = True,
    index: int | None = None,
    axis: Axis = 0,
) -> Image.Image:
    """Draw a heatmap over the whole original picture.

    The colour is mixed in, in proportion to the value, so that the picture stays as it is where the map is zero. A
    sequential colormap shows positive values, `heatmap.positive()`, from 0 to `limit`. Signed values are shown from
    -limit to limit, in the colormap "diverging". What the preprocessing cropped away stays as it is, beyond a thin
    white and black line. If the weights are random, the picture says so.

    Of a volume or a video, one slice or frame is drawn. The scale is that of the whole map.

    Args:
        picture: A Picture. Or a PIL image or the tensor of one sample, which are taken to be shown to the model as a
            whole; a tensor is drawn in RGB or grey, from its lowest to its highest value. For a grid of three axes: the
            tensor of a volume (C, D, H, W), of a video (C, T, H, W) or of frames (T, C, H, W), or a sequence of frames.
        heatmap: A heatmap of one sample and score, `heatmap[n, k]`: values (1, 1, h, w) or (1, 1, d, h, w).
        colormap: A key of `render.COLORMAPS`.
        alpha: How much of the colour is mixed in, from 0 (the picture) to 1 (the colour).
        fade: Whether the colour is mixed in proportion to the value, up to `alpha`. False is an even mix.
        limit: The value of the last colour, which larger values have, too. Give one to compare maps. None is the map's
            own largest. In a fine map, of 1000 positions or more, where less than 1 % of them are above half of that,
            it is the value that 1 % exceed.
        signed: Whether negative values are drawn, too, in the colormap "diverging".
        colorbar: Whether a colour bar with the map's values is drawn below the picture.
        edge: Whether a thin line marks what the model saw, where that is not the whole picture.
        enlarge: Whether pictures whose longer side is below 224 pixels are enlarged by a whole factor.
        index: Which slice or frame is drawn. None is the one with the highest value, and the picture says which it is.
        axis: The axis of the volume along which `index` counts: 0 (depth or time), 1 (rows) or 2 (columns).

    Returns:
        A PIL image in RGB, in the size of the original picture, times the factor by which it is enlarged. The colour
        bar comes below.

    Raises:
        InputError: When `picture` is something else, or the heatmap has several maps.
        OptionError: When an option has a value that is not allowed.

    Example:
        >>> from PIL import Image
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0", target=2)
        >>> tp.render.overlay(Image.new("RGB", (640, 480)), heatmap[0, 0], signed=True).size
        (640, 480)
    """
    if index is None and axis == 0 and heatmap.values.ndim != 5:
        canvas, values, words = canvas_of(picture), one_map(heatmap, 2), ""
    else:
        slices = slices_of(picture, heatmap, axis)
        index = slices.strongest(signed=signed or colormap == DIVERGING) if index is None else slices.checked(index)
        canvas, values, words = slices.canvas(index), slices.values(index), slices.name(index)
    scale = scale_of(heatmap, colormap=colormap, limit=limit, signed=signed)
    drawn = drawn_over(canvas.enlarged() if enlarge else canvas, values, scale, alpha=alpha, fade=fade, edge=edge)
    drawn = stamped_if_random(stamped(drawn, words) if words else drawn, heatmap)
    words = sign_words(heatmap, scale, beside=colorbar)
    return with_colorbar(drawn, scale, words) if colorbar else drawn


@checked_keywords
def extract(picture: Flat, heatmap: HeatmapLike, *, enlarge: bool = True) -> Image.Image:
    """Multiply the picture by the heatmap, so that everything without positive values is black.

    The factor is `heatmap.positive()` divided by the end of the scale that `overlay` has, at most 1. It is 0 outside of
    the model's input.

    Args:
        picture: A Picture. Or a PIL image or the tensor of one sample, which are taken to be shown to the model as a
            whole.
        heatmap: A heatmap of one sample and score, `heatmap[n, k]`: values (1, 1, h, w).
        enlarge: Whether pictures whose longer side is below 224 pixels are enlarged by a whole factor.

    Returns:
        A PIL image in RGB, in the size of the original picture, times the factor by which it is enlarged.

    Raises:
        InputError: When `picture` is something else, or the heatmap has several maps.

    Example:
        >>> from PIL import Image
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0", target=2).unit()
        >>> tp.render.extract(Image.new("RGB", (640, 480)), heatmap[0, 0]).size
        (640, 480)
    """
    values = one_map(heatmap, 2)
    canvas = canvas_of(picture)
    canvas = canvas.enlarged() if enlarge else canvas
    scale = scale_of(heatmap, colormap="viridis", limit=None, signed=False)
    sign_words(heatmap, scale)
    factor = scale.unit(placed(values, canvas.geometry))
    mask = Image.fromarray(np.rint(np.nan_to_num(factor) * 255).astype(np.uint8))
    return stamped_if_random(Image.composite(canvas.image, Image.new("RGB", canvas.image.size), mask), heatmap)


@checked_keywords
def placed(values: Tensor, geometry: Geometry) -> Plane:
    """Interpolate a map to every pixel of the original image, bilinearly.

    The cells of the grid tile the input evenly, and a value belongs to the centre of its cell. Beyond the centres of
    the outermost cells, their values are continued.

    Args:
        values: The map, (h, w).
        geometry: Which part of the original image the model's input shows.

    Returns:
        A NumPy array (H, W), float32, NaN outside of the model's input.

    Raises:
        InputError: When `values` is something else.

    Example:
        >>> geometry = tp.Geometry(size=(4, 2), box=(1.0, 0.0, 3.0, 2.0))
        >>> np.isnan(tp.render.placed(torch.ones(1, 1), geometry)[0]).tolist()
        [True, False, False, True]
    """
    values = dense(values, "values")
    if values.ndim != 2 or not values.numel() or values.is_complex():
        raise InputError(f"values is {shown(values)}; allowed: a map (h, w) of real numbers")
    width, height = geometry.size
    left, top, right, bottom = geometry.inside
    plane = np.full((height, width), np.float32(np.nan))
    rows, columns = _weights(values, geometry)
    plane[top:bottom, left:right] = rows @ as_numpy(values) @ columns.T
    return plane


def drawn_over(
    canvas: Canvas, values: Tensor, scale: ColourScale, *, alpha: float, fade: bool, edge: bool
) -> Image.Image:
    """Return a copy of the canvas's image with a map (h, w) drawn over it."""
    image = canvas.image.copy()
    left, top, right, bottom = canvas.geometry.inside
    rows, columns = _weights(values, canvas.geometry)  # (H, h), (W, w) of the pixels that the model saw
    heat = np.nan_to_num(as_numpy(values)) @ columns.T  # (h, W)
    band = max(1, _BAND // max(1, right - left))  # rows
    for start in range(top, bottom, band):
        stop = min(start + band, bottom)
        part = image.crop((left, start, right, stop))
        image.paste(scale.mixed(part, rows[start - top : stop - top] @ heat, alpha, fade=fade), (left, start))
    if edge and alpha > 0:
        draw_outline(image, (left, top, right, bottom))
    return image


def stamped_if_random(image: Image.Image, heatmap: HeatmapLike) -> Image.Image:
    """Return the image, which says so where the weights are random."""
    name, comma, seed = heatmap.provenance.weights.partition(", seed ")
    return stamped(image, f"random weights{comma}{seed}") if name == "random" else image


def _weights(values: Tensor, geometry: Geometry) -> tuple[Plane, Plane]:
    """Return the weights of the rows (H, h) and the columns (W, w), of the pixels that the input shows."""
    (width, height), (left, top, right, bottom) = geometry.size, geometry.box
    first_column, first_row, last_column, last_row = geometry.inside
    rows = interpolation(height, top, bottom, values.shape[0])[first_row:last_row]
    return rows, interpolation(width, left, right, values.shape[1])[first_column:last_column]

"""Volumes and videos: several slices or frames on one sheet, each with its heat."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from torchpeek.argument_types import PositiveInt, Side
from torchpeek.errors import OptionError
from torchpeek.keywords import checked_keywords
from torchpeek.render.colormaps import Colormap
from torchpeek.render.heatmap_like import HeatmapLike
from torchpeek.render.mosaic import mosaic
from torchpeek.render.overlay import Alpha, drawn_over, stamped_if_random
from torchpeek.render.scale import Limit, scale_of, sign_words, with_colorbar
from torchpeek.render.slices import Axis, Slices, Stack, slices_of

_FONT = 13  # of the colour bar


@checked_keywords
def filmstrip(
    frames: Stack,
    heatmap: HeatmapLike,
    *,
    most: PositiveInt = 8,
    indices: Sequence[int] | None = None,
    width: Side = 160,
    colormap: Colormap = "viridis",
    alpha: Alpha = 0.6,
    fade: bool = True,
    limit: Limit | None = None,
    signed: bool = False,
) -> Image.Image:
    """Draw frames of a video in a row, and below each the same frame with its heat.

    All frames have one scale, and the colour bar below gives it in numbers.

    Args:
        frames: A video (C, T, H, W) or frames (T, C, H, W), also with a batch axis of 1, or a sequence of frames:
            Pictures or PIL images. A tensor is drawn in RGB or grey, from its lowest to its highest value.
        heatmap: A heatmap of one sample and score, `heatmap[n, k]`: values (1, 1, t, h, w). Between the frames of the
            grid, the map is interpolated.
        most: Largest number of frames, evenly spaced from the first to the last.
        indices: The frames that are drawn. None is all, or as many as `most`.
        width: Width of each frame, in pixels.
        colormap: A key of `render.COLORMAPS`.
        alpha: How much of the colour is mixed in, from 0 (the frame) to 1 (the colour).
        fade: Whether the colour is mixed in proportion to the value, up to `alpha`. False is an even mix.
        limit: The value of the last colour, as for `overlay`. None is the map's own, over all frames.
        signed: Whether negative values are drawn, too, in the colormap "diverging".

    Returns:
        A PIL image in RGB.

    Raises:
        InputError: When `frames` is something else, or the heatmap has several maps or another grid.
        OptionError: When an option has a value that is not allowed.

    Example:
        >>> model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        >>> video = torch.rand(1, 3, 8, 16, 16)
        >>> heatmap = tp.explain(model, video, layer="0", target=2).unit()
        >>> tp.render.filmstrip(video, heatmap[0, 0], most=3, width=100).width
        332
    """
    slices = slices_of(frames, heatmap, 0, "frame")
    chosen = _chosen(slices, most, indices)
    scale = scale_of(heatmap, colormap=colormap, limit=limit, signed=signed)
    canvases = [slices.canvas(index).enlarged() for index in chosen]
    heat = [
        drawn_over(canvas, slices.values(index), scale, alpha=alpha, fade=fade, edge=True)
        for canvas, index in zip(canvases, chosen, strict=True)
    ]
    names = [f"frame {index}" for index in chosen]
    pictures = [*(canvas.image for canvas in canvases), *heat]
    sheet = mosaic(pictures, [*names, *(["heat"] * len(heat))], columns=len(chosen), width=width)
    return with_colorbar(stamped_if_random(sheet, heatmap), scale, sign_words(heatmap, scale), size=_FONT)


@checked_keywords
def montage(
    volume: Stack,
    heatmap: HeatmapLike,
    *,
    axis: Axis = 0,
    most: PositiveInt = 16,
    indices: Sequence[int] | None = None,
    columns: PositiveInt | None = None,
    width: Side = 160,
    colormap: Colormap = "viridis",
    alpha: Alpha = 0.6,
    fade: bool = True,
    limit: Limit | None = None,
    signed: bool = False,
) -> Image.Image:
    """Draw slices of a volume with their heat in a near-square grid.

    All slices have one range of grey values and one scale of colours. The colour bar below gives the scale in numbers.

    Args:
        volume: A volume (C, D, H, W), also with a batch axis of 1, or without C. It is drawn in grey, or in RGB if C is
            3, from its lowest to its highest value. A video or a sequence of frames are taken, too.
        heatmap: A heatmap of one sample and score, `heatmap[n, k]`: values (1, 1, d, h, w). Between the slices of the
            grid, the map is interpolated.
        axis: The axis that is cut: 0 (depth), 1 (rows) or 2 (columns).
        most: Largest number of slices, evenly spaced from the first to the last.
        indices: The slices that are drawn. None is all, or as many as `most`.
        columns: Number of slices in a row. None is about the square root of their number.
        width: Width of each slice, in pixels.
        colormap: A key of `render.COLORMAPS`.
        alpha: How much of the colour is mixed in, from 0 (the slice) to 1 (the colour).
        fade: Whether the colour is mixed in proportion to the value, up to `alpha`. False is an even mix.
        limit: The value of the last colour, as for `overlay`. None is the map's own, over all slices.
        signed: Whether negative values are drawn, too, in the colormap "diverging".

    Returns:
        A PIL image in RGB.

    Raises:
        InputError: When `volume` is something else, or the heatmap has several maps or another grid.
        OptionError: When an option has a value that is not allowed.

    Example:
        >>> model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        >>> scan = torch.rand(1, 1, 8, 16, 16)
        >>> heatmap = tp.explain(model, scan, layer="0", target=2).unit()
        >>> tp.render.montage(scan, heatmap[0, 0], most=4, width=100).width
        224
    """
    slices = slices_of(volume, heatmap, axis)
    chosen = _chosen(slices, most, indices)
    scale = scale_of(heatmap, colormap=colormap, limit=limit, signed=signed)
    pictures = [
        drawn_over(slices.canvas(index).enlarged(), slices.values(index), scale, alpha=alpha, fade=fade, edge=True)
        for index in chosen
    ]
    sheet = mosaic(pictures, [f"{slices.noun} {index}" for index in chosen], columns=columns, width=width)
    return with_colorbar(stamped_if_random(sheet, heatmap), scale, sign_words(heatmap, scale), size=_FONT)


def _chosen(slices: Slices, most: int, indices: Sequence[int] | None) -> list[int]:
    if indices is not None:
        if not len(indices):
            raise OptionError("indices is empty; name at least one, or None for all")
        return [slices.checked(index) for index in indices]
    count, last = min(most, len(slices)), len(slices) - 1
    if count == 1:
        return [last // 2]
    return [round(number * last / (count - 1)) for number in range(count)]

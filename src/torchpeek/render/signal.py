"""Signal: the curves of a signal's channels, and the heat below them."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchpeek.argument_types import Allowed, PositiveInt, Whole
from torchpeek.errors import InputError
from torchpeek.keywords import checked_keywords
from torchpeek.render.canvas import as_numpy, channels_first, interpolation, value_range
from torchpeek.render.colormaps import Colormap, Plane, coloured
from torchpeek.render.heatmap_like import HeatmapLike
from torchpeek.render.overlay import stamped_if_random
from torchpeek.render.scale import Limit, scale_of, sign_words, with_colorbar

_LINE = (30, 60, 100)
_MARGIN, _STRIP, _TICKS = 64, 28, 20  # pixels: room for the names, height of the heat and of the numbers below it
_FONT = 12


@checked_keywords
def signal(
    values: Annotated[Tensor, Allowed("the tensor of one sample, (C, T)")],
    heatmap: HeatmapLike,
    *,
    colormap: Colormap = "viridis",
    limit: Limit | None = None,
    signed: bool = False,
    most: PositiveInt = 16,
    width: Annotated[int, Whole(4 * _MARGIN, 10_000)] = 960,
    height: Annotated[int, Whole(8, 10_000)] = 90,
) -> Image.Image:
    """Draw the channels of a signal as curves, one below the other, and the heat as a strip below them.

    All channels have one range, from the lowest to the highest value of those that are drawn. Where there are more
    samples than pixels, a pixel's line reaches from the lowest to the highest of its samples, so that no peak is lost.
    The strip and the colour bar give the heat.

    Args:
        values: The signal that the model took: (C, T), (1, C, T), (T,), or with axes of length 1, such as (1, C, 1, T).
        heatmap: A heatmap of one sample and score, `heatmap[n, k]`: values (1, 1, t), or with a further axis of
            length 1. Between the positions of the grid, the map is interpolated.
        colormap: A key of `render.COLORMAPS`.
        limit: The value of the last colour, as for `overlay`. None is the map's own.
        signed: Whether negative values are drawn, too, in the colormap "diverging".
        most: Largest number of channels to draw.
        width: Width of the picture, in pixels.
        height: Height of each channel, in pixels.

    Returns:
        A PIL image in RGB.

    Raises:
        InputError: When `values` is something else, or the heatmap has several maps or another grid.
        OptionError: When an option has a value that is not allowed.

    Example:
        >>> model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        >>> signals = torch.rand(1, 2, 50)
        >>> heatmap = tp.explain(model, signals, layer="0", target=3).unit()
        >>> tp.render.signal(signals, heatmap[0, 0]).width
        960
    """
    heat = _heat(heatmap)  # t
    channels = _channels(values, heatmap.values.ndim - 2)  # (C, T)
    scale = scale_of(heatmap, colormap=colormap, limit=limit, signed=signed)
    shown = channels[:most]
    low, high = value_range(shown)
    samples = shown.shape[1]
    inner = width - _MARGIN - 8
    head = 24 if len(shown) < len(channels) else 8
    sheet = Image.new("RGB", (width, head + height * len(shown) + 8 + _STRIP + _TICKS), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for row, curve in enumerate(as_numpy(shown)):
        top = head + row * height
        if len(shown) > 1 or len(channels) > 1:
            draw.text((4, top + height / 2), str(row), fill="black", font=font, anchor="lm")
        for number, down in ((high, top + 3), (low, top + height - 3)) if row == 0 else ():
            draw.text((_MARGIN - 6, down), f"{number:.3g}", fill=(120, 120, 120), font=font, anchor="rm")
        draw.line((_MARGIN, top + height, _MARGIN + inner, top + height), fill=(225, 225, 225))
        _draw_curve(draw, curve, (_MARGIN, top + 4, inner, height - 8), low, high)
    top = head + height * len(shown) + 8
    draw.text((4, top + _STRIP / 2), "heat", fill="black", font=font, anchor="lm")
    middles = interpolation(inner, 0, inner, len(heat)) @ heat  # of each pixel
    strip = coloured(scale.unit(middles[None]), scale.colormap).repeat(_STRIP, axis=0)
    sheet.paste(Image.fromarray(np.ascontiguousarray(strip)), (_MARGIN, top))
    for tick in _ticks(samples):
        at = _MARGIN + (tick + 0.5) / samples * inner
        draw.line((at, top + _STRIP, at, top + _STRIP + 4), fill="black")
        anchor = "la" if tick == 0 else "ma"
        draw.text((at, top + _STRIP + 5), str(tick), fill="black", font=font, anchor=anchor)
    if len(channels) > len(shown):
        draw.text((4, 2), f"first {len(shown)} of {len(channels)} channels", fill="black", font=font)
    return with_colorbar(stamped_if_random(sheet, heatmap), scale, sign_words(heatmap, scale), size=_FONT)


def _draw_curve(
    draw: ImageDraw.ImageDraw, curve: Plane, box: tuple[int, int, int, int], low: float, high: float
) -> None:
    """Draw a curve into a box (left, top, width, height). What is not finite is a gap."""
    left, top, width, height = box
    if len(curve) > 2 * width:  # the lowest and the highest sample of each pixel
        starts = np.arange(width) * len(curve) // width
        ends = [np.minimum.reduceat(curve, starts), np.maximum.reduceat(curve, starts)]
        curve = np.stack(ends, axis=1).reshape(-1)
    across = left + (np.arange(len(curve)) + 0.5) / len(curve) * width
    down = top + (1 - ((curve - low) / (high - low) if high > low else curve * 0 + 0.5)) * height
    points: list[tuple[float, float]] = []
    for x, y in zip(across.tolist(), down.tolist(), strict=True):
        if math.isfinite(y):
            points.append((x, y))
            continue
        _draw_line(draw, points)
        points = []
    _draw_line(draw, points)


def _draw_line(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]]) -> None:
    if len(points) == 1:
        (x, y) = points[0]
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=_LINE)
    elif points:
        draw.line(points, fill=_LINE, width=1)


def _ticks(samples: int) -> list[int]:
    """Return round numbers from 0, about eight of them."""
    step: float = 10.0 ** math.floor(math.log10(max(1, samples / 8)))
    step *= next(factor for factor in (1, 2, 5, 10) if samples / (step * factor) <= 10)
    return list(range(0, samples, max(1, round(step))))


def _channels(values: Tensor, grid: int) -> Tensor:
    channels = channels_first(values, grid, "values").detach().cpu().float()  # (C, *grid)
    if any(length > 1 for length in channels.shape[1:-1]):
        raise InputError(
            f"values has shape {tuple(values.shape)}; allowed: the signal of one sample, (C, T). Next: "
            "tp.render.overlay draws a map over what has rows and columns"
        )
    return channels.flatten(1)


def _heat(heatmap: HeatmapLike) -> Plane:
    shape = tuple(heatmap.values.shape)
    if shape[:2] != (1, 1) or any(length > 1 for length in shape[2:-1]) or len(shape) < 3:
        raise InputError(
            f"heatmap has values of shape {shape}; allowed: one map with one axis, (1, 1, t). Next: heatmap[n, k]; "
            "for a grid of two axes tp.render.overlay, for one of three tp.render.montage"
        )
    return as_numpy(heatmap.values.reshape(-1))

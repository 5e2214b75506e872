"""Heatmaps as they show themselves: each over its picture, or alone where there is none; several in a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from torchpeek.html import bar, figure, fitted, html_paragraph, image_tag, side_by_side
from torchpeek.picture import Picture
from torchpeek.render.axes_plots import plot_axes
from torchpeek.render.canvas import as_numpy, enlarged, one_map
from torchpeek.render.colormaps import COLORMAPS, coloured
from torchpeek.render.heatmap_like import HeatmapLike
from torchpeek.render.mosaic import mosaic
from torchpeek.render.overlay import Alpha, overlay, stamped_if_random
from torchpeek.render.scale import scale_of, sign_words, with_colorbar
from torchpeek.render.slices import slice_name
from torchpeek.render.text import caption, stamped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 16
"""Most maps of a grid."""

_LARGE, _SMALL = 400, 240  # longest side of an image in a notebook, in pixels: of one map, and of several
_NARROWEST = 160  # pixels of a figure, so that its words have room


@dataclass(frozen=True, eq=False)
class ShownMap:
    """One map, what it lies over, and the words beside it.

    Args:
        heatmap: A heatmap of one sample and score.
        picture: What `overlay` takes, or None where the map is drawn alone.
        title: What is explained.
        lines: Further words.
    """

    heatmap: HeatmapLike
    picture: Any
    title: str
    lines: tuple[str, ...] = ()


def drawn_map(
    shown: ShownMap,
    *,
    colormap: str,
    alpha: Alpha,
    limit: float | None,
    signed: bool,
    colorbar: bool,
    fade: bool = True,
) -> Image.Image:
    """Draw one map over its picture, or alone where there is none."""
    if shown.picture is None:
        return bare_map(shown.heatmap, colormap=colormap, limit=limit, signed=signed, colorbar=colorbar)
    return overlay(
        shown.picture,
        shown.heatmap,
        colormap=colormap,
        alpha=alpha,
        fade=fade,
        limit=limit,
        signed=signed,
        colorbar=colorbar,
    )


def bare_map(heatmap: HeatmapLike, *, colormap: str, limit: float | None, signed: bool, colorbar: bool) -> Image.Image:
    """Draw one map alone: each value is a square. A grid of one axis, or a narrow one, is a strip that can be seen.

    Of three axes, the slice across the first one is drawn that has the highest value, and the image says which it is.
    """
    scale = scale_of(heatmap, colormap=colormap, limit=limit, signed=signed)
    axes = heatmap.values.ndim - 2
    values, words = one_map(heatmap, axes).detach(), ""
    if axes == 1:
        values = values[None]
    elif axes == 3:
        index = int((values.abs() if scale.signed else values).flatten(1).amax(1).argmax())
        values, words = values[index], slice_name(index, len(values))
    drawn = _without_thin_side(enlarged(Image.fromarray(coloured(scale.unit(as_numpy(values)), scale.colormap))))
    drawn = stamped_if_random(stamped(drawn, words) if words else drawn, heatmap)
    words = sign_words(heatmap, scale, beside=colorbar)
    return with_colorbar(drawn, scale, words) if colorbar else drawn


def _without_thin_side(image: Image.Image) -> Image.Image:
    """Return the image with its shorter side at least an eighth of the longer one."""
    least = max(image.size) // 8
    size = (max(image.width, least), max(image.height, least))
    return image if size == image.size else image.resize(size, Image.Resampling.NEAREST)


def plot_map(shown: ShownMap, ax: Axes | None, *, colormap: str, alpha: float, signed: bool) -> Axes:
    """Draw one map over its picture, or alone, on matplotlib's axes, with a title and a colour bar."""
    axes = plot_axes(ax)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    image = drawn_map(shown, colormap=colormap, alpha=alpha, limit=None, signed=signed, colorbar=False)
    scale = scale_of(shown.heatmap, colormap=colormap, limit=None, signed=signed)
    axes.imshow(np.asarray(image))
    axes.set_axis_off()
    axes.set_title("\n".join([shown.title, *shown.lines]), fontsize=10)
    colours = ListedColormap(COLORMAPS[scale.colormap] / 255.0)
    norm = Normalize(-scale.limit if scale.signed else 0, scale.limit or 1)
    axes.figure.colorbar(ScalarMappable(norm, colours), ax=axes, shrink=0.8)
    return axes


def drawn_maps(maps: Sequence[ShownMap], total: int, columns: int | None = None, **style: Any) -> Image.Image:
    """Draw maps in a grid, each with its words; a line below says where they are not all of `total`."""
    images = [drawn_map(each, **style) for each in maps]
    if total == 1:
        return images[0]
    sheet = mosaic(images, [" · ".join([each.title, *each.lines]) for each in maps], columns=columns)
    if len(maps) == total:
        return sheet
    below = caption(_cut(len(maps), total), sheet.width)
    whole = Image.new("RGB", (sheet.width, sheet.height + below.height), "white")
    whole.paste(sheet, (0, 0))
    whole.paste(below, (0, sheet.height))
    return whole


def maps_html(maps: Sequence[ShownMap], total: int, columns: int | None = None) -> str:
    """Return maps as HTML figures, each with its words, its colour bar and what positive values alone hide.

    With `columns`, so many maps begin a row of their own: those of a sample.
    """
    longest = _LARGE if total == 1 else _SMALL
    cut = _cut(len(maps), total) if len(maps) < total else ""
    figures = [_figure(each, longest) for each in maps]
    step = columns or len(figures) or 1
    rows = [side_by_side(figures[start : start + step]) for start in range(0, len(figures), step)]
    return "".join(rows) + html_paragraph(cut)


def _cut(count: int, total: int) -> str:
    return f"{count} of {total:,} maps; an index or a slice shows others"


def _figure(shown: ShownMap, longest: int) -> str:
    if isinstance(shown.picture, Picture):  # reduced first, because to colour a large picture takes long
        shown = replace(shown, picture=shown.picture.reduced(longest))
    scale = scale_of(shown.heatmap, colormap="viridis", limit=None, signed=False)
    drawn = drawn_map(shown, colormap=scale.colormap, alpha=0.6, limit=None, signed=False, colorbar=False)
    image = fitted(drawn, longest)
    strip = Image.fromarray(np.ascontiguousarray(COLORMAPS[scale.colormap][None]))
    below = bar(strip, image.width, scale.numbers) + html_paragraph(sign_words(shown.heatmap, scale), faint=True)
    tag = image_tag(image, shown.title, lossless=shown.picture is None)
    return figure(tag + below, shown.title, *shown.lines, width=max(image.width, _NARROWEST))

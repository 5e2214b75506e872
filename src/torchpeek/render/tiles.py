"""Sheets of tiles: tensors as small squares in rows, with the scale in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchpeek.render.colormaps import COLORMAPS, DIVERGING, Table, coloured
from torchpeek.render.text import caption

Values: TypeAlias = npt.NDArray[np.float64]

NOT_FINITE = (255, 0, 255)
"""The colour of NaN and infinity: magenta, which no colormap here has."""
FRAME = (150, 150, 150)
"""The colour of the frame around every tile, because some colours are as light as the background."""

_GAP = 3
_SLICE_GAP = 4  # pixels between the slices of a volume, in the colour of the frame; one would be lost among the values
_WIDTH = 960  # pixels of the tiles in a row, which makes a sheet about 1000 wide
_WIDEST = 1300  # if labels need more room than tiles
_NARROWEST = 480  # room for the caption
_PER_VALUE = 20  # most pixels of a value: a 3 x 3 kernel needs no more
_SIDE = 256  # most pixels of a tile's side
_LEAST = 15  # fewest pixels of a tile's side, however many are in a row
_LINE = 14  # pixels of the height of a signal, which has one row of values
_LABEL = 11  # size of the font
_NUMBER = 9  # size of the font of numbers
MATRIX_SIDE = 960
"""The most pixels of a matrix's side, so the most rows and columns of which each value has a pixel."""


@dataclass(frozen=True, eq=False)
class Block:
    """Tiles of one size in rows, under a heading."""

    tiles: Tensor  # (n, c, d, h, w): d slices side by side; c is 3 for RGB, else 1
    columns: int  # tiles in a row
    heading: str = ""
    group: int = 1  # number of tiles that belong together
    labels: Sequence[str] = ()  # one for each group, above it
    numbers: Sequence[int] = ()  # one for each tile, above it
    loose: bool = False  # take fewer columns if labels or numbers are wide
    axes: tuple[Sequence[int], Sequence[int]] = ((), ())  # the numbers of the rows and columns of a matrix

    @property
    def is_matrix(self) -> bool:
        """Whether the one tile is a matrix with numbered rows and columns."""
        return bool(self.axes[0])


Percentiles: TypeAlias = tuple[float, float]
"""The percentiles of the values at the ends of the colormap."""


def sheet(
    words: str,
    blocks: Sequence[Block],
    *,
    shared: bool,
    colormap: str,
    tile: int | None,
    clip: Percentiles | None = None,
) -> Image.Image:
    """Draw blocks below each other, under `words` and a line on the scale.

    RGB tiles and the diverging colormap are symmetric around zero. Other colormaps go from the lowest to the highest
    value, of all tiles (`shared`) or of each; with `clip` from one percentile to another. A tile's side has at most
    `tile` pixels.
    """
    signed = colormap == DIVERGING
    tiles = [block.tiles.detach().cpu().double() for block in blocks]
    ranges = np.concatenate([_ranges(each.numpy()) for each in tiles])  # (all tiles, 2)
    inner = ranges if clip is None else _percentiles(tiles, clip, shared=shared)  # (all tiles, 2)
    # Where most values are the same, such as in a map that is zero but for one value, clipping would leave nothing.
    unclipped = (inner[:, 0] == inner[:, 1]) & (ranges[:, 0] < ranges[:, 1]) & (clip is not None)
    limits = _limits(np.where(unclipped[:, None], ranges, inner), signed=signed, shared=shared)  # (all tiles, 2)
    zooms = [_zoom(each, block, tile) for each, block in zip(tiles, blocks, strict=True)]
    parts: list[tuple[Image.Image, int]] = []  # image, and the gap above it
    start = 0
    for block, each, zoom in zip(blocks, tiles, zooms, strict=True):
        colours = _painted(_reduced(each, zoom.down).numpy(), limits[start : start + len(each)], colormap)
        drawn = _rows(_framed(colours, zoom), block)
        if block.is_matrix:
            drawn = _with_axes(drawn, zoom, *block.axes)
        parts += [(caption(block.heading, max(drawn.width, _NARROWEST)), 2 * _GAP)] if block.heading else []
        parts.append((drawn, 0 if block.heading else _GAP))
        start += len(each)
    width = max(_NARROWEST, *(part.width for part, _ in parts)) + 2 * _GAP
    scale = _scale(ranges, limits, tiles, signed=signed, shared=shared, clip=clip)
    lines = [words, scale, *_remarks(tiles, ranges, zooms), *_clipped(tiles, limits, unclipped, clip)]
    above = [(caption(line, width - 2 * _GAP), 0) for line in lines]
    if any(each.shape[1] == 1 for each in tiles):
        above.append((_key(colormap, limits, shared=shared, clip=clip), 0))
    return _stacked([*above, *parts], width)


def _ranges(tiles: Values) -> Values:
    """Return each tile's lowest and highest finite value, (n, 2); (inf, -inf) if it has none."""
    finite, rest = np.isfinite(tiles), tuple(range(1, tiles.ndim))
    low = np.where(finite, tiles, np.inf).min(rest)
    return np.stack([low, np.where(finite, tiles, -np.inf).max(rest)], axis=1)


def _percentiles(tiles: Sequence[Tensor], clip: Percentiles, *, shared: bool) -> Values:
    """Return the percentiles of each tile's finite values, or of those of all tiles, (n, 2)."""
    values = [one.numpy()[np.isfinite(one.numpy())] for each in tiles for one in each]
    if shared:
        values = [np.concatenate(values)] * len(values)
    return np.array([np.percentile(each, clip) if len(each) else (np.inf, -np.inf) for each in values])


def _limits(ranges: Values, *, signed: bool, shared: bool) -> Values:
    """Return the values at the ends of the colormap, for each tile, (n, 2)."""
    some = np.where(ranges[:, :1] <= ranges[:, 1:], ranges, 0)  # 0 to 0 if no value is finite
    if shared:
        finite = ranges[ranges[:, 0] <= ranges[:, 1]]
        whole = (finite[:, 0].min(), finite[:, 1].max()) if len(finite) else (0.0, 0.0)
        some = np.broadcast_to(np.array(whole), ranges.shape)
    if signed:
        largest = np.abs(some).max(1)
        return np.stack([-largest, largest], axis=1)
    return some


def _painted(tiles: Values, limits: Values, colormap: str) -> Table:
    """Return the colours of tiles, (n, c, d, h, w) -> (n, d, h, w, 3)."""
    low, high = limits.T.reshape(2, -1, 1, 1, 1, 1)
    finite = np.isfinite(tiles)
    flat = np.full(tiles.shape, 0.5 if colormap == DIVERGING else 0.0)  # the colour if all values are equal
    unit = np.divide(np.where(finite, tiles, low) - low, high - low, out=flat, where=high > low).clip(0, 1)
    if tiles.shape[1] == 3:
        colours: Table = np.rint(np.moveaxis(unit, 1, -1) * 255).astype(np.uint8)
    else:
        colours = coloured(unit[:, 0].astype(np.float32), colormap)
    colours[~finite.all(1)] = NOT_FINITE
    return colours


@dataclass(frozen=True)
class _Zoom:
    """How large a value is drawn."""

    high: int  # pixels along the height
    wide: int  # pixels along the width
    down: int  # values along a side that share a pixel


def _zoom(tiles: Tensor, block: Block, tile: int | None) -> _Zoom:
    """Return how large values are drawn: as squares, but for signals, which have one row of values."""
    depth, height, width = tiles.shape[2:]
    width *= depth
    side = MATRIX_SIDE if block.is_matrix else _SIDE
    across = max(min(block.columns, len(tiles)), block.columns // 2)  # a short row's tiles are at most twice as large
    widest = _WIDTH if height == 1 or depth > 1 else side
    broad = tile or min(widest, max(_LEAST, _WIDTH // across), _PER_VALUE * width)
    high = tile or min(side, _PER_VALUE * height)
    up = max(1, min(broad // width, high // height))
    down = max(math.ceil(width / broad), math.ceil(height / high))
    return _Zoom(max(up, min(_LINE, high)) if height == 1 else up, up, down)


def _reduced(tiles: Tensor, down: int) -> Tensor:
    """Return the mean of each square of values. The mean of the colours would be another colour."""
    if down == 1:
        return tiles
    pooled = F.avg_pool2d(tiles.flatten(1, 2), down, ceil_mode=True, count_include_pad=False)
    return pooled.reshape(*tiles.shape[:3], *pooled.shape[2:])


def _framed(colours: Table, zoom: _Zoom) -> Table:
    """Draw each value as a rectangle, slices side by side, framed: (n, d, h, w, 3) -> (n, H, W, 3)."""
    large = colours.repeat(zoom.high, axis=2).repeat(zoom.wide, axis=3)
    n, depth, height, width, _ = large.shape
    framed = np.full((n, height + 2, depth * (width + _SLICE_GAP) - _SLICE_GAP + 2, 3), FRAME, np.uint8)
    for z in range(depth):
        framed[:, 1:-1, z * (width + _SLICE_GAP) + 1 :][:, :, :width] = large[:, z]
    return framed


def _with_axes(matrix: Image.Image, zoom: _Zoom, rows: Sequence[int], columns: Sequence[int]) -> Image.Image:
    """Draw the numbers of rows at the left of a framed matrix, and those of columns above it, as many as fit."""
    font = ImageFont.load_default(_NUMBER)
    left = 6 + math.ceil(max(font.getlength(str(number)) for number in rows))
    broadest = 6 + math.ceil(max(font.getlength(str(number)) for number in columns))
    drawn = Image.new("RGB", (left + matrix.width + broadest // 2, _NUMBER + 6 + matrix.height), "white")
    drawn.paste(matrix, (left, _NUMBER + 6))
    draw = ImageDraw.Draw(drawn)
    for k in range(0, len(rows), _stride(_NUMBER + 3, zoom.high / zoom.down)):
        middle = _NUMBER + 7 + (k + 0.5) * zoom.high / zoom.down
        draw.line((left - 3, middle, left - 1, middle), fill=FRAME)
        draw.text((left - 5, middle), str(rows[k]), fill="black", font=font, anchor="rm")
    for k in range(0, len(columns), _stride(broadest, zoom.wide / zoom.down)):
        middle = left + 1 + (k + 0.5) * zoom.wide / zoom.down
        draw.line((middle, _NUMBER + 3, middle, _NUMBER + 5), fill=FRAME)
        draw.text((middle, _NUMBER + 1), str(columns[k]), fill="black", font=font, anchor="ms")
    return drawn


def _stride(room: int, step: float) -> int:
    """Return how many rows lie between two numbers that need so much room: 1, 2, 5, 10, 20, 50, ..."""
    strides: Iterator[int] = (factor * 10**power for power in count() for factor in (1, 2, 5))
    return next(stride for stride in strides if stride * step >= room)


def _rows(tiles: Table, block: Block) -> Image.Image:
    """Draw tiles (n, H, W, 3) in rows, each under its number, and each group under its label."""
    n, height, width, _ = tiles.shape
    numbers = [_number_strip(number) for number in block.numbers]
    wide = max(width, *(each.width for each in numbers), 0)  # of a tile with its number
    above = max((each.height for each in numbers), default=0)
    inner = min(block.group, block.columns)
    down = math.ceil(block.group / inner)
    broad, high = inner * (wide + _GAP) - _GAP, down * (above + height + _GAP) - _GAP  # size of a group
    font = ImageFont.load_default(_LABEL)
    words = (word for label in block.labels for word in label.split(" "))
    cell = max([broad, *(math.ceil(font.getlength(word)) + 8 for word in words)])
    gap = _GAP if block.group == 1 else 2 * _GAP
    groups = n // block.group
    across = min(groups, max(1, block.columns // block.group))
    if block.loose:
        across = min(across, max(1, _WIDEST // (cell + gap)))
    names = [caption(label, cell, _LABEL) for label in block.labels]
    room = max((name.height for name in names), default=0)
    step = room + high + gap
    rows = Image.new("RGB", (across * (cell + gap) - gap, math.ceil(groups / across) * step - gap), "white")
    for k in range(n):
        left, top = k // block.group % across * (cell + gap), k // block.group // across * step
        if names and k % block.group == 0:
            name = names[k // block.group]
            rows.paste(name, (left, top + room - name.height))
        row, column = divmod(k % block.group, inner)
        place = (left + column * (wide + _GAP), top + room + row * (above + height + _GAP))
        if numbers:
            rows.paste(numbers[k], place)
        rows.paste(Image.fromarray(tiles[k]), (place[0], place[1] + above))
    return rows


def _number_strip(number: int) -> Image.Image:
    """Return the number of a tile in a small font."""
    font = ImageFont.load_default(_NUMBER)
    strip = Image.new("RGB", (math.ceil(font.getlength(str(number))) + 3, _NUMBER + 3), "white")
    ImageDraw.Draw(strip).text((1, _NUMBER + 1), str(number), fill="black", font=font, anchor="ls")
    return strip


def _scale(
    ranges: Values,
    limits: Values,
    tiles: Sequence[Tensor],
    *,
    signed: bool,
    shared: bool,
    clip: Percentiles | None,
) -> str:
    """Return the line on the scale, with its numbers."""
    whole = _limits(ranges, signed=False, shared=True)[0]
    within = f"the values are {_number(whole[0])} to {_number(whole[1])}"
    if shared:
        words = f"scale: shared, {_number(limits[0, 0])} to {_number(limits[0, 1])}"
        words += f"; {within}" if signed or clip else ""
    elif signed:
        own = limits[ranges[:, 0] <= ranges[:, 1], 1]  # of tiles with finite values
        least, most = own.min(initial=limits.max()), limits.max()
        own_end = "its own largest magnitude" if clip is None else f"the larger of its {_ordinals(clip)} in magnitude"
        words = f"scale: each tile to {own_end}, {_number(least)} to {_number(most)}; {within}"
    elif clip is None:
        words = f"scale: each tile from its own lowest to its own highest value; {within}"
    else:
        words = f"scale: each tile between its own {_ordinals(clip)}; {within}"
    return words + ("; RGB tiles: 0 is mid grey" if any(each.shape[1] == 3 for each in tiles) else "")


def _remarks(tiles: Sequence[Tensor], ranges: Values, zooms: Sequence[_Zoom]) -> list[str]:
    """Return lines that keep the picture from being misread: constant tiles, NaN, averaged values."""
    constant = int((ranges[:, 0] == ranges[:, 1]).sum())
    nan = sum(int(each.isnan().sum()) for each in tiles)
    infinite = sum(int(each.isinf().sum()) for each in tiles)
    down = max(zoom.down for zoom in zooms)
    square = f" x {down}" if any(each.shape[3] > 1 for each in tiles) else ""
    size_one = all(each[0].numel() == 1 for each in tiles)
    return [
        *([f"constant: {constant} of {len(ranges)} tiles"] if constant and not size_one else []),
        *([f"magenta: {nan} NaN, {infinite} infinite"] if nan or infinite else []),
        *([f"a pixel is the mean of up to {down}{square} values"] if down > 1 else []),
    ]


def _clipped(
    tiles: Sequence[Tensor], limits: Values, unclipped: npt.NDArray[np.bool_], clip: Percentiles | None
) -> list[str]:
    """Return the lines on what is clipped, and on tiles that are not."""
    if clip is None:
        return []
    values = [one.numpy()[np.isfinite(one.numpy())] for each in tiles for one in each]
    outside = sum(int(((one < low) | (one > high)).sum()) for one, (low, high) in zip(values, limits, strict=True))
    share = 100 * outside / max(sum(map(len, values)), 1)
    whole = int(unclipped.sum())
    return [
        f"clipped at the {_ordinals(clip)}: {share:.2g} % of the values are outside of the scale, in the colours of "
        "its ends",
        *([f"not clipped, as most of their values are the same: {whole} of {len(limits)} tiles"] if whole else []),
    ]


def _ordinals(clip: Percentiles) -> str:
    return f"percentiles {clip[0]:g} and {clip[1]:g}"


def _key(colormap: str, limits: Values, *, shared: bool, clip: Percentiles | None) -> Image.Image:
    """Draw the colormap between the values at its ends."""
    signed = colormap == DIVERGING
    own = ("-largest", "+largest") if signed else ("lowest", "highest")
    if clip is not None and not signed:
        own = (f"percentile {clip[0]:g}", f"percentile {clip[1]:g}")
    ends = [_number(end) for end in limits[0]] if shared else own
    font = ImageFont.load_default(_LABEL)
    bar = Image.fromarray(COLORMAPS[colormap][None].repeat(10, axis=0))  # (10, 256)
    left = 12 + math.ceil(font.getlength(ends[0]))
    strip = Image.new("RGB", (left + bar.width + 12 + math.ceil(font.getlength(ends[1])), 20), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((4, 2), ends[0], fill="black", font=font)
    strip.paste(bar, (left, 4))
    draw.text((left + bar.width + 8, 2), ends[1], fill="black", font=font)
    return strip


def _stacked(parts: Sequence[tuple[Image.Image, int]], width: int) -> Image.Image:
    """Draw images below each other on white, each after its gap."""
    stack = Image.new("RGB", (width, _GAP + sum(gap + part.height for part, gap in parts)), "white")
    top = 0
    for part, gap in parts:
        stack.paste(part, (_GAP, top + gap))
        top += gap + part.height
    return stack


def _number(value: float) -> str:
    return f"{value + 0.0:.3g}"

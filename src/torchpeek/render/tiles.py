"""Sheets of tiles: tensors as small squares in rows, with the scale in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
_WIDTH = 960  # pixels of the tiles in a row, which makes a sheet about 1000 wide
_WIDEST = 1300  # if labels need more room than tiles
_NARROWEST = 480  # room for the caption
_PER_VALUE = 20  # most pixels of a value: a 3 x 3 kernel needs no more
_SIDE = 256  # most pixels of a tile's side
_LEAST = 15  # fewest pixels of a tile's side, however many are in a row
_LABEL = 11  # size of the font


@dataclass(frozen=True, eq=False)
class Block:
    """Tiles of one size in rows, under a heading."""

    tiles: Tensor  # (n, c, d, h, w): d slices side by side; c is 3 for RGB, else 1
    columns: int  # tiles in a row
    heading: str = ""
    group: int = 1  # number of tiles that belong together
    labels: Sequence[str] = ()  # one for each group, above it
    loose: bool = False  # take fewer columns if labels are wide


def sheet(words: str, blocks: Sequence[Block], *, shared: bool, colormap: str, tile: int | None) -> Image.Image:
    """Draw blocks below each other, under `words` and a line on the scale.

    RGB tiles and the diverging colormap are symmetric around zero. Other colormaps go from the lowest to the highest
    value, of all tiles (`shared`) or of each. A tile's side has at most `tile` pixels.
    """
    signed = colormap == DIVERGING
    tiles = [block.tiles.detach().cpu().double() for block in blocks]
    ranges = np.concatenate([_ranges(each.numpy()) for each in tiles])  # (all tiles, 2)
    limits = _limits(ranges, signed=signed, shared=shared)  # (all tiles, 2)
    zooms = [_zoom(each, block.columns, tile) for each, block in zip(tiles, blocks, strict=True)]
    parts: list[tuple[Image.Image, int]] = []  # image, and the gap above it
    start = 0
    for block, each, (up, down) in zip(blocks, tiles, zooms, strict=True):
        colours = _painted(_reduced(each, down).numpy(), limits[start : start + len(each)], colormap)
        drawn = _rows(_framed(colours, up), block)
        parts += [(caption(block.heading, max(drawn.width, _NARROWEST)), 2 * _GAP)] if block.heading else []
        parts.append((drawn, 0 if block.heading else _GAP))
        start += len(each)
    width = max(_NARROWEST, *(part.width for part, _ in parts)) + 2 * _GAP
    lines = [words, _scale(ranges, limits, tiles, signed=signed, shared=shared), *_remarks(tiles, ranges, zooms)]
    above = [(caption(line, width - 2 * _GAP), 0) for line in lines]
    if any(each.shape[1] == 1 for each in tiles):
        above.append((_key(colormap, limits, shared=shared), 0))
    return _stacked([*above, *parts], width)


def _ranges(tiles: Values) -> Values:
    """Return each tile's lowest and highest finite value, (n, 2); (inf, -inf) if it has none."""
    finite, rest = np.isfinite(tiles), tuple(range(1, tiles.ndim))
    low = np.where(finite, tiles, np.inf).min(rest)
    return np.stack([low, np.where(finite, tiles, -np.inf).max(rest)], axis=1)


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
    unit = np.divide(np.where(finite, tiles, low) - low, high - low, out=flat, where=high > low)
    if tiles.shape[1] == 3:
        colours: Table = np.rint(np.moveaxis(unit, 1, -1) * 255).astype(np.uint8)
    else:
        colours = coloured(unit[:, 0].astype(np.float32), colormap)
    colours[~finite.all(1)] = NOT_FINITE
    return colours


def _zoom(tiles: Tensor, columns: int, tile: int | None) -> tuple[int, int]:
    """Return the pixels for a value, and the values for a pixel, along a side: one of the two is 1."""
    depth, height, width = tiles.shape[2:]
    width *= depth
    across = max(min(columns, len(tiles)), columns // 2)  # a short row's tiles are at most twice as large
    broad = tile or min(_SIDE, max(_LEAST, _WIDTH // across), _PER_VALUE * width)
    high = tile or min(_SIDE, _PER_VALUE * height)
    up, down = min(broad // width, high // height), max(math.ceil(width / broad), math.ceil(height / high))
    return max(1, up), down


def _reduced(tiles: Tensor, down: int) -> Tensor:
    """Return the mean of each square of values. The mean of the colours would be another colour."""
    if down == 1:
        return tiles
    pooled = F.avg_pool2d(tiles.flatten(1, 2), down, ceil_mode=True, count_include_pad=False)
    return pooled.reshape(*tiles.shape[:3], *pooled.shape[2:])


def _framed(colours: Table, up: int) -> Table:
    """Draw each value as a square, slices side by side, framed: (n, d, h, w, 3) -> (n, H, W, 3)."""
    large = colours.repeat(up, axis=2).repeat(up, axis=3)
    n, depth, height, width, _ = large.shape
    framed = np.full((n, height + 2, depth * (width + 1) + 1, 3), FRAME, np.uint8)
    for z in range(depth):
        framed[:, 1:-1, z * (width + 1) + 1 :][:, :, :width] = large[:, z]
    return framed


def _rows(tiles: Table, block: Block) -> Image.Image:
    """Draw tiles (n, H, W, 3) in rows, each group under its label."""
    n, height, width, _ = tiles.shape
    inner = min(block.group, block.columns)
    down = math.ceil(block.group / inner)
    broad, high = inner * (width + _GAP) - _GAP, down * (height + _GAP) - _GAP  # size of a group
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
        place = (left + column * (width + _GAP), top + room + row * (height + _GAP))
        rows.paste(Image.fromarray(tiles[k]), place)
    return rows


def _scale(ranges: Values, limits: Values, tiles: Sequence[Tensor], *, signed: bool, shared: bool) -> str:
    """Return the line on the scale, with its numbers."""
    whole = _limits(ranges, signed=False, shared=True)[0]
    within = f"the values are {_number(whole[0])} to {_number(whole[1])}"
    if shared:
        words = f"scale: shared, {_number(limits[0, 0])} to {_number(limits[0, 1])}" + (f"; {within}" if signed else "")
    elif signed:
        own = limits[ranges[:, 0] <= ranges[:, 1], 1]  # of tiles with finite values
        least, most = own.min(initial=limits.max()), limits.max()
        words = f"scale: each tile to its own largest magnitude, {_number(least)} to {_number(most)}; {within}"
    else:
        words = f"scale: each tile from its own lowest to its own highest value; {within}"
    return words + ("; RGB tiles: 0 is mid grey" if any(each.shape[1] == 3 for each in tiles) else "")


def _remarks(tiles: Sequence[Tensor], ranges: Values, zooms: Sequence[tuple[int, int]]) -> list[str]:
    """Return lines that keep the picture from being misread: constant tiles, NaN, averaged values."""
    constant = int((ranges[:, 0] == ranges[:, 1]).sum())
    nan = sum(int(each.isnan().sum()) for each in tiles)
    infinite = sum(int(each.isinf().sum()) for each in tiles)
    down = max(down for _, down in zooms)
    size_one = all(each[0].numel() == 1 for each in tiles)
    return [
        *([f"constant: {constant} of {len(ranges)} tiles"] if constant and not size_one else []),
        *([f"magenta: {nan} NaN, {infinite} infinite"] if nan or infinite else []),
        *([f"a pixel is the mean of up to {down} x {down} values"] if down > 1 else []),
    ]


def _key(colormap: str, limits: Values, *, shared: bool) -> Image.Image:
    """Draw the colormap between the values at its ends."""
    signed = colormap == DIVERGING
    own = ("-largest", "+largest") if signed else ("lowest", "highest")
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

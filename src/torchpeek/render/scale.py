"""Scale: which colour a heatmap's value has, how strongly it is mixed in, and the bar that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchpeek.argument_types import Allowed, Number
from torchpeek.errors import OptionError, closest, notify
from torchpeek.render.canvas import value_range
from torchpeek.render.colormaps import COLORMAPS, DIVERGING, Plane, Table
from torchpeek.render.heatmap_like import HeatmapLike
from torchpeek.render.text import caption

_DEFAULT = "viridis"
_FINE = 1000  # positions of a map in which 1 % is more than a few
_NARROWEST = 160  # pixels of a colour bar, so that its numbers fit

Limit: TypeAlias = Annotated[float, Number(), Allowed("0 or more, the value of the last colour")]
"""The value of the last colour of a scale."""


@dataclass(frozen=True)
class ColourScale:
    """The colours of values from 0 to `limit`, or from -limit to limit."""

    colormap: str
    limit: float
    signed: bool
    lowest: float  # of the raw map
    highest: float  # likewise

    def unit(self, values: Plane) -> Plane:
        """Scale values to [0, 1], the range of the colormap."""
        top = np.float32(self.limit)
        unit = values / top if top > 0 else values * 0
        return np.clip((unit + 1) / 2 if self.signed else unit, 0, 1)

    def strengths(self) -> Plane:
        """Return for each of the 256 colours how strongly it is mixed in where it fades: 0 to 1, and 0 at zero."""
        colours = np.arange(256, dtype=np.float32)
        # Zero lies between the two colours in the middle of a signed scale. Both leave the picture as it is.
        signed: Plane = (np.abs(colours - np.float32(127.5)) - np.float32(0.5)) / np.float32(127)
        return signed if self.signed else colours / np.float32(255)

    def mixed(self, image: Image.Image, values: Plane, alpha: float, *, fade: bool) -> Image.Image:
        """Return an image with the colours of values (H, W) mixed in, each in proportion to its value with `fade`."""
        index = Image.fromarray(np.rint(self.unit(values) * 255).astype(np.uint8))
        weights = np.rint(255 * alpha * (self.strengths() if fade else np.ones(256))).astype(int)
        mask = index.point(weights.tolist())
        index.putpalette(COLORMAPS[self.colormap].tobytes())
        return Image.composite(index.convert("RGB"), image, mask)

    @property
    def numbers(self) -> tuple[str, str, str]:
        """The values at the left end, in the middle and at the right end of the colormap, in words."""
        if self.limit == 0:  # no colour but the first has a value
            return "0 or less" if self.lowest < 0 else "0", "", ""
        top = _number(self.limit) + (" or more" if self.highest > self.limit else "")
        if self.signed:
            return _number(-self.limit) + (" or less" if self.lowest < -self.limit else ""), "0", top
        return "0 or less" if self.lowest < 0 else "0", _number(self.limit / 2), top


def scale_of(heatmap: HeatmapLike, *, colormap: str, limit: Limit | None, signed: bool) -> ColourScale:
    """Return the scale of a map, up to its own largest value unless `limit` names another.

    The largest value of a fine map can be a spike that leaves nothing else visible. If less than 1 % of the positions
    are above half of it, the scale ends at the value that 1 % of them exceed.

    Raises:
        OptionError: When there is no such colormap, it cannot be signed, or the limit is negative.
    """
    if colormap not in COLORMAPS:
        raise OptionError(f"no colormap {colormap!r}{closest(colormap, COLORMAPS)}; allowed: {', '.join(COLORMAPS)}")
    if signed and colormap not in (_DEFAULT, DIVERGING):
        raise OptionError(
            f"colormap {colormap!r} shows positive values only; with signed=True leave it out, or give {DIVERGING!r}"
        )
    signed = signed or colormap == DIVERGING
    lowest, highest = value_range(heatmap.values.detach())
    if limit is None:
        limit = _own_limit(heatmap.values.detach(), signed)
    return ColourScale(DIVERGING if signed else colormap, limit, signed, lowest, highest)


def _own_limit(values: Tensor, signed: bool) -> float:
    drawn = (values.abs() if signed else values.clamp(min=0)).flatten()
    largest, above = float(drawn.max()), drawn.numel() // 100
    if drawn.numel() < _FINE or int((drawn > largest / 2).sum()) >= above:
        return largest
    return float(drawn.float().kthvalue(drawn.numel() - above).values) or largest


def sign_words(heatmap: HeatmapLike, scale: ColourScale, *, beside: bool = True) -> str:
    """Return what positive values alone hide, for the line below the bar. Notifies where it is not said there.

    Where nothing at all is drawn, a notice says so in any case.
    """
    if scale.signed:
        return ""
    remark = heatmap.sign_remark()
    if scale.lowest < 0 and remark and (scale.highest <= 0 or not beside):
        # The text is the same for every picture, so that a loop over many of them says it once.
        notify(f"only positive values are drawn, and a map of {heatmap.provenance.method} has {remark}")
    return remark


def with_colorbar(image: Image.Image, scale: ColourScale, words: str = "", size: int | None = None) -> Image.Image:
    """Return the image with the colour bar below it, its numbers below the bar, and then the words."""
    width = max(image.width, _NARROWEST)
    size = size or max(11, min(64, round(width / 28)))
    font, pad = ImageFont.load_default(size), max(4, size // 3)
    bar = _bar(scale.colormap, width, size)
    below = caption(words, width, size) if words else None
    room = pad + size + size + 2 * pad
    sheet = Image.new("RGB", (width, image.height + room + (below.height if below else 0)), "white")
    sheet.paste(image, (0, 0))
    sheet.paste(bar, (0, image.height + pad))
    draw, line = ImageDraw.Draw(sheet), image.height + pad + size + pad // 2
    left, middle, right = scale.numbers
    draw.text((2, line), left, fill="black", font=font)
    draw.text((width - 2, line), right, fill="black", font=font, anchor="ra")
    ends = max(font.getlength(left), font.getlength(right)) + font.getlength(middle) / 2 + size
    if ends < width / 2:  # else the numbers would touch
        draw.text((width / 2, line), middle, fill="black", font=font, anchor="ma")
    if below:
        sheet.paste(below, (0, image.height + room))
    return sheet


def _bar(colormap: str, width: int, height: int) -> Image.Image:
    colours: Table = COLORMAPS[colormap][np.rint(np.linspace(0, 255, width)).astype(np.uint8)]
    return Image.fromarray(np.ascontiguousarray(colours[None].repeat(height, axis=0)))


def _number(value: float) -> str:
    return f"{value + 0.0:.3g}"

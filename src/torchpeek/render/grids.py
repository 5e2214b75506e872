"""Grids of kernels and feature maps. Each value is a square of whole pixels."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from PIL import Image
from torch import Tensor

from torchpeek.errors import InputError, OptionError
from torchpeek.render.colormaps import DIVERGING
from torchpeek.render.tiles import Block, sheet

_ACROSS = 64  # most tiles in a row; more would be too small
_ACROSS_LAYERS = 16  # fewest tiles in a row of several layers below each other


def kernel_grid(
    kernels: Tensor | Mapping[str, Tensor] | Sequence[Tensor],
    *,
    scale: str = "shared",
    rgb: bool | Literal["auto"] = "auto",
    most: int = 64,
    most_channels: int = 64,
    title: str = "",
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    tile: int | None = None,
) -> Image.Image:
    """Draw the kernels of a convolution as tiles, with a caption that says what is shown and on which scale.

    A kernel with three input channels is one tile in RGB, in which 0 is mid grey. For any other kernel, each input
    channel is a tile in the diverging colormap: blue below zero, light grey at zero, red above. The slices of a 3-D
    kernel stand side by side.

    Args:
        kernels: One layer's weight (out, in, *kernel) with one to three kernel axes; or single kernels of several
            layers, a mapping or sequence of (in, h, w) or (in, 1, *kernel), with a block for each. The weight of a
            transposed convolution is (in, out, *kernel): give its `.transpose(0, 1)`.
        scale: "shared", from the largest magnitude of all tiles, or "each", from that of each tile.
        rgb: Whether kernels with three input channels are drawn in RGB: "auto", True or False.
        most: Largest number of kernels to show.
        most_channels: Largest number of input channels to show of each kernel.
        title: Text before the caption.
        labels: A label for each kernel that is shown, or for each layer.
        columns: Number of tiles in a row. None chooses it.
        tile: Largest length of a tile's side, in pixels. None makes a sheet of 480 to 1300 pixels in width.

    Returns:
        A PIL image in RGB.

    Raises:
        InputError: When `kernels` is something else, complex or empty.
        OptionError: When an option has a value that is not allowed.

    Example:
        >>> sheet = tp.render.kernel_grid(torch.randn(8, 3, 3, 3))
        >>> sheet.mode, sheet.width >= 480
        ('RGB', True)
    """
    _check_options(scale, most=most, most_channels=most_channels, columns=columns, tile=tile)
    if rgb not in ("auto", True, False):
        raise OptionError(f"rgb is {rgb!r}; allowed: 'auto', True, False")
    if isinstance(kernels, Tensor):
        words, blocks = _of_layer(kernels, rgb, most, most_channels, labels, columns)
    else:
        words, blocks = _of_layers(kernels, rgb, most_channels, labels, columns)
    return sheet(_titled(title, words), blocks, shared=scale == "shared", colormap=DIVERGING, tile=tile)


def feature_grid(
    activation: Tensor,
    *,
    scale: str = "each",
    channels: Iterable[int] | None = None,
    most: int = 64,
    colormap: str = "viridis",
    title: str = "",
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    tile: int | None = None,
) -> Image.Image:
    """Draw the feature maps of one sample as tiles in a near-square grid, with a caption.

    NaN and infinity are magenta, and the caption counts them. If a map has more values than its tile has pixels, a
    pixel is the mean of a square of values, and the caption says so.

    Args:
        activation: (C, h, w) or (1, C, h, w).
        scale: "each", every tile from its own lowest to its own highest value, or "shared", from the lowest to the
            highest value of all tiles. With the colormap "diverging" both ends have the same magnitude.
        channels: Indices of the channels to show, in that order. None is the first `most`.
        most: Largest number of channels to show.
        colormap: A key of `render.COLORMAPS`.
        title: Text before the caption, such as the layer's name.
        labels: A label for each map that is shown. None is the channels' indices.
        columns: Number of tiles in a row. None chooses it.
        tile: Largest length of a tile's side, in pixels. None makes a sheet of 480 to 1300 pixels in width.

    Returns:
        A PIL image in RGB.

    Raises:
        InputError: When `activation` is something else, complex or empty.
        OptionError: When an option has a value that is not allowed.

    Example:
        >>> sheet = tp.render.feature_grid(torch.rand(16, 7, 7), title="layer4")
        >>> sheet.mode, sheet.width >= 480
        ('RGB', True)
    """
    _check_options(scale, most=most, columns=columns, tile=tile)
    maps = _checked(activation, "activation")
    if maps.ndim == 4 and len(maps) == 1:
        maps = maps[0]
    if maps.ndim != 3:
        raise InputError(
            f"activation has shape {tuple(activation.shape)}; allowed: (C, h, w) or (1, C, h, w), channels first. "
            "Next: take one of several samples, activation[n]"
        )
    total, height, width = maps.shape
    chosen = list(range(min(total, most))) if channels is None else _indices(channels, total)
    count = _first(len(chosen), total, "channel") if channels is None else f"{len(chosen)} of {total} channels"
    names = _labels(labels, len(chosen), "channels") or [str(channel) for channel in chosen]
    tiles = maps[chosen][:, None, None]  # (n, 1, 1, h, w)
    block = Block(tiles, columns or _near_square(tiles), labels=names, loose=columns is None)
    words = _titled(title, f"{count}, {height} x {width} values each")
    return sheet(words, [block], shared=scale == "shared", colormap=colormap, tile=tile)


def _of_layer(
    weight: Tensor,
    rgb: bool | Literal["auto"],
    most: int,
    most_channels: int,
    labels: Sequence[str] | None,
    columns: int | None,
) -> tuple[str, list[Block]]:
    """Return the caption and the blocks of one layer's weight (out, in, *kernel)."""
    _checked(weight, "kernels")
    if not 3 <= weight.ndim <= 5:
        raise InputError(
            f"kernels has shape {tuple(weight.shape)}; allowed: a convolution's weight (out, in, *kernel) with 1 to 3 "
            "kernel axes, or a mapping of single kernels. For one kernel (in, h, w) give kernel[None]"
        )
    out, channels = weight.shape[:2]
    in_rgb = _in_rgb(channels, rgb, "kernels")
    shown = _volumes(weight[:most, : channels if in_rgb else most_channels])  # (n, in, d, h, w)
    inputs = "3 input channels as RGB" if in_rgb else _first(shown.shape[1], channels, "input channel")
    words = f"{_first(len(shown), out, 'kernel')}, {inputs}, {_size(weight.shape[2:])}"
    names = _labels(labels, len(shown), "kernels")
    if in_rgb or channels == 1:
        return words, [Block(shown, columns or _near_square(shown), labels=names, loose=columns is None)]
    tiles, group = shown.flatten(0, 1)[:, None], shown.shape[1]  # (n * in, 1, d, h, w)
    if out == 1:
        return words, [Block(tiles, columns or _near_square(tiles), heading=names[0] if names else "")]
    across = columns or min(_ACROSS, group * _near_square(tiles[::group], group))
    words += f"; a group of {group} tiles is a kernel, each tile one of its input channels" if group > 1 else ""
    return words, [Block(tiles, across, group=group, labels=names, loose=columns is None)]


def _of_layers(
    kernels: Mapping[str, Tensor] | Sequence[Tensor],
    rgb: bool | Literal["auto"],
    most_channels: int,
    labels: Sequence[str] | None,
    columns: int | None,
) -> tuple[str, list[Block]]:
    """Return the caption and a block for each of several single kernels."""
    if not isinstance(kernels, Mapping | Sequence) or not kernels:
        what = "empty" if isinstance(kernels, Mapping | Sequence) else f"a {type(kernels).__name__}"
        raise InputError(f"kernels is {what}; allowed: a weight tensor, or a mapping or sequence of single kernels")
    keys = list(kernels) if isinstance(kernels, Mapping) else [str(n) for n in range(len(kernels))]
    values = list(kernels.values()) if isinstance(kernels, Mapping) else list(kernels)
    names = _labels(labels, len(values), "kernels") or keys
    shown: list[tuple[str, Tensor]] = []
    for name, kernel in zip(names, values, strict=True):
        _checked(kernel, f"kernel {name!r}")
        if not 2 <= kernel.ndim <= 5 or (kernel.ndim > 3 and kernel.shape[1] != 1):
            raise InputError(
                f"kernel {name!r} has shape {tuple(kernel.shape)}; allowed: one kernel of each layer, (in, h, w) or "
                "(in, 1, *kernel). Next: take one of the layer's kernels, weight[0], or draw that layer alone, "
                "kernel_grid(weight)"
            )
        single = kernel.squeeze(1) if kernel.ndim > 3 else kernel  # (in, *kernel)
        in_rgb = _in_rgb(len(single), rgb, f"kernel {name!r}")
        tiles = _volumes(single[None] if in_rgb else single[:most_channels, None])  # (n, 1 or 3, d, h, w)
        inputs = "3 input channels as RGB" if in_rgb else _first(len(tiles), len(single), "input channel")
        shown.append((f"{name}: {inputs}, {_size(single.shape[1:])}", tiles))
    counts = [len(tiles) for _, tiles in shown]
    across = columns or min(max(_ACROSS_LAYERS, math.isqrt(sum(counts))), max(counts), _ACROSS)
    blocks = [Block(tiles, across, heading=heading) for heading, tiles in shown]
    return _first(len(blocks), len(blocks), "kernel") + ", each of a layer of its own", blocks


def _volumes(kernels: Tensor) -> Tensor:
    """Reshape (a, b, *kernel) with one to three kernel axes to (a, b, d, h, w)."""
    missing = (1,) * (5 - kernels.ndim)
    return kernels.reshape(*kernels.shape[:2], *missing, *kernels.shape[2:])


def _near_square(tiles: Tensor, group: int = 1) -> int:
    """Return the number of columns that makes the grid about square, with `group` tiles side by side."""
    n, _, d, h, w = tiles.shape
    return max(1, min(n, math.ceil(math.sqrt(n * h / (group * d * w)))))


def _in_rgb(channels: int, rgb: bool | Literal["auto"], name: str) -> bool:
    if rgb is True and channels != 3:
        raise OptionError(
            f"rgb is True, but {name} has {channels} input channels; allowed with 3. Next: take rgb='auto'"
        )
    return channels == 3 and rgb is not False


def _indices(channels: Iterable[int], total: int) -> list[int]:
    chosen = [operator.index(channel) for channel in channels]
    if not chosen:
        raise OptionError("channels is empty; name at least one, or None for the first ones")
    wrong = [channel for channel in chosen if not 0 <= channel < total]
    if wrong:
        raise OptionError(f"channel {wrong[0]} is not in the activation; allowed: 0 to {total - 1}")
    return chosen


def _labels(labels: Sequence[str] | None, shown: int, what: str) -> list[str]:
    if labels is not None and len(labels) != shown:
        raise OptionError(f"{len(labels)} labels for {shown} {what} shown; give one for each")
    return [str(label) for label in labels or ()]


def _checked(values: Tensor, name: str) -> Tensor:
    if not isinstance(values, Tensor):
        raise InputError(f"{name} is a {type(values).__name__}; allowed: a tensor")
    if values.is_complex():
        raise InputError(f"{name} is {values.dtype}; allowed: real numbers: take its .abs(), .real or .imag")
    if values.numel() == 0:
        raise InputError(f"{name} has shape {tuple(values.shape)}, which has no values")
    return values


def _check_options(scale: str, **counts: int | None) -> None:
    if scale not in ("shared", "each"):
        raise OptionError(f"no scale {scale!r}; allowed: 'shared', 'each'")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise OptionError(f"{name} is {count}; allowed: 1 or more")


def _first(shown: int, total: int, what: str) -> str:
    plural = what if total == 1 else f"{what}s"
    return (
        f"first {shown} of {total} {plural}" if shown < total else f"all {total} {plural}" if total > 1 else f"1 {what}"
    )


def _size(kernel: Iterable[int]) -> str:
    return "size " + " x ".join(str(side) for side in kernel)


def _titled(title: str, words: str) -> str:
    return f"{title}: {words}" if title else words

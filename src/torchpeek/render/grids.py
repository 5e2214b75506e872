"""Grids of kernels and feature maps. Each value is a square of whole pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Literal

import torch
from PIL import Image
from torch import Tensor

from torchpeek.argument_types import Allowed, PositiveInt, Side
from torchpeek.engine import Layout, Trace
from torchpeek.errors import InputError, OptionError
from torchpeek.keywords import checked_keywords
from torchpeek.render.colormaps import DIVERGING, Colormap
from torchpeek.render.feature_maps import returned_maps, traced_maps
from torchpeek.render.tiles import MATRIX_SIDE, Block, Percentiles, sheet
from torchpeek.tensor_formats import dense

_ACROSS = 64  # most tiles in a row; more would be too small
_ACROSS_LAYERS = 16  # fewest tiles in a row of several layers below each other
_FEW_LAYERS = 4  # most layers of a single tile that have a row each
_KERNELS = 64  # most kernels of a layer, unless asked for others
_CHANNELS = 12  # most input channels of each of several kernels
_LABELLED = 40  # pixels of a group's label, of its numbers and of the gap
_SLICES = 8  # most slices of a volume

_SCALES = "'shared', 'each'"
_SORTS = "'index', 'contribution'"
_KERNELS_ALLOWED = "a weight tensor, or a mapping or sequence of single kernels"
_PERCENTILES = "two percentiles from 0 to 100, the lower one first, as in (1, 99), or None"


@checked_keywords
def kernel_grid(
    kernels: Annotated[Tensor | Mapping[str, Tensor] | Sequence[Tensor], Allowed(_KERNELS_ALLOWED)],
    *,
    scale: Annotated[str, Allowed(_SCALES)] = "shared",
    rgb: Annotated[bool | Literal["auto"], Allowed("'auto', True, False")] = "auto",
    most: PositiveInt | None = None,
    most_channels: PositiveInt | None = None,
    title: str = "",
    labels: Sequence[str] | None = None,
    columns: PositiveInt | None = None,
    tile: Side | None = None,
) -> Image.Image:
    """Draw the kernels of a convolution as numbered tiles, with a caption that says what is shown and on which scale.

    A kernel with three input channels is one tile in RGB, in which 0 is mid grey. For any other kernel, each input
    channel is a tile in the diverging colormap: blue below zero, light grey at zero, red above. The slices of a 3-D
    kernel stand side by side. The kernels of a layer of size 1 with several input channels, such as 1 x 1, are drawn
    as one matrix: a row for each output channel, a column for each input channel. So is the weight of a linear layer.

    Where not all are shown, it is those with the largest norm, the largest first, and the caption says how many of how
    many. The numbers are those of the output and input channels, from 0.

    Args:
        kernels: One layer's weight (out, in, *kernel) with up to three kernel axes; or single kernels of several
            layers, a mapping or sequence of (in, h, w) or (in, 1, *kernel), with a block for each. The weight of a
            transposed convolution is (in, out, *kernel): give its `.transpose(0, 1)`.
        scale: "shared", from the largest magnitude of all tiles, or "each", from that of each tile.
        rgb: Whether kernels with three input channels are drawn in RGB: "auto" (unless they have size 1), True or
            False.
        most: Largest number of kernels to show. None is 64, or 960 rows of a matrix.
        most_channels: Largest number of input channels to show of each kernel. None is 12, or 960 columns of a matrix,
            or 64 of single kernels of several layers.
        title: Text before the caption.
        labels: A label for each kernel that is shown in place of its number, or for each layer.
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
    _check_scale(scale)
    if not isinstance(kernels, Tensor):
        words, blocks = _of_layers(kernels, rgb, most_channels or _KERNELS, labels, columns)
    elif _is_matrix(kernels := _checked(kernels, "kernels"), rgb, labels):
        words, blocks = _of_matrix(kernels, most or MATRIX_SIDE, most_channels or MATRIX_SIDE)
    else:
        words, blocks = _of_layer(kernels, rgb, most or _KERNELS, most_channels or _CHANNELS, labels, columns)
    return sheet(_titled(title, words), blocks, shared=scale == "shared", colormap=DIVERGING, tile=tile)


@checked_keywords
def feature_grid(
    activation: Annotated[Tensor | Trace, Allowed("a tensor, (C, h, w) or (1, C, *grid), or a trace of one sample")],
    *,
    scale: Annotated[str, Allowed(_SCALES)] = "each",
    channels: Annotated[Iterable[int] | None, Allowed("indices of channels, such as [0, 3], or None")] = None,
    most: PositiveInt = 64,
    colormap: Colormap | None = None,
    title: str = "",
    labels: Sequence[str] | None = None,
    columns: PositiveInt | None = None,
    tile: Side | None = None,
    layout: Layout | None = None,
    sort: Annotated[str, Allowed(_SORTS)] = "index",
    contributions: Tensor | None = None,
    clip: Annotated[Percentiles | None, Allowed(_PERCENTILES)] = None,
) -> Image.Image:
    """Draw the feature maps of one sample as numbered tiles in a near-square grid, with a caption.

    Of a trace it draws the maps of the traced layer, or call of a layer, such as "act[1]". These may be tokens, as in a
    ViT: the trace knows their layout. Tokens outside the grid, such as a class token, are left out, and the caption
    says so. A map of a signal is a line, and a map of a volume is a row of slices.

    NaN and infinity are magenta, and the caption counts them. If a map has more values than its tile has pixels, a
    pixel is the mean of a square of values, and the caption says so.

    Args:
        activation: (C, h, w) or (1, C, *grid); with `layout` what a layer returned for one sample; or a trace of one
            sample at one layer.
        scale: "each", every tile from its own lowest to its own highest value, or "shared", from the lowest to the
            highest value of all tiles. With the colormap "diverging" both ends have the same magnitude.
        channels: Indices of the channels to show, in that order unless `sort` is "contribution". None is the first
            `most`.
        most: Largest number of channels to show.
        colormap: A key of `render.COLORMAPS`. None is "diverging" if a map that is shown has values below zero, else
            "viridis".
        title: Text before the caption. Empty is the layer's name, for a trace.
        labels: A label for each map that is shown. None is the channels' indices, with their contributions where these
            are known.
        columns: Number of tiles in a row. None chooses it.
        tile: Largest length of a tile's side, in pixels. None makes a sheet of 480 to 1300 pixels in width.
        layout: The layout of an activation that is a tensor, such as `tp.Layout("tokens", (14, 14), prefix=1)`.
        sort: "index", or "contribution": the channel that contributes most to the score comes first. The contribution
            of a channel is its activation times the gradient of the score, summed over the grid.
        contributions: (C,): the contributions where the activation is a tensor, such as `trace.contributions[0, 0]`.
        clip: Two percentiles, such as (1, 99), in place of the lowest and the highest value in `scale`, so that a few
            large values do not flatten the rest. Values outside have the colours of the ends, and the caption says how
            many.

    Returns:
        A PIL image in RGB.

    Raises:
        InputError: When `activation` is something else, complex or empty, or a trace of several samples or scores.
        OptionError: When an option has a value that is not allowed.
        GradUnavailable: When a trace without gradients is sorted by contribution.

    Example:
        >>> sheet = tp.render.feature_grid(torch.rand(16, 7, 7), title="layer4", clip=(1, 99))
        >>> sheet.mode, sheet.width >= 480
        ('RGB', True)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> trace = tp.trace(model, torch.rand(1, 3, 10, 10), layer="0", target=5)
        >>> sheet = tp.render.feature_grid(trace, sort="contribution", most=4)
    """
    _check_scale(scale)
    _check_feature_options(sort, clip)
    if isinstance(activation, Trace):
        if layout is not None or contributions is not None:
            raise OptionError("layout and contributions belong to a tensor; a trace has its own. Leave them out")
        found = traced_maps(activation, with_contributions=sort == "contribution")
    else:
        found = returned_maps(_checked(activation, "activation"), layout, contributions)
    chosen, count = found.chosen(channels, most, sort)
    tiles = _volumes(found.maps.detach()[chosen].unsqueeze(1))  # (n, 1, d, h, w)
    depth, sizes = tiles.shape[2], " x ".join(map(str, found.maps.shape[1:]))
    slices = torch.linspace(0, depth - 1, min(depth, _SLICES)).round().long()
    tiles = tiles[:, :, slices]
    remarks = [
        f"{count}, {sizes} values each",
        f"{len(slices)} of {depth} slices, evenly spaced" if len(slices) < depth else "",
        found.remark,
        found.contributed(chosen),
    ]
    if colormap is None:
        colormap = DIVERGING if bool((tiles[tiles.isfinite()] < 0).any()) else "viridis"
    names = _labels(labels, len(chosen), "channels") or [found.label(channel) for channel in chosen]
    block = Block(tiles, columns or _near_square(tiles), labels=names, loose=columns is None)
    words = _titled(title or found.title, "; ".join(filter(None, remarks)))
    return sheet(words, [block], shared=scale == "shared", colormap=colormap, tile=tile, clip=clip)


def _is_matrix(weight: Tensor, rgb: bool | Literal["auto"], labels: Sequence[str] | None) -> bool:
    """Whether the kernels have size 1 and several input channels, and need no tiles of their own."""
    sizes = weight.shape[1:]
    if weight.ndim == 2:  # of a linear layer
        if rgb is True or labels is not None:
            raise OptionError(
                "rgb and labels are of tiles, and the weight of a linear layer is one matrix; leave them out"
            )
        return True
    return 3 <= weight.ndim <= 5 and sizes[0] > 1 and sizes[1:].numel() == 1 and rgb is not True and labels is None


def _of_matrix(weight: Tensor, most: int, most_channels: int) -> tuple[str, list[Block]]:
    """Return the caption and the block of a layer whose kernels have size 1."""
    matrix = weight.flatten(1)  # (out, in)
    rows = _strongest(matrix, most)
    columns = _strongest(matrix[rows].T, most_channels)
    tile = matrix[rows][:, columns][None, None, None]  # (1, 1, 1, rows, columns)
    outputs = _largest(len(rows), len(matrix), "kernel" if weight.ndim > 2 else "output")
    inputs = _largest(len(columns), matrix.shape[1], "input channel" if weight.ndim > 2 else "input")
    size = f", {_size(weight.shape[2:])}" if weight.ndim > 2 else ""
    words = f"{outputs} as rows, {inputs} as columns{size}"
    return words, [Block(tile, 1, axes=(rows.tolist(), columns.tolist()))]


def _of_layer(
    weight: Tensor,
    rgb: bool | Literal["auto"],
    most: int,
    most_channels: int,
    labels: Sequence[str] | None,
    columns: int | None,
) -> tuple[str, list[Block]]:
    """Return the caption and the blocks of one layer's weight (out, in, *kernel)."""
    if not 3 <= weight.ndim <= 5:
        raise InputError(
            f"kernels has shape {tuple(weight.shape)}; allowed: a layer's weight (out, in, *kernel) with up to 3 "
            "kernel axes, or a mapping of single kernels. For one kernel (in, h, w) give kernel[None]"
        )
    out, channels = weight.shape[:2]
    in_rgb = _in_rgb(channels, rgb, "kernels")
    chosen = _strongest(weight, most)
    shown = _volumes(weight[chosen])  # (n, in, d, h, w)
    group = channels if in_rgb else min(channels, most_channels)
    inputs = "3 input channels as RGB" if in_rgb else _largest(group, channels, "input channel")
    words = f"{_largest(len(shown), out, 'kernel')}, {inputs}, {_size(weight.shape[2:])}"
    names = _labels(labels, len(shown), "kernels")
    if in_rgb or channels == 1:
        numbers = [] if names or out == 1 else chosen.tolist()
        across = columns or _near_square(shown)
        return words, [Block(shown, across, labels=names, numbers=numbers, loose=columns is None)]
    inner = torch.stack([_strongest(kernel, group) for kernel in shown])  # (n, group), of each kernel its own
    tiles = torch.stack([kernel[own] for kernel, own in zip(shown, inner, strict=True)])  # (n, group, d, h, w)
    tiles, numbers = tiles.flatten(0, 1)[:, None], inner.flatten().tolist()
    if out == 1:
        across = columns or _near_square(tiles)
        heading = names[0] if names else ""
        return words, [Block(tiles, across, heading=heading, numbers=numbers, loose=columns is None)]
    across = columns or group * _groups_across(tiles, group)
    words += f"; a group of {group} tiles is a kernel, each tile one of its input channels" if group > 1 else ""
    names = names or [f"kernel {number}" for number in chosen.tolist()]
    return words, [Block(tiles, across, group=group, labels=names, numbers=numbers, loose=columns is None)]


def _of_layers(
    kernels: Mapping[str, Tensor] | Sequence[Tensor],
    rgb: bool | Literal["auto"],
    most_channels: int,
    labels: Sequence[str] | None,
    columns: int | None,
) -> tuple[str, list[Block]]:
    """Return the caption and a block for each of several single kernels."""
    if not kernels:
        raise InputError(f"kernels is empty; allowed: {_KERNELS_ALLOWED}")
    keys = list(kernels) if isinstance(kernels, Mapping) else [str(n) for n in range(len(kernels))]
    values = list(kernels.values()) if isinstance(kernels, Mapping) else list(kernels)
    names = _labels(labels, len(values), "kernels") or keys
    shown: list[tuple[str, Tensor, list[int]]] = []
    for name, value in zip(names, values, strict=True):
        kernel = _checked(value, f"kernel {name!r}")
        if not 2 <= kernel.ndim <= 5 or (kernel.ndim > 3 and kernel.shape[1] != 1):
            raise InputError(
                f"kernel {name!r} has shape {tuple(kernel.shape)}; allowed: one kernel of each layer, (in, h, w) or "
                "(in, 1, *kernel). Next: take one of the layer's kernels, weight[0], or draw that layer alone, "
                "kernel_grid(weight)"
            )
        single = kernel.squeeze(1) if kernel.ndim > 3 else kernel  # (in, *kernel)
        in_rgb = _in_rgb(len(single), rgb, f"kernel {name!r}")
        chosen = _strongest(single, most_channels)
        tiles = _volumes(single[None] if in_rgb else single[chosen][:, None])  # (n, 1 or 3, d, h, w)
        inputs = "3 input channels as RGB" if in_rgb else _largest(len(tiles), len(single), "input channel")
        shown.append((f"{name}: {inputs}, {_size(single.shape[1:])}", tiles, chosen.tolist() if len(tiles) > 1 else []))
    counts = [len(tiles) for _, tiles, _ in shown]
    across = columns or min(max(_ACROSS_LAYERS, math.isqrt(sum(counts))), max(counts), _ACROSS)
    blocks: list[Block] = []
    for _, run in groupby(shown, lambda each: each[1].shape):
        layers = list(run)
        if len(layers) > _FEW_LAYERS and len(layers[0][1]) == 1:  # as in a depthwise network: one tile in each row
            tiles = torch.cat([each[1] for each in layers])
            labels = [each[0] for each in layers]
            blocks.append(Block(tiles, columns or _near_square(tiles), labels=labels, loose=columns is None))
            continue
        blocks += [
            Block(tiles, across, heading=heading, numbers=numbers, loose=columns is None)
            for heading, tiles, numbers in layers
        ]
    return _first(len(shown), len(shown), "kernel") + ", each of a layer of its own", blocks


def _strongest(tensors: Tensor, most: int) -> Tensor:
    """Return the indices (n,) of the tensors with the largest norm, the largest first; of all if they fit, in order."""
    if len(tensors) <= most:
        return torch.arange(len(tensors))
    norms = torch.linalg.vector_norm(tensors.detach().cpu().double().flatten(1), dim=1)
    norms = norms.nan_to_num(nan=math.inf, posinf=math.inf)  # what is not finite is to be seen
    indices: Tensor = norms.sort(descending=True, stable=True).indices[:most]
    return indices


def _largest(shown: int, total: int, what: str) -> str:
    return f"{shown:,} of {total:,} {what}s, largest norm first" if shown < total else _first(shown, total, what)


def _volumes(kernels: Tensor) -> Tensor:
    """Reshape (a, b, *kernel) with one to three kernel axes to (a, b, d, h, w)."""
    missing = (1,) * (5 - kernels.ndim)
    return kernels.reshape(*kernels.shape[:2], *missing, *kernels.shape[2:])


def _near_square(tiles: Tensor, group: int = 1) -> int:
    """Return the number of columns that makes the grid about square, with `group` tiles side by side."""
    n, _, d, h, w = tiles.shape
    return max(1, min(n, math.ceil(math.sqrt(n * h / (group * d * w)))))


def _groups_across(tiles: Tensor, group: int) -> int:
    """Return the smallest number of groups in a row that makes the grid not much higher than wide."""
    n, _, d, h, w = tiles.shape
    for across in range(1, max(1, _ACROSS // group)):
        wide = max(15, 960 // (across * group))
        if math.ceil(n / group / across) * (wide * h / (d * w) + _LABELLED) <= 1500:
            return across
    return max(1, _ACROSS // group)


def _in_rgb(channels: int, rgb: bool | Literal["auto"], name: str) -> bool:
    if rgb is True and channels != 3:
        raise OptionError(
            f"rgb is True, but {name} has {channels} input channels; allowed with 3. Next: take rgb='auto'"
        )
    return channels == 3 and rgb is not False


def _labels(labels: Sequence[str] | None, shown: int, what: str) -> list[str]:
    if labels is not None and len(labels) != shown:
        raise OptionError(f"{len(labels)} labels for {shown} {what} shown; give one for each")
    return [str(label) for label in labels or ()]


def _checked(values: Tensor, name: str) -> Tensor:
    """Return the values as a dense tensor of numbers that can be drawn."""
    if values.is_complex():
        raise InputError(f"{name} is {values.dtype}; allowed: real numbers: take its .abs(), .real or .imag")
    values = dense(values, name)
    if values.numel() == 0:
        raise InputError(f"{name} has shape {tuple(values.shape)}, which has no values")
    return values


def _check_scale(scale: str) -> None:
    if scale not in ("shared", "each"):
        raise OptionError(f"no scale {scale!r}; allowed: {_SCALES}")


def _check_feature_options(sort: str, clip: Percentiles | None) -> None:
    if sort not in ("index", "contribution"):
        raise OptionError(f"no sort {sort!r}; allowed: {_SORTS}")
    if clip is not None and not 0 <= clip[0] < clip[1] <= 100:
        raise OptionError(f"clip is {clip!r}; allowed: {_PERCENTILES}")


def _first(shown: int, total: int, what: str) -> str:
    plural = what if total == 1 else f"{what}s"
    return (
        f"first {shown} of {total} {plural}" if shown < total else f"all {total} {plural}" if total > 1 else f"1 {what}"
    )


def _size(kernel: Iterable[int]) -> str:
    return "size " + " x ".join(str(side) for side in kernel)


def _titled(title: str, words: str) -> str:
    return f"{title}: {words}" if title else words

"""The texts of layouts: what `layout=` accepts, and how the shape of an output is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from torch import Tensor

from torchpeek.engine.layout import Grid, Kind, LayoutSpec
from torchpeek.errors import InputError
from torchpeek.tensor_formats import shape_text

_TOKENS = r"(?:(?P<prefix>\d+)\+)?(?P<grid>\d+(?:x\d+)*)(?:\+(?P<suffix>\d+))?"
_KIND_TEXT = re.compile(rf"(?P<kind>[a-z-]+)(?: {_TOKENS})?")
_TOKENS_TEXT = re.compile(_TOKENS)
_AXES_TEXT = re.compile(r"\([^()]*\)|[^\s()]+")
_BATCH_TEXT = re.compile(r"N|\( *N +(?P<minor>\d+) *\)|\( *(?P<major>\d+) +N *\)")


ALLOWED = (
    f"{', '.join(get_args(Kind))}, alone or with the grid and the number of tokens before it, such as "
    "'tokens 1+14x14'; or the axes one by one, such as 'N C H W', 'N 1+14x14 C', or '(N 4) C H W' where the batch axis "
    "holds 4 views of each sample"
)
"""The texts that a layout may have, for error texts."""


def parsed_layout(layout: object) -> LayoutSpec:
    """Parse a Layout or its text.

    Args:
        layout: A Layout, or text such as "channels-last", "tokens 1+14x14", or the axes one by one, such as
            "N C H W", "N 1+14x14 C" or "(N 4) C 7 7".

    Raises:
        InputError: When it is neither.
    """
    text = str(layout).strip()
    match = _KIND_TEXT.fullmatch(text)
    spec = _spec_of_axes(text) if match is None else _spec_of_kind(match)
    if spec is None:
        raise InputError(f"layout is {layout!r}; allowed: {ALLOWED}")
    return spec


def _spec_of_kind(match: re.Match[str]) -> LayoutSpec | None:
    """The specification of a text such as "tokens 1+14x14"; None where there is no such kind."""
    if match["kind"] not in get_args(Kind):
        return None
    grid, prefix, suffix = _tokens(match)
    return LayoutSpec(match["kind"], grid, prefix, suffix)  # type: ignore[arg-type]  # checked above


def _tokens(match: re.Match[str]) -> tuple[Grid | None, int | None, int]:
    """The grid, and the numbers of tokens before and after it, of a text such as "1+14x14"."""
    if match["grid"] is None:
        return None, None, 0
    return tuple(map(int, match["grid"].split("x"))), int(match["prefix"] or 0), int(match["suffix"] or 0)


def _spec_of_axes(text: str) -> LayoutSpec | None:
    """The specification of axes such as "(N 4) C H W"; None where they are no layout.

    A grid of several axes, or of one that is a plain number after C, is not flattened.
    """
    axes = _AXES_TEXT.findall(text)
    if _AXES_TEXT.sub("", text).strip():  # a bracket without its pair
        return None
    batches = [(number, match) for number, axis in enumerate(axes) if (match := _BATCH_TEXT.fullmatch(axis))]
    if len(batches) != 1 or axes.count("C") != 1 or len(axes) < 3:
        return None
    [(batch_axis, batch)] = batches
    channel_axis = axes.index("C")
    of_grid = [axis for number, axis in enumerate(axes) if number not in (batch_axis, channel_axis)]
    last = channel_axis == len(axes) - 1
    if (batch_axis, channel_axis) not in ((0, 1), (0, len(axes) - 1)) and (batch_axis, len(axes), last) != (1, 3, True):
        return None
    views = batch["minor"] or batch["major"]
    if views is not None and int(views) == 0:
        return None
    spec = LayoutSpec(
        "channels-last" if last else "channels-first",
        axes=len(of_grid),
        views=None if views is None else int(views),
        views_first=batch["major"] is not None,
    )
    if len(of_grid) == 1:
        kind: Kind = "sequence-first" if batch_axis == 1 else "tokens" if last else "channel-tokens"
        match = _TOKENS_TEXT.fullmatch(of_grid[0])
        if match is not None and of_grid[0].isdecimal() and kind == "channel-tokens":
            return replace(spec, grid=(int(of_grid[0]),))
        if match is None:
            return replace(spec, kind=kind, axes=None) if _is_letter(of_grid[0]) else None
        grid, prefix, suffix = _tokens(match)
        return replace(spec, kind=kind, grid=grid, prefix=prefix, suffix=suffix, axes=None)
    if all(axis.isdecimal() for axis in of_grid):
        return replace(spec, grid=tuple(map(int, of_grid)))
    distinct = len(set(of_grid)) == len(of_grid)
    return spec if distinct and all(map(_is_letter, of_grid)) else None


def _is_letter(axis: str) -> bool:
    """Whether an axis of the grid is named, and its size left open."""
    return len(axis) == 1 and axis.isalpha() and axis not in "NC"


def described(output: Any, count: int | None = None) -> str:
    """The shape of a layer's output as text; of a container, its type and the shapes in it.

    Args:
        output: What the layer returned.
        count: How many samples there were. The first axis is N where it has so many entries, 4N where it has four
            times as many, and its own size where it has another. None takes it for N, whatever its size.
    """
    if isinstance(output, Tensor):
        if output.is_nested:
            return shape_text(output)
        return "(" + ", ".join(_described_sizes(output.shape, count)) + ")"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} of " + ", ".join(described(each, count) for each in output)
    if isinstance(output, dict):
        return "dict of " + ", ".join(f"{key} {described(each, count)}" for key, each in output.items())
    return type(output).__name__


def _described_sizes(shape: Sequence[int], count: int | None) -> list[str]:
    sizes = list(map(str, shape))
    if not sizes:
        return sizes
    if count is None or shape[0] == count:
        return ["N", *sizes[1:]]
    if len(shape) == 1:
        return sizes
    if len(shape) == 3 and shape[1] == count:  # most likely a sequence (T, N, C), if its length shows no other reason
        return [sizes[0], "N", sizes[2]] if count == 1 or shape[0] % count else sizes
    return sizes if shape[0] == 0 or shape[0] % count else [f"{shape[0] // count}N", *sizes[1:]]

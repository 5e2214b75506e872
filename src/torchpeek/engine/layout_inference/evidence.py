"""What is known of a model's grids and tokens, and which sizes of grid are plausible by it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from torchpeek.engine.layout import Grid
from torchpeek.engine.model_call import ModelCall
from torchpeek.hooks import CHANNELS_LAST_NORMS

# Class, distillation and register tokens: no model is known to have more.
MOST_SPECIAL_TOKENS = 16
"""The largest number of tokens outside the grid that are not words."""


@dataclass(frozen=True)
class LayoutEvidence:
    """What is known of a model's grids and tokens. The layout of an output is inferred from it.

    Args:
        input_size: The sizes of the picture's own axes, such as (H, W).
        batch_size: How many samples an output has.
        grids: The grids of layers whose layout is certain, such as convolutions.
        prefix: How many tokens come before the grid, by the model's configuration or by the token probe. None where
            neither says so.
        suffix: How many tokens come after the grid, from the same source.
        token_counts: Number of tokens -> how many come before and after the grid, where the token probe found it for
            layers of so many tokens: those with words beside the picture have others than the rest of the model.
        most_others: The largest number of tokens outside the grid: that of class and register tokens, and of words.
        query_counts: Numbers of tokens that are object queries and not a grid.
        channels_first_shapes: Shapes, without N, of outputs that are channels-first for certain.
        channels_last_shapes: Shapes, without N, of outputs that are channels-last for certain.
        may_have_channels_last: Whether some layers of the model may be channels-last.
        linear_widths: The output channels of the linear layers. A last axis of such a size may be of channels.
        rescales_input: Whether the model resizes its input itself, so that a grid may be larger than the input.
        probe_undecided: Whether the token probe ran and did not find how many tokens come before the grid.
        grids_from_strides: Whether a grid may be assumed because one stride gives it, where no grid is known.
        inner_grids: All grids of convolutions, whatever their number of axes: those of a view or of a spectrogram, too.
        row_major_grid: The only grid whose tokens are in row-major order. None where those of all grids are.
        meta_outputs: Layer -> its last output in the dry run, on the meta device; and call, `name[i]` -> its output.
        dry_batch_size: How many samples the dry run had: one, or as many as the model takes.
        other_positions: Layers or calls, and parts of their outputs, whose positions are not those of the picture, but
            of words, object queries or the like.
    """

    input_size: Grid
    batch_size: int
    grids: tuple[Grid, ...] = ()
    prefix: int | None = None
    suffix: int = 0
    token_counts: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    most_others: int = MOST_SPECIAL_TOKENS
    query_counts: frozenset[int] = frozenset()
    channels_first_shapes: frozenset[tuple[int, ...]] = frozenset()
    channels_last_shapes: frozenset[tuple[int, ...]] = frozenset()
    may_have_channels_last: bool = True
    linear_widths: frozenset[int] = frozenset()
    rescales_input: bool = False
    probe_undecided: bool = False
    grids_from_strides: bool = True
    inner_grids: tuple[Grid, ...] = ()
    row_major_grid: Grid | None = None
    meta_outputs: Mapping[str, Any] = field(default_factory=dict)
    dry_batch_size: int = 1
    other_positions: frozenset[tuple[str, str]] = frozenset()


def static_evidence(model: nn.Module, call: ModelCall) -> LayoutEvidence:
    """What follows from the model's modules and the shape of its input, without a pass."""
    return LayoutEvidence(
        tuple(call.size),
        len(call),
        may_have_channels_last=may_have_channels_last(model),
        linear_widths=linear_widths(model),
        rescales_input=call.takes_list,
    )


def may_have_channels_last(model: nn.Module) -> bool:
    """Whether some layers may be channels-last. Hardly any model without a norm over the last axis has such layers."""
    return any(isinstance(module, CHANNELS_LAST_NORMS) for module in model.modules())


def linear_widths(model: nn.Module) -> frozenset[int]:
    """The output channels of the linear layers: what the last axis of a channels-last output may be."""
    return frozenset(module.out_features for module in model.modules() if isinstance(module, nn.Linear))


def fits_input(grid: Sequence[int], evidence: LayoutEvidence) -> bool:
    """Whether a grid has more than one position and is not larger than the input."""
    return math.prod(grid) > 1 and (
        evidence.rescales_input or all(size <= limit for size, limit in zip(grid, evidence.input_size, strict=True))
    )


def is_plausible_grid(grid: Grid, evidence: LayoutEvidence) -> bool:
    """Whether it is a known grid or a merged one; where no grid is known, whether one stride gives it."""
    if not fits_input(grid, evidence):
        return False
    if evidence.grids:
        return grid in evidence.grids or grid in merged_grids(evidence)
    return has_one_stride(grid, evidence.input_size)


def merged_grids(evidence: LayoutEvidence) -> set[Grid]:
    """The grids that the known ones become when positions are merged two by two, once or several times."""
    merged: set[Grid] = set()
    for grid in evidence.grids:
        for factor in (2, 4, 8, 16):
            # A grid of three axes may be merged along the last two only, as in a video.
            for first_axis in (0, 1) if len(grid) > 2 else (0,):
                for added in (0, factor - 1):  # rounded down, and up
                    merged.add(
                        tuple(
                            (size + added) // factor if axis >= first_axis else size for axis, size in enumerate(grid)
                        )
                    )
    return {grid for grid in merged if math.prod(grid) > 1} - set(evidence.grids)


def strided_grids(size: Grid) -> list[Grid]:
    """The grids that one integer stride along all axes gives, rounded down or up."""
    strides = range(1, max(size, default=1))
    down = [tuple(length // stride for length in size) for stride in strides]
    up = [tuple(-(-length // stride) for length in size) for stride in strides]
    return [grid for grid in dict.fromkeys([*down, *up]) if math.prod(grid) > 1]


def has_one_stride(grid: Sequence[int], input_size: Sequence[int]) -> bool:
    """Whether one stride gives all sizes of the grid, each up to one position, which padding or rounding may add."""
    if math.prod(grid) == 0:
        return False
    lowest = max(length / (size + 1) for size, length in zip(grid, input_size, strict=True))
    highest = min(length / (size - 1) if size > 1 else math.inf for size, length in zip(grid, input_size, strict=True))
    return lowest <= highest


def without_attention_maps(grids: Sequence[Grid], size: Grid) -> list[Grid]:
    """The grids without those that are attention maps, queries by keys.

    Such a grid is square, its side is the number of positions of another grid, and no stride gives it.
    """
    positions, strided = {math.prod(grid) for grid in grids}, set(strided_grids(size))
    attention = {grid for grid in grids if len(grid) == 2 and grid[0] == grid[1] and grid[0] in positions}
    return [grid for grid in grids if grid not in attention or grid in strided]

"""Candidate layouts: which layouts an output can have, by its shape and by the evidence of the model's grids."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from torchpeek.engine.layout import Grid, Kind, Layout, LayoutSpec
from torchpeek.engine.layout_inference.error_texts import NOT_OF_PICTURE, text_of, why_no_layout
from torchpeek.engine.layout_inference.module_axes import channel_axis
from torchpeek.engine.layout_text import described
from torchpeek.engine.model_call import ModelCall
from torchpeek.errors import NoSpatialLayer
from torchpeek.hooks import CHANNELS_LAST_NORMS, ChannelAxis, containers
from torchpeek.tensor_formats import is_dense_float

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


@dataclass(frozen=True)
class CandidateLayer:
    """A layer whose output has a grid. Of several layers that return the same tensor, the one that stands for them.

    Args:
        layer: The layer's name, or that of one of its calls: `name[i]`.
        layout: The layout of its output.
    """

    layer: str
    layout: Layout


class LayoutUndecided(NoSpatialLayer):
    """What is known without a dry run does not decide the layout. Never seen by users: the dry run follows."""


def static_evidence(model: nn.Module, call: ModelCall) -> LayoutEvidence:
    """What follows from the model's modules and the shape of its input, without a pass."""
    return LayoutEvidence(
        tuple(call.size),
        len(call),
        may_have_channels_last=may_have_channels_last(model),
        linear_widths=linear_widths(model),
        rescales_input=call.takes_list,
    )


def candidate_layouts(module: nn.Module, output: Any, evidence: LayoutEvidence) -> list[Layout]:
    """The plausible layouts of a module's output, most often one or none. Each tensor of a container is tried."""
    layouts = []
    for path, tensor in containers.leaves(output):
        if is_dense_float(tensor) and tensor.ndim >= 3:
            axis = None if path else channel_axis(module, tensor)  # the type does not say what is in a container
            layouts += [
                Layout(each.kind, each.grid, each.prefix, each.suffix, path)
                for each in _tensor_layouts(module, tensor, evidence, axis)
            ]
    return layouts


def unambiguous_layout(module: nn.Module, output: Any, evidence: LayoutEvidence) -> Layout | None:
    """The layout that follows from the module's type or the output's shape, without a dry run; None if none does."""
    if not isinstance(output, Tensor) or not is_dense_float(output):
        return None
    if output.ndim != len(evidence.input_size) + 2 or len(output) != evidence.batch_size:
        return None
    grid = tuple(output.shape[2:])
    if math.prod(grid) < 2 or not _fits_input(grid, evidence):
        return None
    axis = channel_axis(module, output)
    if axis == "first":
        return Layout("channels-first", grid)
    if output.ndim == 3 or axis == "last" or grid not in _strided_grids(evidence.input_size):
        return None
    # The sizes of a small grid may agree with a stride by chance. Where that is likely, a dry run decides.
    may_be_last = (
        evidence.may_have_channels_last or len(evidence.input_size) > 2 or output.shape[-1] in evidence.linear_widths
    )
    ambiguous = may_be_last and _fits_input(output.shape[1:-1], evidence)
    return None if ambiguous else Layout("channels-first", grid)


def may_have_channels_last(model: nn.Module) -> bool:
    """Whether some layers may be channels-last. Hardly any model without a norm over the last axis has such layers."""
    return any(isinstance(module, CHANNELS_LAST_NORMS) for module in model.modules())


def linear_widths(model: nn.Module) -> frozenset[int]:
    """The output channels of the linear layers: what the last axis of a channels-last output may be."""
    return frozenset(module.out_features for module in model.modules() if isinstance(module, nn.Linear))


def _tensor_layouts(
    module: nn.Module, tensor: Tensor, evidence: LayoutEvidence, axis: ChannelAxis | None
) -> list[Layout]:
    shape = tensor.shape
    if len(shape) == len(evidence.input_size) + 2 and shape[0] == evidence.batch_size and len(shape) > 3:
        first, last = tuple(shape[2:]), tuple(shape[1:-1])
        may_be_first = axis != "last" and (
            _fits_input(first, evidence) if axis == "first" else _is_plausible_grid(first, evidence)
        )
        # In attention, a norm over the last axis may act on (N, heads, T, C), so its type alone does not make a grid.
        one_stride = axis == "last" and _fits_input(last, evidence) and _has_one_stride(last, evidence.input_size)
        may_be_last = axis != "first" and (one_stride or _is_plausible_grid(last, evidence))
        if may_be_first and may_be_last:
            is_first = tuple(shape[1:]) in evidence.channels_first_shapes
            is_last = tuple(shape[1:]) in evidence.channels_last_shapes
            may_be_first = is_first or not is_last
            may_be_last = is_last or (evidence.may_have_channels_last and not is_first)
        return [Layout("channels-first", first)] * may_be_first + [Layout("channels-last", last)] * may_be_last
    if len(shape) != 3:
        return []
    if shape[0] == evidence.batch_size:
        return _three_axis_layouts(module, tensor, evidence, axis)
    if shape[1] != evidence.batch_size or shape[0] in evidence.query_counts:
        return []
    return _token_layouts({"sequence-first": shape[0]}, evidence)


def _three_axis_layouts(
    module: nn.Module, tensor: Tensor, evidence: LayoutEvidence, axis: ChannelAxis | None
) -> list[Layout]:
    """The layouts of a tensor (N, ., .): tokens, channels and tokens, or a signal (N, C, T)."""
    _, rows, columns = tensor.shape
    is_signal = len(evidence.input_size) == 1
    if rows in evidence.query_counts:
        return []
    if evidence.row_major_grid is not None and math.prod(evidence.row_major_grid) != rows - (evidence.prefix or 0):
        return []
    token_counts: dict[Kind, int] = {} if axis == "first" else {"tokens": rows}
    if axis != "last" and not is_signal and rows > 1:
        token_counts["channel-tokens"] = columns
    layouts = _token_layouts(token_counts, evidence)
    if (
        is_signal
        and axis != "last"
        and (_fits_input((columns,), evidence) if axis == "first" else _is_plausible_grid((columns,), evidence))
    ):
        layouts.append(Layout("channels-first", (columns,)))
    if axis is not None or not layouts:
        return layouts
    # A shape that is certain elsewhere in the model, flattened or transposed, decides between the two orders.
    flat_first = {(shape[0], math.prod(shape[1:])) for shape in evidence.channels_first_shapes}
    is_last = (rows, columns) in evidence.channels_last_shapes or (columns, rows) in flat_first
    is_first = (rows, columns) in flat_first or (columns, rows) in evidence.channels_last_shapes
    if is_last and not is_signal and _contains_last_axis_norm(module):
        is_first = False  # a transformer block
    if not is_first and not is_last and len({layout.kind for layout in layouts}) > 1:
        channels = {shape[0] for shape in evidence.channels_first_shapes}
        channels |= {shape[-1] for shape in evidence.channels_last_shapes}
        is_first, is_last = rows in channels, columns in channels
    if is_first == is_last:
        return layouts
    return [layout for layout in layouts if (layout.kind == "tokens") == is_last]


def _token_layouts(token_counts: Mapping[Kind, int], evidence: LayoutEvidence) -> list[Layout]:
    """The layouts on the most certain grids that fit: known grids, then merged ones, then those that a stride gives.

    `token_counts` is the number of tokens by the kind of layout.
    """
    strided = _strided_grids(evidence.input_size) if evidence.grids_from_strides and not evidence.grids else ()
    for grids in (evidence.grids, _merged_grids(evidence), strided):
        layouts = [
            layout for kind, count in token_counts.items() for layout in _layouts_on_grids(kind, count, grids, evidence)
        ]
        # Most (N, C, T) are the output of a convolution, flattened, before a class token is added. And a merged grid
        # that no layer has shown is weak evidence. In both cases only a known number of tokens outside the grid counts.
        weak = grids is not evidence.grids and bool(evidence.grids)
        known = {(0, 0), (evidence.prefix, evidence.suffix), *evidence.token_counts.values()}
        layouts = [
            layout
            for layout in layouts
            if (layout.prefix, layout.suffix) in known or not (weak or layout.kind == "channel-tokens")
        ]
        if layouts:
            return layouts
    return []


def _contains_last_axis_norm(module: nn.Module) -> bool:
    """Whether a submodule is a normalisation over the last axis."""
    return any(isinstance(part, CHANNELS_LAST_NORMS) for part in module.modules() if part is not module)


def _layouts_on_grids(kind: Kind, tokens: int, grids: Iterable[Grid], evidence: LayoutEvidence) -> list[Layout]:
    """The layouts of so many tokens: on a grid of all of them, else with the known prefix and suffix, else with any."""
    layouts = []
    for grid in dict.fromkeys(grids):
        others = tokens - math.prod(grid)
        if not 0 <= others <= evidence.most_others + evidence.suffix or math.prod(grid) < 2:
            continue
        probed = evidence.token_counts.get(tokens)
        if probed is not None and sum(probed) == others:
            return [Layout(kind, grid, *probed)]
        for suffix in {0, evidence.suffix}:
            if 0 <= others - suffix <= evidence.most_others:
                layouts.append(Layout(kind, grid, others - suffix, suffix))
    known = [layout for layout in layouts if (layout.prefix, layout.suffix) == (evidence.prefix, evidence.suffix)]
    exact = [layout for layout in layouts if not layout.others]
    if evidence.probe_undecided and not exact and not known:
        return layouts + [Layout(kind, layout.grid, 0, layout.others) for layout in layouts]
    return exact or known or layouts


def resolve_layout(
    name: str, module: nn.Module, output: Any, evidence: LayoutEvidence, spec: LayoutSpec | None
) -> Layout:
    """The one layout of a layer's output.

    Args:
        name: The layer's name.
        module: The layer.
        output: What it returned.
        evidence: What is known of the model's grids.
        spec: The layout that the user named; None to infer it.

    Raises:
        NoSpatialLayer: When no layout fits, or several do. The error lists them.
    """
    layouts = (
        list(_requested_layouts(output, evidence, spec))
        if spec is not None
        else _inferred_layouts(name, module, output, evidence)
    )
    if len(layouts) == 1:
        return layouts[0]
    shape = described(output, evidence.batch_size)
    if not layouts and spec is not None:
        raise NoSpatialLayer(
            f"layer {name!r} returned {shape}, which is not {text_of(spec)}: its sizes do not fit. Leave "
            "layout= (--layout) out to have the layout inferred"
        )
    tokens = [path for path, tensor in containers.leaves(output) if tensor.ndim > 2]
    if not layouts and any((name, path) in evidence.other_positions for path in tokens):
        raise NoSpatialLayer(f"layer {name!r} returned {shape}, {NOT_OF_PICTURE}")
    if not layouts:
        why = why_no_layout(output, evidence.input_size, evidence.batch_size, evidence.row_major_grid)
        raise NoSpatialLayer(f"layer {name!r} returned {shape}{why}")
    listed = ", ".join(f"{str(each)!r}" + (f" (of its part {each.part!r})" if each.part else "") for each in layouts)
    raise NoSpatialLayer(
        f"layer {name!r} returned {shape}, which fits {len(layouts)} layouts: {listed}. Choose one with layout= "
        "(--layout)" + (", or choose a layer that returns one tensor" if any(each.part for each in layouts) else "")
    )


def _inferred_layouts(name: str, module: nn.Module, output: Any, evidence: LayoutEvidence) -> list[Layout]:
    """The candidate layouts, inferred from the output for one sample if a dry run recorded it.

    With a batch size of 1, an axis of tokens or channels cannot be mistaken for the batch axis.
    """
    if name not in evidence.meta_outputs:
        return candidate_layouts(module, output, evidence)
    layouts = layouts_in_dry_run(name, module, evidence)
    fitting = [layout for layout in layouts if layout.fits(output, evidence.batch_size)]
    if fitting or not layouts:
        return fitting
    return _of_picture(name, candidate_layouts(module, output, evidence), evidence)


def layouts_in_dry_run(name: str, module: nn.Module, evidence: LayoutEvidence) -> list[Layout]:
    """The candidate layouts of what a layer, or a call `name[i]`, returned in the dry run.

    The positions of words or object queries are no grid of the picture, whatever their number.
    """
    in_dry_run = replace(evidence, batch_size=evidence.dry_batch_size)
    return _of_picture(name, candidate_layouts(module, evidence.meta_outputs[name], in_dry_run), evidence)


def _of_picture(name: str, layouts: list[Layout], evidence: LayoutEvidence) -> list[Layout]:
    return [each for each in layouts if (name, each.part) not in evidence.other_positions]


def _requested_layouts(output: Any, evidence: LayoutEvidence, spec: LayoutSpec) -> Iterable[Layout]:
    """The layouts that the user's `spec` allows; what it leaves open follows from the shapes."""
    batch = evidence.batch_size * (spec.views or 1)
    kind, axes = spec.kind, spec.axes or len(evidence.input_size)
    if kind == "channel-tokens" and spec.grid is None and len(evidence.input_size) == 1:
        kind, axes = "channels-first", 1  # of a signal, T is the grid
    own = Layout(kind, (), part="", views=spec.views, views_first=spec.views_first, view=spec.view)
    for path, tensor in containers.leaves(output):
        shape = tuple(tensor.shape)
        if not is_dense_float(tensor) or len(shape) < 3:
            continue
        if kind in ("channels-first", "channels-last"):
            grid = shape[2:] if kind == "channels-first" else shape[1:-1]
            fits = len(grid) == axes if spec.grid is None else grid == spec.grid
            if shape[0] == batch and fits and math.prod(grid) > 1:
                yield replace(own, grid=grid, part=path)
        elif spec.grid is not None:
            layout = replace(own, grid=spec.grid, prefix=spec.prefix or 0, suffix=spec.suffix, part=path)
            if layout.fits(output, evidence.batch_size):
                yield layout
        elif len(shape) == 3 and shape[1 if kind == "sequence-first" else 0] == batch:
            tokens = {"tokens": shape[1], "channel-tokens": shape[2], "sequence-first": shape[0]}[kind]
            known: tuple[Iterable[Grid], ...] = (evidence.inner_grids,)  # those of one view
            if spec.views is None:
                known = (evidence.grids, _merged_grids(evidence), _strided_grids(evidence.input_size))
            for grids in known:
                if layouts := _layouts_on_grids(kind, tokens, grids, evidence):
                    yield from (
                        replace(own, grid=each.grid, prefix=each.prefix, suffix=each.suffix, part=path)
                        for each in layouts
                    )
                    break


def is_channels_last(module: nn.Module, output: Tensor, inputs: Tensor) -> bool:
    """Whether an output is (N, *grid, C): one stride gives that grid, and none gives the grid of (N, C, *grid).

    False where the module's type says channels-first. A convolution may have a stride of its own for each axis.
    """
    return (
        output.ndim == inputs.ndim >= 4
        and _has_one_stride(output.shape[1:-1], inputs.shape[2:])
        and not _has_one_stride(output.shape[2:], inputs.shape[2:])
        and channel_axis(module, output) != "first"
    )


def _fits_input(grid: Sequence[int], evidence: LayoutEvidence) -> bool:
    """Whether a grid has more than one position and is not larger than the input."""
    return math.prod(grid) > 1 and (
        evidence.rescales_input or all(size <= limit for size, limit in zip(grid, evidence.input_size, strict=True))
    )


def _is_plausible_grid(grid: Grid, evidence: LayoutEvidence) -> bool:
    """Whether it is a known grid or a merged one; where no grid is known, whether one stride gives it."""
    if not _fits_input(grid, evidence):
        return False
    if evidence.grids:
        return grid in evidence.grids or grid in _merged_grids(evidence)
    return _has_one_stride(grid, evidence.input_size)


def _merged_grids(evidence: LayoutEvidence) -> set[Grid]:
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


def _strided_grids(size: Grid) -> list[Grid]:
    """The grids that one integer stride along all axes gives, rounded down or up."""
    strides = range(1, max(size, default=1))
    down = [tuple(length // stride for length in size) for stride in strides]
    up = [tuple(-(-length // stride) for length in size) for stride in strides]
    return [grid for grid in dict.fromkeys([*down, *up]) if math.prod(grid) > 1]


def _has_one_stride(grid: Sequence[int], input_size: Sequence[int]) -> bool:
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
    positions, strided = {math.prod(grid) for grid in grids}, set(_strided_grids(size))
    attention = {grid for grid in grids if len(grid) == 2 and grid[0] == grid[1] and grid[0] in positions}
    return [grid for grid in grids if grid not in attention or grid in strided]

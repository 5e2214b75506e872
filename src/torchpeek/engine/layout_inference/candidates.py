"""How what a layer returned can be read as (N, C, *grid), by its shape and by what else is known of the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from torchpeek.engine.layout import Grid, Kind, Layout, LayoutSpec, described
from torchpeek.engine.layout_inference.module_axes import ChannelAxis, channel_axis
from torchpeek.errors import NoSpatialLayer
from torchpeek.hooks import containers

# Class, distillation and register tokens: no model is known to have more.
_MAX_PREFIX = 16


@dataclass(frozen=True)
class LayoutEvidence:
    """What is known of a model's grids, from its own configuration and from a pass: what to read an output by."""

    input_size: Grid  # of the input's own axes
    batch_size: int
    grids: tuple[Grid, ...] = ()  # of layers for which there is no doubt, such as convolutions
    prefix: int | None = None  # as the model's configuration says, or a pass has shown
    suffix: int = 0
    query_counts: frozenset[int] = frozenset()  # numbers of tokens that are of no grid, by the same
    channels_first_shapes: frozenset[tuple[int, ...]] = (
        frozenset()
    )  # shapes (without N) that were seen channels first, for certain
    channels_last_shapes: frozenset[tuple[int, ...]] = frozenset()  # and channels last
    may_have_channels_last: bool = True  # whether some layers may have their channels last
    linear_widths: frozenset[int] = frozenset()  # of linear layers: with as many channels, one may
    rescales_input: bool = False  # whether the model scales its input itself, so that a grid may be larger than that
    probe_undecided: bool = (
        False  # whether a pass has shown that others than the grid's tokens lie where they were not expected
    )
    grids_from_strides: bool = True  # whether strides may tell the grids, where none was seen
    row_major_grid: Grid | None = None  # the one grid whose tokens are in its order, where others' are not
    meta_outputs: Mapping[str, Any] = field(default_factory=dict)  # by each layer for one sample, on the meta device


@dataclass(frozen=True)
class CandidateLayer:
    """The best of the layers that returned one and the same tensor with a grid."""

    layer: str
    layout: Layout
    projection: bool  # whether it is a linear layer, inside of something: queries, keys, hidden units


def candidate_layouts(module: nn.Module, output: Any, evidence: LayoutEvidence) -> list[Layout]:
    """Every way in which what a module returned can be (N, C, *grid); most plausible ones only, so mostly one or none.

    Of a container the tensors are tried one by one.
    """
    found = []
    for path, tensor in containers.leaves(output):
        if tensor.is_floating_point() and tensor.ndim >= 3:
            axis = None if path else channel_axis(module, tensor)  # of one part the module's kind says nothing
            found += [
                Layout(each.kind, each.grid, each.prefix, each.suffix, path)
                for each in _tensor_layouts(module, tensor, evidence, axis)
            ]
    return found


def unambiguous_layout(module: nn.Module, output: Any, evidence: LayoutEvidence) -> Layout | None:
    """The layout where the module or the shape leaves no doubt, whatever else the model does."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
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
    # Small grids shrink alike by chance; where that is likely, the grids that a dry pass shows are to decide.
    likely = (
        evidence.may_have_channels_last or len(evidence.input_size) > 2 or output.shape[-1] in evidence.linear_widths
    )
    either = likely and _fits_input(output.shape[1:-1], evidence)
    return None if either else Layout("channels-first", grid)


def may_have_channels_last(model: nn.Module) -> bool:
    """Whether some layers may have their channels last: without a normalisation over the last axis hardly any has."""
    return any(isinstance(module, (nn.LayerNorm, nn.RMSNorm)) for module in model.modules())


def linear_widths(model: nn.Module) -> frozenset[int]:
    """How many channels the linear layers return: as many as the last axis of what has its channels last."""
    return frozenset(module.out_features for module in model.modules() if isinstance(module, nn.Linear))


def _tensor_layouts(
    module: nn.Module, tensor: Tensor, evidence: LayoutEvidence, axis: ChannelAxis | None
) -> list[Layout]:
    shape, axes = tensor.shape, len(evidence.input_size)
    if len(shape) == axes + 2 and shape[0] == evidence.batch_size and len(shape) > 3:
        first, last = tuple(shape[2:]), tuple(shape[1:-1])
        as_first = axis != "last" and (
            _fits_input(first, evidence) if axis == "first" else _is_plausible_grid(first, evidence)
        )
        # Of heads and tokens, (N, heads, T, C), a normalisation is over the last axis, too.
        alike = axis == "last" and _fits_input(last, evidence) and _has_one_stride(last, evidence.input_size)
        as_last = axis != "first" and (alike or _is_plausible_grid(last, evidence))
        if as_first and as_last:
            was_first, was_last = (
                tuple(shape[1:]) in evidence.channels_first_shapes,
                tuple(shape[1:]) in evidence.channels_last_shapes,
            )
            as_first = was_first or not was_last
            as_last = was_last or (evidence.may_have_channels_last and not was_first)
        return [Layout("channels-first", first)] * as_first + [Layout("channels-last", last)] * as_last
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
    """Of a tensor (N, ., .): tokens, or a signal."""
    _, rows, columns = tensor.shape
    signal = len(evidence.input_size) == 1
    if rows in evidence.query_counts:
        return []
    if evidence.row_major_grid is not None and math.prod(evidence.row_major_grid) != rows - (evidence.prefix or 0):
        return []
    token_counts: dict[Kind, int] = {} if axis == "first" else {"tokens": rows}
    if axis != "last" and not signal and rows > 1:
        token_counts["channel-tokens"] = columns
    found = _token_layouts(token_counts, evidence)
    if (
        signal
        and axis != "last"
        and (_fits_input((columns,), evidence) if axis == "first" else _is_plausible_grid((columns,), evidence))
    ):
        found.append(Layout("channels-first", (columns,)))
    if axis is not None or not found:
        return found
    # What was seen the other way round tells as much.
    flat_first = {(shape[0], math.prod(shape[1:])) for shape in evidence.channels_first_shapes}
    was_last = (rows, columns) in evidence.channels_last_shapes or (columns, rows) in flat_first
    was_first = (rows, columns) in flat_first or (columns, rows) in evidence.channels_last_shapes
    if was_last and not signal and _contains_layer_norm(module):
        was_first = False  # a transformer's block
    if not was_first and not was_last and len({each.kind for each in found}) > 1:
        channels = {shape[0] for shape in evidence.channels_first_shapes} | {
            shape[-1] for shape in evidence.channels_last_shapes
        }
        was_first, was_last = rows in channels, columns in channels
    if was_first == was_last:
        return found
    return [each for each in found if (each.kind == "tokens") == was_last]


def _token_layouts(token_counts: Mapping[Kind, int], evidence: LayoutEvidence) -> list[Layout]:
    """By the grids for which there is least doubt: `ways` is how many tokens there are if it is of that kind."""
    for grids in (
        evidence.grids,
        _merged_grids(evidence),
        _strided_grids(evidence.input_size) if evidence.grids_from_strides and not evidence.grids else (),
    ):
        found = [
            each for kind, tokens in token_counts.items() for each in _layouts_on_grids(kind, tokens, grids, evidence)
        ]
        # (N, C, T) is what a convolution's output is before a class token comes in, and merged tokens that nobody has
        # seen as a grid are little to go by: others only where they are known.
        known, seldom = (
            {(0, 0), (evidence.prefix, evidence.suffix)},
            grids is not evidence.grids and bool(evidence.grids),
        )
        found = [
            each
            for each in found
            if (each.prefix, each.suffix) in known or not (seldom or each.kind == "channel-tokens")
        ]
        if found:
            return found
    return []


def _contains_layer_norm(module: nn.Module) -> bool:
    """Whether it is made of parts, and one of them is a normalisation over the last axis."""
    return any(isinstance(part, (nn.LayerNorm, nn.RMSNorm)) for part in module.modules() if part is not module)


def _layouts_on_grids(kind: Kind, tokens: int, grids: Iterable[Grid], evidence: LayoutEvidence) -> list[Layout]:
    """A grid for that many tokens, with as few others as can be, or as the model says."""
    found = []
    for grid in dict.fromkeys(grids):
        for suffix in {0, evidence.suffix}:
            prefix = tokens - math.prod(grid) - suffix
            if 0 <= prefix <= _MAX_PREFIX and math.prod(grid) > 1:
                found.append(Layout(kind, grid, prefix, suffix))
    declared = [each for each in found if each.prefix == evidence.prefix and each.suffix == evidence.suffix]
    none = [each for each in found if not each.others]
    if evidence.probe_undecided and not none and not declared:
        return found + [Layout(kind, each.grid, 0, each.others) for each in found]
    return none or declared or found


def resolve_layout(
    name: str, module: nn.Module, output: Any, evidence: LayoutEvidence, spec: LayoutSpec | None
) -> Layout:
    """The one layout of what a layer returned. Raises NoSpatialLayer, which lists the readings if there are several."""
    found = (
        list(_requested_layouts(output, evidence, spec))
        if spec is not None
        else _inferred_layouts(name, module, output, evidence)
    )
    if len(found) == 1:
        return found[0]
    shape = described(output)
    if not found and spec is not None:
        raise NoSpatialLayer(f"layer {name!r} returned {shape}, which is not {_spec_text(spec)}: its sizes do not fit")
    if not found:
        raise NoSpatialLayer(f"layer {name!r} returned {shape}{_why_no_layout(output, evidence)}")
    listed = ", ".join(f"{str(each)!r}" + (f" (of its part {each.part!r})" if each.part else "") for each in found)
    raise NoSpatialLayer(
        f"layer {name!r} returned {shape}, which can be read in {len(found)} token_counts: {listed}. Say which with layout= "
        "(--layout)" + (", or choose a layer that returns one tensor" if any(each.part for each in found) else "")
    )


def _inferred_layouts(name: str, module: nn.Module, output: Any, evidence: LayoutEvidence) -> list[Layout]:
    """The readings of what the layer returned for one sample, as there no other axis can be taken for the samples'."""
    if name not in evidence.meta_outputs:
        return candidate_layouts(module, output, evidence)
    of_one = candidate_layouts(module, evidence.meta_outputs[name], replace(evidence, batch_size=1))
    fitting = [each for each in of_one if each.fits(output, evidence.batch_size)]
    return fitting if fitting or not of_one else candidate_layouts(module, output, evidence)


def _requested_layouts(output: Any, evidence: LayoutEvidence, spec: LayoutSpec) -> Iterable[Layout]:
    for path, tensor in containers.leaves(output):
        shape = tuple(tensor.shape)
        if not tensor.is_floating_point() or len(shape) < 3:
            continue
        if spec.kind in ("channels-first", "channels-last"):
            grid = shape[2:] if spec.kind == "channels-first" else shape[1:-1]
            fits = len(grid) == len(evidence.input_size) if spec.grid is None else grid == spec.grid
            if shape[0] == evidence.batch_size and fits and math.prod(grid) > 1:
                yield Layout(spec.kind, grid, part=path)
        elif spec.grid is not None:
            layout = Layout(spec.kind, spec.grid, spec.prefix or 0, spec.suffix, path)
            if layout.fits(output, evidence.batch_size):
                yield layout
        elif len(shape) == 3:
            tokens = {"tokens": shape[1], "channel-tokens": shape[2], "sequence-first": shape[0]}[spec.kind]
            for grids in (evidence.grids, _merged_grids(evidence), _strided_grids(evidence.input_size)):
                found = _layouts_on_grids(spec.kind, tokens, grids, evidence)
                if found:
                    yield from (Layout(each.kind, each.grid, each.prefix, each.suffix, path) for each in found)
                    break


def _spec_text(spec: LayoutSpec) -> str:
    return str(spec.kind if spec.grid is None else Layout(spec.kind, spec.grid, spec.prefix or 0, spec.suffix))


def _why_no_layout(output: Any, evidence: LayoutEvidence) -> str:
    tensors = [tensor for _, tensor in containers.leaves(output)]
    size = " x ".join(map(str, evidence.input_size))
    given = f" for {evidence.batch_size} pictures" + (f" of {size}" if size else "")
    next_step = "Choose a layer before or around it; torchpeek layers shows the shapes, layer=None suggests one"
    if not tensors:
        return f"; a heatmap is read from a tensor. {next_step}"
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    if not floating:
        dtype = str(tensors[0].dtype)
        quantised = " A quantised layer has no floating-point output: choose one after it is turned back."
        return f" of {dtype}; a heatmap is read from floating-point activations.{quantised if 'q' in dtype else ''}"
    first = floating[0]
    if evidence.row_major_grid is not None:
        grid = " x ".join(map(str, evidence.row_major_grid))
        return (
            f"{given}: until its last stage, of {grid}, the model has its tokens in the order in which they are "
            f"merged, which is not that of the picture. {next_step}"
        )
    if first.ndim >= 3 and len(first) != evidence.batch_size and len(first) % evidence.batch_size == 0:
        return (
            f"{given}: it folds {len(first) // evidence.batch_size} parts of each picture, such as windows or heads, "
            f"into the axis of the samples, so its positions lie on no grid of the picture. {next_step}"
        )
    return (
        f"{given}, in which no grid of more than one position of the picture is to be found, be it (N, C, *grid), "
        f"(N, *grid, C) or tokens (N, T, C). {next_step}"
    )


def is_channels_last(module: nn.Module, output: Tensor, inputs: Tensor) -> bool:
    """Whether only (N, *grid, C) makes sense: read so all axes shrank alike, and read as (N, C, *grid) they did not.

    Not where the last part of the module is one that works on (N, C, *grid), such as a convolution: a stride may differ
    from axis to axis.
    """
    return (
        output.ndim == inputs.ndim >= 4
        and _has_one_stride(output.shape[1:-1], inputs.shape[2:])
        and not _has_one_stride(output.shape[2:], inputs.shape[2:])
        and channel_axis(module, output) != "first"
    )


def _fits_input(grid: Sequence[int], evidence: LayoutEvidence) -> bool:
    return math.prod(grid) > 1 and (
        evidence.rescales_input or all(size <= given for size, given in zip(grid, evidence.input_size, strict=True))
    )


def _is_plausible_grid(grid: Grid, evidence: LayoutEvidence) -> bool:
    """Whether it is a grid of the picture: one that was seen, coarser by halves than one, or shrunk alike."""
    if not _fits_input(grid, evidence):
        return False
    if evidence.grids:
        return grid in evidence.grids or grid in _merged_grids(evidence)
    return _has_one_stride(grid, evidence.input_size)


def _merged_grids(evidence: LayoutEvidence) -> set[Grid]:
    """What becomes of the grids that were seen when they are merged two by two, once or several times."""
    found: set[Grid] = set()
    for grid in evidence.grids:
        for factor in (2, 4, 8, 16):
            for axes in ((0, len(grid)), (1, len(grid))) if len(grid) > 2 else ((0, len(grid)),):
                for more in (0, factor - 1):  # rounded down, and up
                    found.add(
                        tuple(
                            (size + more) // factor if axes[0] <= axis < axes[1] else size
                            for axis, size in enumerate(grid)
                        )
                    )
    return {grid for grid in found if math.prod(grid) > 1} - set(evidence.grids)


def _strided_grids(size: Grid) -> list[Grid]:
    """The grids that one whole stride along all axes gives, rounded down or up."""
    strides = range(1, max(size, default=1))
    down = [tuple(each // stride for each in size) for stride in strides]
    up = [tuple(-(-each // stride) for each in size) for stride in strides]
    return [grid for grid in dict.fromkeys([*down, *up]) if math.prod(grid) > 1]


def _has_one_stride(grid: Sequence[int], given: Sequence[int]) -> bool:
    """Whether one stride gives all sizes of the grid, each up to one position, as padding and rounding may add."""
    if math.prod(grid) == 0:
        return False
    least = max(have / (size + 1) for size, have in zip(grid, given, strict=True))
    most = min(have / (size - 1) if size > 1 else math.inf for size, have in zip(grid, given, strict=True))
    return least <= most


def without_attention_maps(grids: Sequence[Grid], size: Grid) -> list[Grid]:
    """Without those that are queries by keys: as many of both as another grid has positions, which no stride gives."""
    positions, strided = {math.prod(grid) for grid in grids}, set(_strided_grids(size))
    attention = {grid for grid in grids if len(grid) == 2 and grid[0] == grid[1] and grid[0] in positions}
    return [grid for grid in grids if grid not in attention or grid in strided]

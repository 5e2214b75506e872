"""Candidate layouts: which layouts an output can have, by its shape and by the evidence of the model's grids."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from torchpeek.engine.layout import Grid, Kind, Layout, LayoutSpec
from torchpeek.engine.layout_inference.error_texts import NOT_OF_PICTURE, text_of, why_no_layout
from torchpeek.engine.layout_inference.evidence import (
    LayoutEvidence,
    fits_input,
    has_one_stride,
    is_plausible_grid,
    merged_grids,
    strided_grids,
)
from torchpeek.engine.layout_inference.module_axes import channel_axis
from torchpeek.engine.layout_text import described
from torchpeek.errors import NoSpatialLayer
from torchpeek.hooks import CHANNELS_LAST_NORMS, ChannelAxis, containers
from torchpeek.tensor_formats import is_dense_float


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
    if math.prod(grid) < 2 or not fits_input(grid, evidence):
        return None
    axis = channel_axis(module, output)
    if axis == "first":
        return Layout("channels-first", grid)
    if output.ndim == 3 or axis == "last" or grid not in strided_grids(evidence.input_size):
        return None
    # The sizes of a small grid may agree with a stride by chance. Where that is likely, a dry run decides.
    may_be_last = (
        evidence.may_have_channels_last or len(evidence.input_size) > 2 or output.shape[-1] in evidence.linear_widths
    )
    ambiguous = may_be_last and fits_input(output.shape[1:-1], evidence)
    return None if ambiguous else Layout("channels-first", grid)


def _tensor_layouts(
    module: nn.Module, tensor: Tensor, evidence: LayoutEvidence, axis: ChannelAxis | None
) -> list[Layout]:
    shape = tensor.shape
    if len(shape) == len(evidence.input_size) + 2 and shape[0] == evidence.batch_size and len(shape) > 3:
        first, last = tuple(shape[2:]), tuple(shape[1:-1])
        may_be_first = axis != "last" and (
            fits_input(first, evidence) if axis == "first" else is_plausible_grid(first, evidence)
        )
        # In attention, a norm over the last axis may act on (N, heads, T, C), so its type alone does not make a grid.
        one_stride = axis == "last" and fits_input(last, evidence) and has_one_stride(last, evidence.input_size)
        may_be_last = axis != "first" and (one_stride or is_plausible_grid(last, evidence))
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
        and (fits_input((columns,), evidence) if axis == "first" else is_plausible_grid((columns,), evidence))
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
    strided = strided_grids(evidence.input_size) if evidence.grids_from_strides and not evidence.grids else ()
    for grids in (evidence.grids, merged_grids(evidence), strided):
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
                known = (evidence.grids, merged_grids(evidence), strided_grids(evidence.input_size))
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
        and has_one_stride(output.shape[1:-1], inputs.shape[2:])
        and not has_one_stride(output.shape[2:], inputs.shape[2:])
        and channel_axis(module, output) != "first"
    )

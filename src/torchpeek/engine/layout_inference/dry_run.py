"""What every layer returns, by one dry pass, and how it is to be read."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.forward import run
from torchpeek.engine.layout import Layout, described
from torchpeek.engine.layout_inference.candidates import (
    CandidateLayer,
    LayoutEvidence,
    candidate_layouts,
    linear_widths,
    may_have_channels_last,
    without_attention_maps,
)
from torchpeek.engine.layout_inference.model_config import configured_grids, configured_queries, configured_token_counts
from torchpeek.engine.layout_inference.module_axes import channel_axis, grid_of
from torchpeek.engine.layout_inference.token_probe import locate_grid, token_movement
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.preserve import preserved
from torchpeek.hooks import attached, containers


@dataclass(frozen=True)
class LayerCall:
    """One layer in a dry pass: what it is, and what it returned in its last call."""

    name: str
    type: str
    parameters: int  # with those of the layers in it
    calls: int = 0
    output: str | None = None  # shape, or what else it was; None where it was not called


# A model is surveyed once for each size of input; forgotten with the model.
_DRY_RUNS: ModelCache[Any, DryRun] = ModelCache(capacity=16)


def layer_calls(model: nn.Module, call: ModelCall | None) -> list[LayerCall]:
    """Every layer, in the order of `named_modules`; of inputs, with what a pass over the first sample returns."""
    found = None if call is None else dry_run(model, call)
    return [
        LayerCall(
            name,
            type(module).__name__,
            sum(parameter.numel() for parameter in module.parameters()),
            found.calls.get(name, 0) if found else 0,
            found.outputs.get(name) if found else None,
        )
        for name, module in model.named_modules()
        if name
    ]


def layout_evidence(model: nn.Module, call: ModelCall) -> LayoutEvidence:
    """What a dry pass over the first sample shows of the model's grids, for as many samples as are call."""
    return replace(dry_run(model, call).evidence, batch_size=len(call))


def known_evidence(model: nn.Module, call: ModelCall) -> LayoutEvidence | None:
    """The same, without a pass: None where there was none yet."""
    known = _DRY_RUNS.get(model, _input_key(call))
    return None if known is None else replace(known.evidence, batch_size=len(call))


def layout_of(model: nn.Module, call: ModelCall, layer: str) -> Layout | None:
    """How what a layer returns is to be read, by a dry pass; None where it has no grid, or not one for certain."""
    found = dry_run(model, call)
    if layer not in found.evidence.meta_outputs:
        return None
    layouts = candidate_layouts(dict(model.named_modules())[layer], found.evidence.meta_outputs[layer], found.evidence)
    return layouts[0] if len(layouts) == 1 else None


@dataclass(frozen=True, eq=False)
class DryRun:
    """What one dry pass showed; no tensors."""

    calls: Mapping[str, int]
    outputs: Mapping[str, str]
    evidence: LayoutEvidence
    candidates: list[CandidateLayer]  # in the order in which they returned
    dense: bool  # whether the model answers at each position of a grid, or for boxes


class DryRunObserver:
    """What the hooks of a dry pass note."""

    def __init__(self, call: ModelCall, model: nn.Module) -> None:
        self._call = call
        self._model = model
        self._calls: dict[str, int] = {}
        self._outputs: dict[str, str] = {}
        self._meta_outputs: dict[str, Any] = {}
        self._layers_of_tensor: list[list[str]] = []  # for each tensor: all that returned it, innermost first
        self._return_times: list[int] = []  # and when the last of them did
        self._clock = count()
        self._reads_picture: set[str] = set()
        self._grids: dict[tuple[int, ...], None] = {}
        self._channels_first: set[tuple[int, ...]] = set()
        self._channels_last: set[tuple[int, ...]] = set()
        # The latest tensors, how often each had been written into, and its number in the list above.
        self._recent_tensors: deque[tuple[Tensor, int, int]] = deque(maxlen=8)

    def record_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._calls[name] = self._calls.get(name, 0) + 1
        self._outputs[name] = described(output)
        self._meta_outputs[name] = _on_meta_device(output)  # the readings are made when all grids are known
        if any(argument is self._call.model_picture for argument in args):
            self._reads_picture.add(name)
        if grid := grid_of(module, output):
            self._grids[grid] = None
        if isinstance(output, Tensor) and output.ndim >= 3 and len(output) == 1:
            axis = channel_axis(module, output)
            if axis is not None:
                (self._channels_last if axis == "last" else self._channels_first).add(tuple(output.shape[1:]))
        floating = [each for _, each in containers.leaves(output) if each.is_floating_point() and each.ndim >= 3]
        if len(floating) != 1 or isinstance(module, (nn.Softmax, nn.Dropout)):
            return  # of attention: rows and columns are no picture
        (tensor,) = floating
        for place, (earlier, version, number) in enumerate(self._recent_tensors):
            if tensor is earlier:
                passes_on = any(argument is tensor for argument in args) and tensor._version == version
                if not passes_on:
                    self._layers_of_tensor[number].append(name)
                    self._return_times[number] = next(self._clock)
                self._recent_tensors[place] = (tensor, tensor._version, number)
                return
        self._recent_tensors.append((tensor, tensor._version, len(self._layers_of_tensor)))
        self._layers_of_tensor.append([name])
        self._return_times.append(next(self._clock))

    def result(self, output: Any, beside: tuple[int | None, int], *, probe_undecided: bool = False) -> DryRun:
        """What the pass showed, in which the model returned `output`; `beside` the grid are so many tokens."""
        prefix, suffix = beside
        size, scales = self._size(), self._call.takes_list
        of_picture = (grid for grid in (*self._grids, *configured_grids(self._model)) if len(grid) == len(size))
        fitting = [grid for grid in of_picture if scales or all(a <= b for a, b in zip(grid, size, strict=True))]
        grids = tuple(without_attention_maps(fitting, size))
        evidence = LayoutEvidence(
            size,
            1,
            grids,
            prefix,
            suffix,
            query_counts=configured_queries(self._model),
            channels_first_shapes=frozenset(self._channels_first),
            channels_last_shapes=frozenset(self._channels_last),
            may_have_channels_last=may_have_channels_last(self._model)
            or any(len(shape) > 2 for shape in self._channels_last),
            linear_widths=linear_widths(self._model),
            rescales_input=scales,
            probe_undecided=probe_undecided,
            # Where frames, or other parts of a picture, are convolved one by one, tokens may be in any order.
            grids_from_strides=not self._grids or bool(grids),
            meta_outputs=self._meta_outputs,
        )
        modules = dict(self._model.named_modules())
        candidates: list[CandidateLayer] = []
        # In the order of the last return: a block may write into, and return, what a part of it made.
        in_order = sorted(range(len(self._layers_of_tensor)), key=self._return_times.__getitem__)
        for names in (self._layers_of_tensor[number] for number in in_order):
            # By what each itself returned: one has the tensor in a container, another's kind says what its axes are.
            found = {name: candidate_layouts(modules[name], self._meta_outputs[name], evidence) for name in names}
            layer = self._representative([name for name in names if len(found[name]) == 1])
            if layer and not _only_enlarges(modules[layer], found[layer][0], candidates):
                projection = type(modules[layer]) is nn.Linear and names == [layer]
                candidates.append(CandidateLayer(layer, found[layer][0], projection))
        if not all(each.projection for each in candidates):
            candidates = [each for each in candidates if not each.projection]
        if candidates and any(type(module).__name__ == "Unroll" for module in modules.values()):
            # Hiera: until its last stage the tokens are in the order in which they are merged, and not in the grid's.
            last = candidates[-1].layout
            evidence = replace(evidence, row_major_grid=last.grid)
            candidates = [each for each in candidates if not each.layout.flat or each.layout.grid == last.grid]
        dense = scales or any(self._is_dense(path, tensor) for path, tensor in containers.leaves(output))
        return DryRun(self._calls, self._outputs, evidence, candidates, dense)

    def _is_dense(self, path: str, tensor: Tensor) -> bool:
        of_positions = tensor.ndim == self._call.picture.ndim and tensor.shape[2:].numel() > 1
        return "boxes" in path or (of_positions and tensor.is_floating_point())

    def _size(self) -> tuple[int, ...]:
        """The picture's own axes. All but the first, where that is how convolutions see it: no axis is of channels."""
        picture = self._call.picture
        axes = {len(grid) for grid in self._grids}
        without_channels = picture.ndim - 2 not in axes and picture.ndim - 1 in axes
        return tuple(picture.shape[1:] if without_channels else picture.shape[2:])

    def _representative(self, names: list[str]) -> str | None:
        once = [name for name in names if self._calls[name] == 1]
        inner = [name for name in once if name not in self._reads_picture] or once
        return min(reversed(inner), key=lambda name: name.count(".")) if inner else None


def _only_enlarges(module: nn.Module, layout: Layout, before: list[CandidateLayer]) -> bool:
    """Whether it only spreads a coarser grid that came before to one of a fixed size, as VGG does small pictures."""
    adaptive = isinstance(module, (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd))
    return adaptive and bool(before) and math.prod(layout.grid) > math.prod(before[-1].layout.grid)


def _on_meta_device(output: Any) -> Any:
    """The same container with tensors that have a shape and no numbers."""
    return containers.mapped(output, lambda _, each: torch.empty(each.shape, dtype=each.dtype, device="meta"))


def first_sample(call: ModelCall) -> ModelCall:
    # A copy, so that being call the model's input is told from being call a view.
    return call.select(torch.tensor([0]), call.picture[:1].detach().clone())


def _input_key(call: ModelCall) -> tuple[object, ...]:
    return tuple(call.picture.shape[1:]), call.picture_path


def dry_run(model: nn.Module, call: ModelCall, *, anew: bool = False) -> DryRun:
    key = _input_key(call)
    known = None if anew else _DRY_RUNS.get(model, key)
    if known is not None:
        return known
    first = first_sample(call).for_one_pass()
    observer = DryRunObserver(first, model)
    hooks = ((module, partial(observer.record_call, name)) for name, module in model.named_modules() if name)
    with preserved(model), attached(hooks):
        output = run(model, first)
    result = observer.result(output, configured_token_counts(model))
    unknown = [each for each in result.candidates if each.layout.others and result.evidence.prefix is None]
    if unknown and (corners := token_movement(model, first, result.evidence.input_size, unknown[0])):
        beside = locate_grid(*corners, unknown[0].layout)
        result = observer.result(output, beside or (None, 0), probe_undecided=beside is None)
    return _DRY_RUNS.put(model, key, result)

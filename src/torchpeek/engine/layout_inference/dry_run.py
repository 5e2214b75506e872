"""The dry run: one pass over one sample that shows what every layer returns, and the evidence that follows from it."""

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

from torchpeek.engine.fixed_batch import with_fixed_batch
from torchpeek.engine.forward import run
from torchpeek.engine.input_mismatch import unbatched_hooks
from torchpeek.engine.layout import Layout, described
from torchpeek.engine.layout_inference.candidates import (
    CandidateLayer,
    LayoutEvidence,
    candidate_layouts,
    linear_widths,
    may_have_channels_last,
    without_attention_maps,
)
from torchpeek.engine.layout_inference.module_axes import channel_axis, grid_of
from torchpeek.engine.layout_inference.token_probe import locate_grid, token_movement
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.model_config import (
    configured_grids,
    configured_query_counts,
    configured_token_counts,
    is_boxes,
    reorders_tokens,
)
from torchpeek.engine.preserve import preserved
from torchpeek.engine.replay.prefix import version_of
from torchpeek.hooks import attached, containers, takes_hooks


@dataclass(frozen=True)
class LayerCall:
    """One layer, and its last call in a dry run.

    Args:
        name: The layer's name.
        type: The name of its class.
        parameters: How many numbers its parameters have, with those of the layers in it.
        calls: How often the pass called it.
        output: The shape of its output, or a description of another output. None where it was not called.
    """

    name: str
    type: str
    parameters: int
    calls: int = 0
    output: str | None = None


@dataclass(frozen=True, eq=False)
class DryRun:
    """What one dry run showed. It holds no tensors with values.

    Args:
        calls: Layer -> how often it was called.
        outputs: Layer -> the shape of its last output.
        evidence: What is known of the grids and the tokens.
        candidates: The layers with a grid, in the order in which they returned.
        dense: Whether the model predicts boxes, or something for each position of a grid.
    """

    calls: Mapping[str, int]
    outputs: Mapping[str, str]
    evidence: LayoutEvidence
    candidates: list[CandidateLayer]
    dense: bool


# One dry run for each model and kind of input.
_DRY_RUNS: ModelCache[Any, DryRun] = ModelCache(capacity=16)


def layer_calls(model: nn.Module, call: ModelCall | None) -> list[LayerCall]:
    """Every layer, in the order of `named_modules`; with a call, also what a dry run over its first sample showed."""
    dry = None if call is None else dry_run(model, call)
    return [
        LayerCall(
            name,
            type(module).__name__,
            sum(parameter.numel() for parameter in module.parameters()),
            dry.calls.get(name, 0) if dry else 0,
            dry.outputs.get(name) if dry else None,
        )
        for name, module in model.named_modules()
        if name
    ]


def known_evidence(model: nn.Module, call: ModelCall) -> LayoutEvidence | None:
    """What a dry run of the model has shown, for the batch size of the call; None where there was none yet."""
    dry = _DRY_RUNS.get(model, _input_key(call))
    return None if dry is None else replace(dry.evidence, batch_size=len(call))


def layout_of(model: nn.Module, call: ModelCall, layer: str) -> Layout | None:
    """The layout of a layer's output, by a dry run; None where no layout fits, or several do."""
    evidence = dry_run(model, call).evidence
    if layer not in evidence.meta_outputs:
        return None
    layouts = candidate_layouts(dict(model.named_modules())[layer], evidence.meta_outputs[layer], evidence)
    return layouts[0] if len(layouts) == 1 else None


def dry_run(model: nn.Module, call: ModelCall, *, anew: bool = False) -> DryRun:
    """Run the first sample once and return what it showed, or return the remembered dry run unless `anew`.

    Where the model has tokens outside the grid and its configuration does not say where, the token probe makes three
    more passes.
    """
    key = _input_key(call)
    remembered = None if anew else _DRY_RUNS.get(model, key)
    if remembered is not None:
        return remembered
    result = with_fixed_batch(model, call, lambda size: _dry_run(model, call.one_sample(size).for_one_pass()))
    return _DRY_RUNS.put(model, key, result)


def _dry_run(model: nn.Module, sample: ModelCall) -> DryRun:
    observer = DryRunObserver(sample, model)
    hooks = (
        (module, partial(observer.record_call, name))
        for name, module in model.named_modules()
        if name and takes_hooks(module)
    )
    with preserved(model), attached(hooks, called=unbatched_hooks(model, sample)):
        output = run(model, sample)
    result = observer.result(output, configured_token_counts(model))
    not_configured = [each for each in result.candidates if each.layout.others and result.evidence.prefix is None]
    if not_configured and (movement := token_movement(model, sample, result.evidence.input_size, not_configured[0])):
        token_counts = locate_grid(*movement, not_configured[0].layout)
        result = observer.result(output, token_counts or (None, 0), probe_undecided=token_counts is None)
    return result


def _input_key(call: ModelCall) -> tuple[object, ...]:
    return tuple(call.picture.shape[1:]), call.picture_path


class DryRunObserver:
    """Records what each layer returns in a dry run, and makes a DryRun of it."""

    def __init__(self, call: ModelCall, model: nn.Module) -> None:
        self._call = call
        self._model = model
        self._calls: dict[str, int] = {}
        self._outputs: dict[str, str] = {}
        self._meta_outputs: dict[str, Any] = {}
        self._layers_of_tensor: list[list[str]] = []  # for each tensor, the layers that returned it, innermost first
        self._return_times: list[int] = []  # for each tensor, when the last of these layers returned
        self._clock = count()
        self._reads_picture: set[str] = set()
        self._grids: dict[tuple[int, ...], None] = {}
        self._channels_first_shapes: set[tuple[int, ...]] = set()
        self._channels_last_shapes: set[tuple[int, ...]] = set()
        # (tensor, its version, its index in the lists above) of the latest outputs.
        self._recent_tensors: deque[tuple[Tensor, int | None, int]] = deque(maxlen=8)

    def record_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook of one layer."""
        self._calls[name] = self._calls.get(name, 0) + 1
        self._outputs[name] = described(output)
        self._meta_outputs[name] = _on_meta_device(output)  # its layouts are inferred once all grids are known
        if any(argument is self._call.model_picture for argument in args):
            self._reads_picture.add(name)
        if grid := grid_of(module, output):
            self._grids[grid] = None
        if isinstance(output, Tensor) and output.ndim >= 3 and len(output) == len(self._call):
            axis = channel_axis(module, output)
            if axis is not None:
                shapes = self._channels_last_shapes if axis == "last" else self._channels_first_shapes
                shapes.add(tuple(output.shape[1:]))
        tensors = [each for _, each in containers.leaves(output) if each.is_floating_point() and each.ndim >= 3]
        if len(tensors) != 1 or isinstance(module, (nn.Softmax, nn.Dropout)):
            return  # Softmax and Dropout may return attention weights, whose axes are not a grid
        (tensor,) = tensors
        for index, (recent, version, number) in enumerate(self._recent_tensors):
            if tensor is recent:
                passes_through = any(argument is tensor for argument in args) and not _wrote(module, tensor, version)
                if not passes_through:
                    self._layers_of_tensor[number].append(name)
                    self._return_times[number] = next(self._clock)
                self._recent_tensors[index] = (tensor, version_of(tensor), number)
                return
        self._recent_tensors.append((tensor, version_of(tensor), len(self._layers_of_tensor)))
        self._layers_of_tensor.append([name])
        self._return_times.append(next(self._clock))

    def result(self, output: Any, token_counts: tuple[int | None, int], *, probe_undecided: bool = False) -> DryRun:
        """What the pass showed.

        Args:
            output: What the model returned.
            token_counts: How many tokens come before and after the grid; the first is None where that is not known.
            probe_undecided: Whether the token probe ran and did not find these numbers.
        """
        evidence = self._evidence(token_counts, probe_undecided)
        candidates = self._candidate_layers(evidence)
        if candidates and reorders_tokens(self._model):
            last_grid = candidates[-1].layout.grid
            evidence = replace(evidence, row_major_grid=last_grid)
            candidates = [each for each in candidates if not each.layout.flat or each.layout.grid == last_grid]
        dense = self._call.takes_list or any(self._is_dense(path, tensor) for path, tensor in containers.leaves(output))
        return DryRun(self._calls, self._outputs, evidence, candidates, dense)

    def _evidence(self, token_counts: tuple[int | None, int], probe_undecided: bool) -> LayoutEvidence:
        prefix, suffix = token_counts
        size, rescales_input = self._input_size(), self._call.takes_list
        of_picture = (grid for grid in (*self._grids, *configured_grids(self._model)) if len(grid) == len(size))
        fitting = [
            grid for grid in of_picture if rescales_input or all(a <= b for a, b in zip(grid, size, strict=True))
        ]
        grids = tuple(without_attention_maps(fitting, size))
        has_channels_last = any(len(shape) > 2 for shape in self._channels_last_shapes)
        return LayoutEvidence(
            size,
            len(self._call),
            grids,
            prefix,
            suffix,
            query_counts=configured_query_counts(self._model),
            channels_first_shapes=frozenset(self._channels_first_shapes),
            channels_last_shapes=frozenset(self._channels_last_shapes),
            may_have_channels_last=may_have_channels_last(self._model) or has_channels_last,
            linear_widths=linear_widths(self._model),
            rescales_input=rescales_input,
            probe_undecided=probe_undecided,
            # Convolutions that run on single frames or other parts of the picture have grids, but none of the whole
            # picture. The tokens of such a model may be in any order.
            grids_from_strides=not self._grids or bool(grids),
            meta_outputs=self._meta_outputs,
            dry_batch_size=len(self._call),
        )

    def _candidate_layers(self, evidence: LayoutEvidence) -> list[CandidateLayer]:
        """One layer for each tensor with exactly one layout, in the order in which the last layer returned it."""
        modules = dict(self._model.named_modules())
        candidates: list[CandidateLayer] = []
        # A block may write into the output of one of its layers, and return it.
        by_return_time = sorted(range(len(self._layers_of_tensor)), key=self._return_times.__getitem__)
        for names in (self._layers_of_tensor[number] for number in by_return_time):
            # Each layer by its own output and type: one may return the tensor in a container, and the type of another
            # may decide the channel axis.
            layouts = {name: candidate_layouts(modules[name], self._meta_outputs[name], evidence) for name in names}
            layer = self._representative([name for name in names if len(layouts[name]) == 1])
            if layer and not _only_enlarges(modules[layer], layouts[layer][0], candidates):
                projection = type(modules[layer]) is nn.Linear and names == [layer]
                candidates.append(CandidateLayer(layer, layouts[layer][0], projection))
        if all(each.projection for each in candidates):
            return candidates
        return [each for each in candidates if not each.projection]

    def _is_dense(self, path: str, tensor: Tensor) -> bool:
        has_grid = tensor.ndim == self._call.picture.ndim and tensor.shape[2:].numel() > 1
        return is_boxes(path) or (has_grid and tensor.is_floating_point())

    def _input_size(self) -> tuple[int, ...]:
        """The sizes of the picture's own axes, such as (H, W).

        A picture (N, H, W) has no channel axis. It is recognised by the grids of the convolutions, which have as many
        axes as the picture has after N.
        """
        picture = self._call.picture
        axis_counts = {len(grid) for grid in self._grids}
        has_no_channels = picture.ndim - 2 not in axis_counts and picture.ndim - 1 in axis_counts
        return tuple(picture.shape[1:] if has_no_channels else picture.shape[2:])

    def _representative(self, names: list[str]) -> str | None:
        """Of layers that return one tensor, the outermost that was called once; of several outermost, the last.

        A layer that takes the model's own input is the whole feature extractor, and is taken only where there is no
        other.
        """
        called_once = [name for name in names if self._calls[name] == 1]
        inner = [name for name in called_once if name not in self._reads_picture] or called_once
        return min(reversed(inner), key=lambda name: name.count(".")) if inner else None


def _only_enlarges(module: nn.Module, layout: Layout, before: list[CandidateLayer]) -> bool:
    """Whether it is an adaptive pooling that spreads a coarser grid to a fixed size, as in VGG for small pictures."""
    adaptive = isinstance(module, (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd))
    return adaptive and bool(before) and math.prod(layout.grid) > math.prod(before[-1].layout.grid)


def _wrote(module: nn.Module, tensor: Tensor, version: int | None) -> bool:
    """Whether the module wrote into the tensor that it was called with. torch counts no writes in inference mode."""
    return bool(module.__dict__.get("inplace")) if version is None else tensor._version != version


def _on_meta_device(output: Any) -> Any:
    """The same container, with tensors that have a shape and a dtype but no values."""
    return containers.mapped(output, lambda _, each: torch.empty(each.shape, dtype=each.dtype, device="meta"))

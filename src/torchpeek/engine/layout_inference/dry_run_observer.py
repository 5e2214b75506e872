"""What a dry run shows: what each layer returns, observed by hooks, and the evidence that follows from it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.engine.forward import run
from torchpeek.engine.layout import Layout
from torchpeek.engine.layout_inference.candidates import CandidateLayer, layouts_in_dry_run
from torchpeek.engine.layout_inference.evidence import (
    MOST_SPECIAL_TOKENS,
    LayoutEvidence,
    linear_widths,
    may_have_channels_last,
    without_attention_maps,
)
from torchpeek.engine.layout_inference.module_axes import channel_axis, grid_of
from torchpeek.engine.layout_inference.position_origin import PositionTracker
from torchpeek.engine.layout_inference.projections import is_projection
from torchpeek.engine.layout_text import described
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.model_config import configured_grids, configured_query_counts, is_boxes, reorders_tokens
from torchpeek.engine.preserve import preserved
from torchpeek.engine.replay.prefix import version_of
from torchpeek.hooks import call_name, containers
from torchpeek.tensor_formats import is_dense, is_dense_float, is_plain


@dataclass(frozen=True, eq=False)
class DryRun:
    """What one dry run showed. It holds no tensors with values.

    Args:
        calls: Layer -> how often it was called.
        outputs: Layer -> the shape of the output of each call.
        evidence: What is known of the grids and the tokens.
        candidates: The layers with a grid, and single calls of those that were called several times, `name[i]`, in the
            order in which they returned.
        dense: Whether the model predicts boxes, or something for each position of a grid.
        layers: For each tensor that layers returned, the outermost of them, in the order in which they returned.
        branches: The candidates that do not carry all of the picture: others with the same grid are added or joined to
            them later. Tokens are not among them, as a class token goes around its grid.
    """

    calls: Mapping[str, int]
    outputs: Mapping[str, list[str]]
    evidence: LayoutEvidence
    candidates: list[CandidateLayer]
    dense: bool
    layers: tuple[str, ...] = ()
    branches: frozenset[str] = frozenset()


_NumberedCall: TypeAlias = tuple[str, int]
"""The name of a layer, and the number of one of its calls, from 0."""


class DryRunObserver:
    """Records what each layer returns in a dry run, and makes a DryRun of it."""

    def __init__(self, call: ModelCall, model: nn.Module, tracker: PositionTracker | None) -> None:
        self._call = call
        self._model = model
        self._tracker = tracker
        self._other_positions: set[tuple[str, str]] = set()  # layers and calls, parts of their outputs
        self._without_picture: set[tuple[str, str]] = set()  # the same, of outputs that do not depend on the picture
        self._calls: dict[str, int] = {}
        self._outputs: dict[str, list[str]] = {}
        self._meta_outputs: dict[str, Any] = {}  # of each call by its name, and by the layer's name of the last one
        self._meta_inputs: dict[str, Any] = {}  # of the last call; None where it is not one dense tensor
        self._projections: dict[str, bool] = {}
        self._nodes: dict[tuple[str, str], int | None] = {}  # of layers and calls, and parts of their outputs
        # For each tensor, the layers and numbers of the calls that returned it, innermost first.
        self._layers_of_tensor: list[list[_NumberedCall]] = []
        self._return_times: list[int] = []  # for each tensor, when the last of these layers returned
        self._clock = count()
        self._reads_picture: set[_NumberedCall] = set()
        self._grids: dict[tuple[int, ...], None] = {}
        self._axis_counts: set[int] = set()  # of the grids of layers whose batch axis holds the samples
        self._channels_first_shapes: set[tuple[int, ...]] = set()
        self._channels_last_shapes: set[tuple[int, ...]] = set()
        # (tensor, its version, its index in the lists above) of the latest outputs.
        self._recent_tensors: deque[tuple[Tensor, int | None, int]] = deque(maxlen=8)

    def record_inputs(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """The forward pre-hook of one layer."""
        tensors = [tensor for _, tensor in containers.leaves((args, kwargs))]
        has_one = len(tensors) == 1 and is_plain(tensors[0])
        self._meta_inputs[name] = _on_meta_device((args, kwargs)) if has_one else None

    def record_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook of one layer."""
        numbered = name, self._calls.get(name, 0)
        self._calls[name] = numbered[1] + 1
        self._outputs.setdefault(name, []).append(described(output, len(self._call)))
        meta_output = self._meta_outputs.get(name)
        if not _same_shape(output, meta_output):  # a layer may be called for each of a thousand frames
            meta_output = _on_meta_device(output)  # its layouts are inferred once all grids are known
        self._meta_outputs[name] = self._meta_outputs[call_name(*numbered)] = meta_output
        if self._tracker is not None:
            self._record_positions(self._tracker, numbered, output)
        if any(argument is self._call.model_picture for argument in args):
            self._reads_picture.add(numbered)
        if grid := grid_of(module, output):
            self._grids[grid] = None
            if len(output) == len(self._call):
                self._axis_counts.add(len(grid))
        if isinstance(output, Tensor) and is_dense(output) and output.ndim >= 3 and len(output) == len(self._call):
            axis = channel_axis(module, output)
            if axis is not None:
                shapes = self._channels_last_shapes if axis == "last" else self._channels_first_shapes
                shapes.add(tuple(output.shape[1:]))
        tensors = [each for _, each in containers.leaves(output) if is_dense_float(each) and each.ndim >= 3]
        if len(tensors) != 1 or isinstance(module, (nn.Softmax, nn.Dropout)):
            return  # Softmax and Dropout may return attention weights, whose axes are not a grid
        (tensor,) = tensors
        for index, (recent, version, number) in enumerate(self._recent_tensors):
            if tensor is recent:
                passes_through = any(argument is tensor for argument in args) and not _wrote(module, tensor, version)
                if not passes_through:
                    self._layers_of_tensor[number].append(numbered)
                    self._return_times[number] = next(self._clock)
                self._recent_tensors[index] = (tensor, version_of(tensor), number)
                return
        self._recent_tensors.append((tensor, version_of(tensor), len(self._layers_of_tensor)))
        self._layers_of_tensor.append([numbered])
        self._return_times.append(next(self._clock))

    def _record_positions(self, tracker: PositionTracker, numbered: _NumberedCall, output: Any) -> None:
        """Note the parts of an output that have no positions of the picture."""
        for path, tensor in containers.leaves(output):
            is_dependent = tracker.depends_on_picture(tensor)
            if not is_dependent:
                self._without_picture.add((call_name(*numbered), path))
            for name in (numbered[0], call_name(*numbered)):
                self._nodes[name, path] = tracker.node(tensor)
                self._other_positions.discard((name, path))
                if is_dependent and not tracker.has_positions_of_picture(tensor):
                    self._other_positions.add((name, path))

    def result(
        self,
        output: Any,
        token_counts: tuple[int | None, int],
        probed: Mapping[int, tuple[int, int]] | None = None,
        *,
        probe_undecided: bool = False,
    ) -> DryRun:
        """What the pass showed.

        Args:
            output: What the model returned.
            token_counts: How many tokens come before and after the grid; the first is None where that is not known.
            probed: Number of tokens -> the same for layers of so many tokens, by the token probe.
            probe_undecided: Whether the token probe ran and did not find these numbers.
        """
        evidence = replace(self._evidence(token_counts, probe_undecided), token_counts=probed or {})
        candidates = self._candidate_layers(evidence)
        if candidates and reorders_tokens(self._model):
            last_grid = candidates[-1].layout.grid
            evidence = replace(evidence, row_major_grid=last_grid)
            candidates = [each for each in candidates if not each.layout.flat or each.layout.grid == last_grid]
        by_return_time = self._by_return_time()
        dense = self._call.takes_list or any(self._is_dense(path, tensor) for path, tensor in containers.leaves(output))
        layers = tuple(min((name for name, _ in each), key=lambda name: name.count(".")) for each in by_return_time)
        branches = self._branches(candidates)
        return DryRun(self._calls, self._outputs, evidence, candidates, dense, layers, branches)

    def _branches(self, candidates: Sequence[CandidateLayer]) -> frozenset[str]:
        """The candidates around which others with the same grid reach the output, from the last grid only."""
        if self._tracker is None or not candidates or candidates[-1].layout.flat:
            return frozenset()
        nodes = {
            each.layer: node
            for each in candidates
            if not each.layout.flat
            and each.layout.grid == candidates[-1].layout.grid
            and (node := self._nodes.get((each.layer, each.layout.part))) is not None
        }
        return self._tracker.flow.branches(nodes)

    def _evidence(self, token_counts: tuple[int | None, int], probe_undecided: bool) -> LayoutEvidence:
        prefix, suffix = token_counts
        size, rescales_input = self._input_size(), self._call.takes_list
        grids_of_signal = [
            _along(size, grid) for grid in self._grids if len(grid) == 1 < len(size) == size.count(1) + 1
        ]
        all_grids = (*self._grids, *grids_of_signal, *configured_grids(self._model))
        of_picture = (grid for grid in all_grids if len(grid) == len(size))
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
            most_others=MOST_SPECIAL_TOKENS
            + max(sum(_lengths(self._call)), 0 if self._tracker is None else self._tracker.most_joined),
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
            inner_grids=tuple(self._grids),
            meta_outputs=self._meta_outputs,
            dry_batch_size=len(self._call),
            other_positions=frozenset(self._other_positions),
        )

    def _candidate_layers(self, evidence: LayoutEvidence) -> list[CandidateLayer]:
        """One layer for each tensor with exactly one layout, in the order in which the last layer returned it.

        Of layers that were called several times, it is one of their calls. Projections are left out if there is any
        other layer.
        """
        modules = dict(self._model.named_modules())
        candidates: list[CandidateLayer] = []
        paths: list[str] = []  # of the candidates' layers, whatever their calls
        for members in self._by_return_time():
            # Each layer by its own output and type: one may return the tensor in a container, and the type of another
            # may decide the channel axis.
            layouts = {each: layouts_in_dry_run(call_name(*each), modules[each[0]], evidence) for each in members}
            fitting = [each for each in members if len(layouts[each]) == 1]
            representative = self._representative(
                [each for each in fitting if (call_name(*each), layouts[each][0].part) not in self._without_picture]
            )
            if representative is None:
                continue
            name, layout = representative[0], layouts[representative][0]
            if not _only_enlarges(modules[name], layout, candidates):
                layer = name if self._calls[name] == 1 else call_name(*representative)
                candidates.append(CandidateLayer(layer, layout))
                paths.append(name)
        projections = self._names_of_projections(dict(zip(paths, candidates, strict=True)), modules)
        others = [each for path, each in zip(paths, candidates, strict=True) if not _is_within(path, projections)]
        return others or candidates

    def _by_return_time(self) -> list[list[_NumberedCall]]:
        """For each tensor, the calls that returned it, in the order in which the last of these calls returned it."""
        # A block may write into the output of one of its layers, and return it.
        by_return_time = sorted(range(len(self._layers_of_tensor)), key=self._return_times.__getitem__)
        return [self._layers_of_tensor[number] for number in by_return_time]

    def _names_of_projections(
        self, candidates: Mapping[str, CandidateLayer], modules: Mapping[str, nn.Module]
    ) -> set[str]:
        """The layers that are projections. The experiment runs once for each layer.

        Args:
            candidates: Name of the layer -> the candidate, which may be one of its calls.
            modules: All layers by name.
        """
        found: set[str] = set()

        @cache  # one pass for all the modules that fail in the experiment
        def whole_pass() -> None:
            run(self._model, self._call.for_one_pass())

        with preserved(self._model):
            for path in sorted(candidates, key=lambda path: path.count(".")):
                if _is_within(path, found):
                    continue
                if path not in self._projections:
                    self._projections[path] = is_projection(
                        modules[path],
                        self._meta_inputs.get(path),
                        self._meta_outputs[path],
                        candidates[path].layout,
                        self._call.picture.device,
                        inside_grid_layer=_is_within(path.rpartition(".")[0], candidates),
                        whole_pass=whole_pass,
                    )
                if self._projections[path]:
                    found.add(path)
        return found

    def _is_dense(self, path: str, tensor: Tensor) -> bool:
        has_grid = tensor.ndim == self._call.picture.ndim and tensor.shape[2:].numel() > 1
        return is_boxes(path) or (has_grid and is_dense_float(tensor))

    def _input_size(self) -> tuple[int, ...]:
        """The sizes of the picture's own axes, such as (H, W).

        A picture (N, H, W) has no channel axis, and one of frames, (N, T, C, H, W), has more axes before its own. Both
        are recognised by the grids of the convolutions, if none has as many axes as a picture (N, C, *grid). A signal
        (N, C, 1, T) has axes of its own that a convolution of one axis does without.
        """
        picture = self._call.picture
        fewer = [count for count in self._axis_counts if count < picture.ndim]
        is_signal = picture.shape[2:].numel() == picture.shape[-1] and max(fewer, default=0) == 1
        if not fewer or picture.ndim - 2 in fewer or is_signal:
            return tuple(picture.shape[2:])
        return tuple(picture.shape[-max(fewer) :])

    def _representative(self, members: list[_NumberedCall]) -> _NumberedCall | None:
        """Of calls that return one tensor, that of the outermost layer; of several outermost, the last.

        A layer that takes the model's own input is the whole feature extractor, and is taken only where there is no
        other.
        """
        inner = [each for each in members if each not in self._reads_picture] or members
        return min(reversed(inner), key=lambda each: each[0].count(".")) if inner else None


def _lengths(call: ModelCall) -> set[int]:
    """How many entries the other arguments have for each sample, such as the words of a text."""
    return {tensor.shape[1] for _, tensor in containers.leaves(call.arguments) if tensor.ndim > 1}


def _along(size: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, ...]:
    """The grid of one axis along the one long axis of a picture: (56,) of a signal (1, 64) is (1, 56)."""
    return tuple(grid[0] if length > 1 else 1 for length in size)


def _is_within(layer: str, names: Container[str]) -> bool:
    """Whether a layer is one of these, or inside one of them."""
    parts = layer.split(".")
    return any(".".join(parts[:end]) in names for end in range(1, len(parts) + 1))


def _only_enlarges(module: nn.Module, layout: Layout, before: list[CandidateLayer]) -> bool:
    """Whether it is an adaptive pooling that spreads a coarser grid to a fixed size, as in VGG for small pictures."""
    adaptive = isinstance(module, (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd))
    return adaptive and bool(before) and math.prod(layout.grid) > math.prod(before[-1].layout.grid)


def _same_shape(output: Any, meta_output: Any) -> bool:
    if not isinstance(output, Tensor) or not isinstance(meta_output, Tensor):
        return False
    return is_dense(output) and output.shape == meta_output.shape and output.dtype == meta_output.dtype


def _wrote(module: nn.Module, tensor: Tensor, version: int | None) -> bool:
    """Whether the module wrote into the tensor that it was called with. torch counts no writes in inference mode."""
    return bool(module.__dict__.get("inplace")) if version is None else tensor._version != version


def _on_meta_device(output: Any) -> Any:
    """The same container, with tensors that have a shape and a dtype but no values."""
    return containers.mapped(output, lambda _, each: _without_values(each))


def _without_values(tensor: Tensor) -> Tensor:
    if not is_dense(tensor):  # it has its own layout only as it is
        return tensor.detach()
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

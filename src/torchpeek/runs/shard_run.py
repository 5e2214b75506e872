"""run_shard(): one shard of a run, computed. It only depends on its arguments, so it is the same on every machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchpeek.anatomy import activations
from torchpeek.cam import Smoothing
from torchpeek.engine import Trace, output_part
from torchpeek.engine.targets import Classes, ClassesPerSample, Target, as_target, class_logits
from torchpeek.errors import InputError, RunError, SampleChanged
from torchpeek.evaluation import evaluate
from torchpeek.explanation import HeatmapOptions, LayerChoice, explain_methods
from torchpeek.explanation.plan import PassRequirements, run_pass
from torchpeek.explanation.request import class_names_of, explanation_request
from torchpeek.heatmap import Heatmap
from torchpeek.hooks import containers
from torchpeek.metrics import METRICS
from torchpeek.models import LoadedModel
from torchpeek.runs.decoding import DecodedSample, Failure, decoded_batches, failure
from torchpeek.runs.part_content import PartContent
from torchpeek.runs.samples import SampleList
from torchpeek.runs.shards import Shard
from torchpeek.runs.sources.source import Source
from torchpeek.runs.spec import OF_LABEL, Group
from torchpeek.system_errors import is_from_outside

_TOP = 5  # classes of a prediction

Advance = Callable[[int, int, float], None]
"""Called after each batch: how many samples it had, how many of them failed, and the seconds waited for them."""


def run_shard(
    loaded: LoadedModel,
    samples: SampleList,
    source: Source,
    shard: Shard,
    groups: Sequence[Group],
    *,
    seed: int = 0,
    max_size: int | None = None,
    workers: int = 0,
    bounds: Sequence[tuple[int, int]] | None = None,
    digests: Mapping[int, bytes] | None = None,
    advance: Advance = lambda count, failed, waited: None,
) -> list[PartContent]:
    """Compute some groups of one shard.

    Every batch has the same number of rows, and each sample its own place in it: where one is missing, because it
    cannot be read or the list ends, a copy of the first stands there. So no sample has another result because of what
    its neighbours are. Each group fails by itself.

    Args:
        loaded: The model.
        samples: The frozen list.
        source: Reads the samples.
        shard: Which of them.
        groups: What to compute.
        seed: The seed of methods that draw random numbers.
        max_size: The largest side of a picture before the preprocessing, in pixels.
        workers: How many processes decode.
        bounds: Some of the shard's batches; None for all.
        digests: The digests that the samples had when they were first read, by number. A sample that has changed since
            is a failure.
        advance: Called after each batch.

    Returns:
        The content of the part of each group.

    Raises:
        RunError: When a batch does not fit into the device's memory.
    """
    contents = [PartContent(group) for group in groups]
    bounds = shard.bounds if bounds is None else bounds
    batches = decoded_batches(samples, source, loaded, bounds, max_size=max_size, workers=workers)
    began = time.perf_counter()
    for (start, _), batch in zip(bounds, batches, strict=True):
        waited = time.perf_counter() - began
        count = sum(len(decoded) for _, decoded in batch.inputs) + len(batch.failures)
        unread, failed = list(batch.failures), set[int]()
        for inputs, decoded in batch.inputs:
            changed = [each for each in decoded if digests and digests.get(each.row, each.digest) != each.digest]
            unread += [
                failure(each.row, "read", SampleChanged("has changed since it was first read in this run"))
                for each in changed
            ]
            rows = [i for i, each in enumerate(decoded) if each not in changed]
            if rows:
                placed = _Placed(inputs[rows], [decoded[i] for i in rows], start, shard.batch)
                for content in contents:
                    failures = _add(content, loaded, placed, seed)
                    content.failures += failures
                    failed |= {each.row for each in failures}
        for content in contents:
            content.failures += unread
        advance(count, len(unread) + len(failed), waited)
        began = time.perf_counter()
    return contents


@dataclass(frozen=True, eq=False)
class _Placed:
    """Samples of one shape in their batch.

    Args:
        inputs: (n, C, H, W).
        decoded: The n samples.
        start: The number of the first sample of the batch.
        size: How many samples a batch has.
    """

    inputs: Tensor
    decoded: Sequence[DecodedSample]
    start: int
    size: int

    @property
    def places(self) -> list[int]:
        """The places of the samples in the batch: a sample has the same whatever its neighbours are."""
        return [each.row - self.start for each in self.decoded]

    def filled(self) -> tuple[Tensor, list[DecodedSample]]:
        """The whole batch, (size, C, H, W), and its samples. The first sample stands at the places of missing ones."""
        index = [0] * self.size
        for i, place in enumerate(self.places):
            index[place] = i
        return self.inputs[index], [self.decoded[i] for i in index]

    def alone(self) -> Iterator[_Placed]:
        """Each of the samples without the others."""
        for i, sample in enumerate(self.decoded):
            yield _Placed(self.inputs[i : i + 1], [sample], self.start, self.size)


def _add(content: PartContent, loaded: LoadedModel, placed: _Placed, seed: int) -> list[Failure]:
    """Compute a batch for one group and add its rows. Where it raises, each sample is tried alone.

    Returns:
        The samples that failed. Their predictions are kept, where the group has any.
    """
    try:
        computed = _computed(content.group, loaded, placed, seed)
    except Exception as error:
        if is_from_outside(error):
            raise
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            raise RunError(
                f"a batch of {placed.size} samples does not fit into memory ({str(error).partition('. ')[0]}). Next: "
                "another run with a smaller batch"
            ) from error
        if len(placed.decoded) > 1:
            return [each for alone in placed.alone() for each in _add(content, loaded, alone, seed)]
        group = content.group
        if group.predictions and (group.methods or group.keep):
            prediction = PartContent(Group(predictions=True))
            if not _add(prediction, loaded, placed, seed):
                content.predicted += prediction.predicted
        return [failure(placed.decoded[0].row, "explain", error)]
    for add in computed:
        add(content)
    return []


_Added = Callable[[PartContent], None]


def _computed(group: Group, loaded: LoadedModel, placed: _Placed, seed: int) -> list[_Added]:
    """Compute all that a group has of a batch. Returns what adds it to the part, once all has been computed."""
    inputs, decoded = placed.filled()
    inputs = inputs.to(loaded.device, loaded.dtype)
    added = list[_Added]()
    trace: Trace | None = None
    if group.methods:
        layers = None if group.layers is None else list(group.layers)
        choice = LayerChoice(layers[0] if layers and len(layers) == 1 and group.fuse is None else layers)
        options = HeatmapOptions(group.fuse, Smoothing() if group.smooth else None, seed)
        target = _target(group, loaded, decoded)
        trace, heatmaps = explain_methods(loaded, inputs, group.methods, choice, target, options)
        measured = _measured(group, loaded, inputs, heatmaps, decoded, seed)

        def add_heatmaps(content: PartContent) -> None:
            for name, heatmap in heatmaps.items():
                content.add_heatmap(name, heatmap, placed.decoded, placed.places, measured.get(name, {}))

        added.append(add_heatmaps)
    if group.predictions:
        if trace is None:
            request = explanation_request(loaded, inputs, LayerChoice(), None)
            trace = run_pass(request, PassRequirements(gradients=False, no_layer=True))
        predicted = list(_predicted(trace, decoded))
        added.append(lambda content: content.predicted.extend(predicted[place] for place in placed.places))
    if group.keep:
        kept_tensors = _activations(group, loaded, inputs)
        added.append(lambda content: content.add_activations(kept_tensors, placed.decoded, placed.places))
    return added


def _target(group: Group, loaded: LoadedModel, decoded: Sequence[DecodedSample]) -> Target:
    if isinstance(group.target, list):
        return Classes(group.target)
    if group.target != OF_LABEL:
        return as_target(group.target, class_names_of(loaded))
    unlabelled = [each for each in decoded if each.label is None]
    if unlabelled:
        raise InputError("the target is the sample's label, and it has none")
    return ClassesPerSample(torch.tensor([each.label for each in decoded]))


def _measured(
    group: Group,
    loaded: LoadedModel,
    inputs: Tensor,
    heatmaps: Mapping[str, Heatmap],
    decoded: Sequence[DecodedSample],
    seed: int,
) -> dict[str, dict[str, Tensor]]:
    """Name of a method -> name of a metric -> (N, K). NaN where the metric needs a region, and a sample has none."""
    found: dict[str, dict[str, Tensor]] = {method: {} for method in heatmaps}
    regions = [each.in_mask if each.in_mask is not None else each.in_boxes for each in decoded]
    known = [each for each in regions if each is not None]
    of_regions = {name: options for name, options in group.metrics.items() if METRICS[name].needs == "region"}
    others = {name: options for name, options in group.metrics.items() if name not in of_regions}
    if of_regions and not known:
        unknown = {name: torch.full(heatmap.scores.shape, math.nan) for name, heatmap in heatmaps.items()}
        found = {method: dict.fromkeys(of_regions, values) for method, values in unknown.items()}
    for metrics in (others, of_regions if known else {}):
        if not metrics:
            continue
        # A sample without a region gets that of another one, and its value is forgotten.
        masks = None if metrics is others else torch.stack([known[0] if each is None else each for each in regions])
        measured = evaluate(loaded, inputs, dict(heatmaps), metrics=metrics, masks=masks, seed=seed)
        missing = torch.tensor([masks is not None and each is None for each in regions]).unsqueeze(1)  # (N, 1)
        for method, of_method in measured.items():
            for name, measurement in of_method.items():
                found[method][name] = measurement.values.cpu().masked_fill(missing, math.nan)
    return found


def _activations(group: Group, loaded: LoadedModel, inputs: Tensor) -> dict[str, Tensor]:
    """Name of a layer -> (N, ...), as the group keeps it."""
    found = {}
    table = activations(loaded, inputs, list(group.keep))
    for layer, what in group.keep.items():
        tensors = [tensor for _, tensor in containers.leaves(table[layer])]
        if len(tensors) != 1 or len(tensors[0]) != len(inputs):
            raise InputError(
                f"layer {layer!r} returns no single tensor with one entry for each sample; keep another one"
            )
        found[layer] = _kept(tensors[0].detach(), what, layer).to(getattr(torch, group.dtype)).cpu()
    return found


def _kept(tensor: Tensor, what: str, layer: str) -> Tensor:
    if what == "whole":
        return tensor
    if what == "pooled":  # over positions: (N, C, *grid) or tokens (N, T, C)
        return tensor.mean(1) if tensor.ndim == 3 else tensor.flatten(2).mean(2) if tensor.ndim > 3 else tensor
    index = int(what.removeprefix("token "))
    if tensor.ndim != 3 or not -tensor.shape[1] <= index < tensor.shape[1]:
        raise InputError(f"layer {layer!r} returns {tuple(tensor.shape)}, which has no token {index}")
    return tensor[:, index]


def _predicted(trace: Trace, decoded: Sequence[DecodedSample]) -> Iterator[dict[str, Any]]:
    logits = class_logits(trace.output, output_part(trace.question)).detach().float()  # (N, classes)
    probabilities = logits.softmax(1)
    best = logits.argsort(dim=1, descending=True, stable=True)[:, :_TOP]
    values = probabilities.gather(1, best).tolist()
    for n, (sample, classes) in enumerate(zip(decoded, best.tolist(), strict=True)):
        yield {
            "row": sample.row,
            "digest": sample.digest,
            "width": sample.size[0],
            "height": sample.size[1],
            "box": sample.geometry.box,
            "top_classes": classes,
            "top_probabilities": values[n],
        }

"""run_shard(): one shard of a run, computed. It only depends on its arguments, so it is the same on every machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

    Every batch has the same number of rows: where a sample is missing, because it cannot be read or the list ends, its
    place is taken by a copy of the first. So no sample has another result because of what its neighbours are.

    Args:
        loaded: The model.
        samples: The frozen list.
        source: Reads the samples.
        shard: Which of them.
        groups: What to compute, from one pass where that is possible.
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
    batches = decoded_batches(
        samples, source, loaded, shard.bounds if bounds is None else bounds, max_size=max_size, workers=workers
    )
    began = time.perf_counter()
    for batch in batches:
        waited = time.perf_counter() - began
        count = sum(len(decoded) for _, decoded in batch.inputs) + len(batch.failures)
        failed = list(batch.failures)
        for inputs, decoded in batch.inputs:
            changed = [each for each in decoded if digests and digests.get(each.row, each.digest) != each.digest]
            failed += [
                failure(each.row, "read", SampleChanged("has changed since it was first read in this run"))
                for each in changed
            ]
            rows = [i for i, each in enumerate(decoded) if each not in changed]
            if rows:
                failed += _add(contents, loaded, inputs[rows], [decoded[i] for i in rows], shard.batch, seed)
        for content in contents:
            content.failures += failed
        advance(count, len(failed), waited)
        began = time.perf_counter()
    return contents


def _add(
    contents: Sequence[PartContent],
    loaded: LoadedModel,
    inputs: Tensor,
    decoded: Sequence[DecodedSample],
    size: int,
    seed: int,
) -> list[Failure]:
    """Compute a batch and add its rows. Where it raises, each sample is tried alone. Returns what failed."""
    try:
        filled = _filled(inputs, size).to(loaded.device, loaded.dtype)
        padded = [*decoded, *[decoded[0]] * (size - len(decoded))]
        computed = [_computed(content.group, loaded, filled, padded, seed) for content in contents]
    except Exception as error:
        if is_from_outside(error):
            raise
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            raise RunError(
                f"a batch of {size} samples does not fit into memory ({str(error).partition('. ')[0]}). Next: another "
                "run with a smaller batch"
            ) from error
        if len(decoded) == 1:
            return [failure(decoded[0].row, "explain", error)]
        return [
            each
            for i, sample in enumerate(decoded)
            for each in _add(contents, loaded, inputs[i : i + 1], [sample], size, seed)
        ]
    for content, add in zip(contents, computed, strict=True):
        for each in add:
            each(content, decoded)
    return []


def _filled(inputs: Tensor, size: int) -> Tensor:
    """A batch of `size` rows: missing ones are copies of the first."""
    missing = size - len(inputs)
    return inputs if missing <= 0 else torch.cat([inputs, inputs[:1].expand(missing, *inputs.shape[1:])])


_Added = Callable[[PartContent, Sequence[DecodedSample]], None]


def _computed(
    group: Group, loaded: LoadedModel, inputs: Tensor, decoded: Sequence[DecodedSample], seed: int
) -> list[_Added]:
    """Compute all that a group has of a batch. Returns what adds it to the part, once all has been computed."""
    added = list[_Added]()
    trace: Trace | None = None
    if group.methods:
        layers = None if group.layers is None else list(group.layers)
        choice = LayerChoice(layers[0] if layers and len(layers) == 1 and group.fuse is None else layers)
        options = HeatmapOptions(group.fuse, Smoothing() if group.smooth else None, seed)
        target = _target(group, loaded, decoded)
        trace, heatmaps = explain_methods(loaded, inputs, group.methods, choice, target, options)
        measured = _measured(group, loaded, inputs, heatmaps, decoded, seed)

        def add_heatmaps(content: PartContent, kept: Sequence[DecodedSample]) -> None:
            for name, heatmap in heatmaps.items():
                content.add_heatmap(name, heatmap[: len(kept)], kept, measured.get(name, {}))

        added.append(add_heatmaps)
    if group.predictions:
        if trace is None:
            request = explanation_request(loaded, inputs, LayerChoice(), None)
            trace = run_pass(request, PassRequirements(gradients=False, no_layer=True))
        predicted = list(_predicted(trace, decoded))
        added.append(lambda content, kept: content.predicted.extend(predicted[: len(kept)]))
    if group.keep:
        kept_tensors = _activations(group, loaded, inputs)
        added.append(lambda content, kept: content.add_activations(kept_tensors, kept))
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
    """Name of a method -> name of a metric -> (N, K)."""
    if not group.metrics:
        return {}
    regions = [each.in_mask if each.in_mask is not None else each.in_boxes for each in decoded]
    known = [each for each in regions if each is not None]
    masks = torch.stack(known) if len(known) == len(regions) else None  # (N, H, W)
    found = evaluate(loaded, inputs, dict(heatmaps), metrics=group.metrics, masks=masks, seed=seed)
    return {
        method: {name: measurement.values for name, measurement in of_method.items()}
        for method, of_method in found.items()
    }


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

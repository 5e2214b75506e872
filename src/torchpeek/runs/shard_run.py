"""run_shard(): one shard of a run, computed. It only depends on its arguments, so it is the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from torchpeek.cam import Smoothing
from torchpeek.engine import Trace, output_part, score_kind
from torchpeek.engine.targets import as_target, class_logits
from torchpeek.errors import SampleChanged
from torchpeek.explanation import HeatmapOptions, LayerChoice, explain_methods
from torchpeek.explanation.plan import PassRequirements, run_pass
from torchpeek.explanation.request import class_names_of, explanation_request
from torchpeek.heatmap import Heatmap
from torchpeek.models import LoadedModel
from torchpeek.runs.decoding import DecodedBatch, DecodedSample, Failure, decoded_batches, failure
from torchpeek.runs.heat_location import heat_location, inside
from torchpeek.runs.samples import SampleList
from torchpeek.runs.sources.source import Source
from torchpeek.runs.spec import Group
from torchpeek.runs.stored_maps import maps_bytes
from torchpeek.runs.tables import ERRORS, HEATMAPS, PREDICTED, table_bytes
from torchpeek.system_errors import is_from_outside

_TOP = 5  # classes of a prediction


@dataclass(frozen=True)
class Shard:
    """Some batches of the frozen list.

    Args:
        number: Its number in the run.
        start: Its first sample.
        stop: The sample after its last.
        batch: Samples in a batch; the last one may have fewer.
    """

    number: int
    start: int
    stop: int
    batch: int

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First sample, and the one after the last, of each batch."""
        return [(first, min(first + self.batch, self.stop)) for first in range(self.start, self.stop, self.batch)]


@dataclass
class GroupRows:
    """What was computed of a shard for one group."""

    group: Group
    rows: list[dict[str, Any]] = field(default_factory=list)  # one a map
    predicted: list[dict[str, Any]] = field(default_factory=list)  # one a sample
    failures: list[Failure] = field(default_factory=list)
    maps: dict[str, list[Tensor]] = field(default_factory=dict)  # name of a tensor -> maps of one grid
    about: dict[str, Any] = field(default_factory=dict)  # name of a tensor -> where its maps come from

    def files(self) -> tuple[dict[str, bytes], dict[str, int]]:
        """The files of the part, and how many rows each table has."""
        errors = [vars(each) for each in self.failures]
        files = {"errors.parquet": table_bytes(errors, ERRORS)}
        counts = {"errors": len(errors)}
        if self.group.predictions:
            files["predicted.parquet"] = table_bytes(self.predicted, PREDICTED)
            counts["predicted"] = len(self.predicted)
        if self.group.methods:
            files["index.parquet"] = table_bytes(self.rows, HEATMAPS)
            files["maps.safetensors"] = maps_bytes(self.maps, self.about)
            counts["heatmaps"] = len(self.rows)
        return files, counts

    def add_map(self, name: str, values: Tensor, exponent: int) -> int:
        """Keep a map, divided by a power of two. Returns its index in the tensor of this name."""
        of_name = self.maps.setdefault(name, [])
        of_name.append(torch.ldexp(values, torch.tensor(-exponent)).to(getattr(torch, self.group.dtype)))
        return len(of_name) - 1


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
    digests: Mapping[int, bytes] | None = None,
    advance: Callable[[int, int], None] = lambda done, failed: None,
) -> list[GroupRows]:
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
        digests: The digests that the samples had when they were first read, by number. A sample that has changed since
            is a failure.
        advance: Called after each batch, with the number of samples that are done and that failed.

    Returns:
        The rows of each group.
    """
    results = [GroupRows(group) for group in groups]
    batches = decoded_batches(samples, source, loaded, shard.bounds, max_size=max_size, workers=workers)
    for batch in batches:
        failed = list(batch.failures)
        for inputs, decoded in batch.inputs:
            changed = [each for each in decoded if digests and digests.get(each.row, each.digest) != each.digest]
            failed += [
                failure(each.row, "read", SampleChanged("has changed since it was first read in this run"))
                for each in changed
            ]
            rows = [i for i, each in enumerate(decoded) if each not in changed]
            if rows:
                failed += _add(results, loaded, inputs[rows], [decoded[i] for i in rows], shard.batch, seed)
        for result in results:
            result.failures += sorted(failed, key=lambda each: each.row)
        advance(_count(batch), len(failed))
    return results


def _count(batch: DecodedBatch) -> int:
    return sum(len(decoded) for _, decoded in batch.inputs) + len(batch.failures)


def _add(
    results: Sequence[GroupRows],
    loaded: LoadedModel,
    inputs: Tensor,
    decoded: Sequence[DecodedSample],
    size: int,
    seed: int,
) -> list[Failure]:
    """Compute a batch and add its rows. Where it raises, each sample is tried alone. Returns what failed."""
    try:
        computed = [_computed(result.group, loaded, _filled(inputs, size), seed) for result in results]
    except Exception as error:
        if is_from_outside(error):
            raise
        if len(decoded) == 1:
            return [failure(decoded[0].row, "explain", error)]
        return [
            each
            for i, sample in enumerate(decoded)
            for each in _add(results, loaded, inputs[i : i + 1], [sample], size, seed)
        ]
    for result, (trace, heatmaps) in zip(results, computed, strict=True):
        if result.group.predictions:
            result.predicted += _predicted(trace, decoded)
        for name, heatmap in heatmaps.items():
            _add_heatmap(result, name, heatmap[: len(decoded)], decoded)
    return []


def _filled(inputs: Tensor, size: int) -> Tensor:
    """A batch of `size` rows: missing ones are copies of the first."""
    missing = size - len(inputs)
    return inputs if missing <= 0 else torch.cat([inputs, inputs[:1].expand(missing, *inputs.shape[1:])])


def _computed(group: Group, loaded: LoadedModel, inputs: Tensor, seed: int) -> tuple[Trace, dict[str, Heatmap]]:
    inputs = inputs.to(loaded.device, loaded.dtype)
    if not group.methods:
        request = explanation_request(loaded, inputs, LayerChoice(), None)
        return run_pass(request, PassRequirements(gradients=False, no_layer=True)), {}
    layers = None if group.layers is None else list(group.layers)
    choice = LayerChoice(layers[0] if layers and len(layers) == 1 and group.fuse is None else layers)
    options = HeatmapOptions(group.fuse, Smoothing() if group.smooth else None, seed)
    return explain_methods(
        loaded, inputs, group.methods, choice, as_target(group.target, class_names_of(loaded)), options
    )


def _predicted(trace: Trace, decoded: Sequence[DecodedSample]) -> Iterator[dict[str, Any]]:
    logits = class_logits(trace.output, output_part(trace.question)).detach().float()  # (N, classes)
    probabilities = logits.softmax(1)
    best = logits.argsort(dim=1, descending=True, stable=True)[:, :_TOP]
    values = probabilities.gather(1, best).tolist()
    for n, (sample, classes) in enumerate(zip(decoded, best.tolist(), strict=False)):
        yield {
            "row": sample.row,
            "digest": sample.digest,
            "width": sample.size[0],
            "height": sample.size[1],
            "box": sample.geometry.box,
            "top_classes": classes,
            "top_probabilities": values[n],
        }


def _add_heatmap(result: GroupRows, method: str, heatmap: Heatmap, decoded: Sequence[DecodedSample]) -> None:
    values = heatmap.values.detach().float().cpu()  # (n, K, *grid)
    layer, grid = heatmap.provenance.layer, "x".join(map(str, values.shape[2:]))
    columns = heat_location(values, [each.geometry for each in decoded]).columns() if values.ndim == 4 else {}
    location = {name: column.tolist() for name, column in columns.items()}
    tensor = f"{method}/{layer}/{grid}"
    provenance = replace(heatmap.provenance, class_names={}, inputs=())
    result.about.setdefault(tensor, {"provenance": asdict(provenance), "score_kind": score_kind(heatmap.question)})
    labels, scores = heatmap.question.labels.tolist(), heatmap.scores.tolist()
    for n, sample in enumerate(decoded):
        within = None if sample.region is None else inside(values[n : n + 1], sample.region[None, None])[0].tolist()
        for k in range(values.shape[1]):
            exponent = _exponent(values[n, k])
            row: dict[str, Any] = {
                "row": sample.row,
                "method": method,
                "layer": layer,
                "target": k,
                "label": labels[n][k],
                "score": scores[n][k],
                "tensor": tensor,
                "place": result.add_map(tensor, values[n, k], exponent),
                "exponent": exponent,
                **{name: _known(column[n][k]) for name, column in location.items()},
            }
            if within is not None:
                row["inside_mask"] = _known(within[k])
            result.rows.append(row)


def _exponent(values: Tensor) -> int:
    """The power of two that brings the largest value below 1, so that float16 can hold it and loses no small one."""
    largest = float(values.abs().max())
    return 0 if largest == 0 else math.frexp(largest)[1]


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number

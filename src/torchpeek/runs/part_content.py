"""PartContent: what was computed of a shard for one group, and its files."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from torchpeek.engine import score_kind
from torchpeek.heatmap import Heatmap
from torchpeek.runs.decoding import DecodedSample, Failure
from torchpeek.runs.heat_location import heat_location, inside
from torchpeek.runs.parts import Part
from torchpeek.runs.spec import Group
from torchpeek.runs.storage import Storage
from torchpeek.runs.stored_maps import activations_bytes, maps_bytes, read_activations, read_maps
from torchpeek.runs.tables import ERRORS, HEATMAPS, PREDICTED, read_table, table_bytes

INDEX, PREDICTIONS, FAILURES = "index.parquet", "predicted.parquet", "errors.parquet"
MAPS, ACTIVATIONS = "maps.safetensors", "activations.safetensors"


@dataclass
class PartContent:
    """What was computed of a shard for one group.

    Args:
        group: The group.
        rows: A row a map, with the map itself under "map".
        predicted: A row a sample.
        failures: The samples that failed.
        about: Name of a tensor of maps -> where its maps come from.
        activations: Name of a layer and sizes -> number of a sample -> what is kept of it.
    """

    group: Group
    rows: list[dict[str, Any]] = field(default_factory=list)
    predicted: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    activations: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def add_heatmap(
        self,
        method: str,
        heatmap: Heatmap,
        decoded: Sequence[DecodedSample],
        places: Sequence[int],
        measured: Mapping[str, Tensor],
    ) -> None:
        """Add the maps of a batch, with where their heat lies.

        Args:
            method: The method.
            heatmap: The maps of the batch.
            decoded: The samples.
            places: Their places in the batch.
            measured: Name of a metric -> (N, K), of the batch.
        """
        index = torch.tensor(places)
        values = heatmap.values.detach().float().cpu()[index]  # (n, K, *grid)
        columns = heat_location(values, [each.geometry for each in decoded]).columns() if values.ndim == 4 else {}
        location = {name: column.tolist() for name, column in columns.items()}
        layer, grid = heatmap.provenance.layer, "x".join(map(str, values.shape[2:]))
        tensor = f"{method}/{layer}/{grid}"
        provenance = replace(heatmap.provenance, class_names={}, inputs=())
        self.about.setdefault(tensor, {"provenance": asdict(provenance), "score_kind": score_kind(heatmap.question)})
        labels, scores = heatmap.question.labels.cpu()[index].tolist(), heatmap.scores.detach().cpu()[index].tolist()
        metrics = {name: column[index].tolist() for name, column in measured.items()}
        for n, sample in enumerate(decoded):
            within = {
                name: inside(values[n : n + 1], region[None, None])[0].tolist()
                for name, region in (("inside_box", sample.in_boxes), ("inside_mask", sample.in_mask))
                if region is not None
            }
            for k in range(values.shape[1]):
                exponent = _exponent(values[n, k])
                row = {
                    "row": sample.row,
                    "method": method,
                    "layer": layer,
                    "target": k,
                    "label": labels[n][k],
                    "score": scores[n][k],
                    "tensor": tensor,
                    "exponent": exponent,
                    "metrics": [(name, _known(column[n][k])) for name, column in metrics.items()] or None,
                    "map": torch.ldexp(values[n, k], torch.tensor(-exponent)).to(getattr(torch, self.group.dtype)),
                }
                numbers = {name: column[n][k] for name, column in location.items()}
                numbers |= {name: column[k] for name, column in within.items()}
                self.rows.append(row | {name: _known(number) for name, number in numbers.items()})

    def add_activations(
        self, tensors: Mapping[str, Tensor], decoded: Sequence[DecodedSample], places: Sequence[int]
    ) -> None:
        """Add what is kept of the activations of a batch.

        Args:
            tensors: Name of a layer -> (N, ...), of the batch.
            decoded: The samples.
            places: Their places in the batch.
        """
        for layer, tensor in tensors.items():
            sizes = "x".join(map(str, tensor.shape[1:]))  # inputs of several sizes have activations of several
            of_layer = self.activations.setdefault(f"{layer}/{sizes}", {})
            for sample, place in zip(decoded, places, strict=True):
                of_layer[sample.row] = tensor[place].clone()

    def only(self, rows: Collection[int]) -> PartContent:
        """What there is of some samples."""
        return PartContent(
            self.group,
            [row for row in self.rows if row["row"] in rows],
            [row for row in self.predicted if row["row"] in rows],
            [each for each in self.failures if each.row in rows],
            self.about,
            {
                name: {row: tensor for row, tensor in of_layer.items() if row in rows}
                for name, of_layer in self.activations.items()
            },
        )

    @classmethod
    def read(cls, storage: Storage, part: Part, group: Group, without: Collection[int]) -> PartContent:
        """The content of a part that is written, but for some samples."""

        def table(name: str) -> list[dict[str, Any]]:
            rows = read_table(storage, part.file(name))
            return [row for row in rows if row["row"] not in without]

        content = cls(group, failures=[Failure(**row) for row in table(FAILURES)])
        if group.predictions:
            content.predicted = table(PREDICTIONS)
        if group.methods:
            tensors, content.about = read_maps(storage, part.file(MAPS))
            content.rows = table(INDEX)
            for row in content.rows:
                row["map"] = tensors[row["tensor"]][row["place"]].clone()
        if group.keep:
            for name, rows, values in read_activations(storage, part.file(ACTIVATIONS)):
                content.activations[name] = {
                    row: values[place].clone() for place, row in enumerate(rows.tolist()) if row not in without
                }
        return content

    def files(self) -> tuple[dict[str, bytes], dict[str, int]]:
        """The files of the part, and how many rows each table has.

        The rows follow the samples, then the methods of the group, whatever was added first.
        """
        failed = sorted((vars(each) for each in self.failures), key=lambda row: row["row"])
        files, counts = {FAILURES: table_bytes(failed, ERRORS)}, {"errors": len(failed)}
        if self.group.predictions:
            predicted = sorted(self.predicted, key=lambda row: row["row"])
            files[PREDICTIONS], counts["predicted"] = table_bytes(predicted, PREDICTED), len(predicted)
        if self.group.methods:
            places = {method: place for place, method in enumerate(self.group.methods)}
            rows = sorted(self.rows, key=lambda row: (row["row"], places[row["method"]], row["layer"], row["target"]))
            maps: dict[str, list[Tensor]] = {}
            for row in rows:
                of_name = maps.setdefault(row["tensor"], [])
                row["place"] = len(of_name)
                of_name.append(row["map"])
            files[INDEX], counts["heatmaps"] = table_bytes(rows, HEATMAPS), len(rows)
            files[MAPS] = maps_bytes(maps, {name: self.about[name] for name in maps})
        if self.group.keep:
            files[ACTIVATIONS] = activations_bytes(self.activations)
            counts["activations"] = max(map(len, self.activations.values()), default=0)
        return files, counts


def _exponent(values: Tensor) -> int:
    """The power of two that brings the largest value below 1, so that float16 can hold it and loses no small one."""
    largest = float(values.abs().max())
    return 0 if largest == 0 else math.frexp(largest)[1]


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number

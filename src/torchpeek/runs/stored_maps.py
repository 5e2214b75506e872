"""The tensors of a part: maps, of which one can be read alone, and activations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchpeek.errors import FormatError
from torchpeek.provenance import Provenance
from torchpeek.runs.storage import Storage
from torchpeek.store.heatmaps import provenance_from_json
from torchpeek.store.records import json_text
from torchpeek.store.tensor_files import packed, read_open_tensor_file, read_row

_MAPS, _ACTIVATIONS = "torchpeek.maps", "torchpeek.activations"
_WHAT_MAPS, _WHAT_ACTIVATIONS = "the maps of a run", "the activations of a run"


@dataclass(frozen=True, eq=False)
class StoredMap:
    """A map as it is stored.

    Args:
        values: The grid, divided by a power of two.
        provenance: Every choice that it depends on.
        score_kind: What its score is.
    """

    values: Tensor
    provenance: Provenance
    score_kind: str


def maps_bytes(maps: Mapping[str, Sequence[Tensor]], about: Mapping[str, Any]) -> bytes:
    """Maps as the bytes of a file.

    Args:
        maps: Name of a tensor -> its maps, all of one grid.
        about: Name of a tensor -> what `StoredMap` has of it besides the values, as JSON.
    """
    tensors = {name: torch.stack(list(maps[name])) for name in sorted(maps)}
    return packed(tensors, {_MAPS: json_text(about, ascii_only=True)})


def read_map(storage: Storage, file: str, name: str, place: int) -> StoredMap:
    """Read one map. Raises FormatError where the file is damaged or has no such map."""
    with storage.open(file) as opened:
        values, metadata = read_row(opened, storage.url(file), name, place, _WHAT_MAPS)
    try:
        about = _about(metadata[_MAPS], storage.url(file))[name]
        return StoredMap(values, provenance_from_json(about["provenance"], {}), str(about["score_kind"]))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise FormatError(f"{storage.url(file)}: damaged, or not {_WHAT_MAPS} ({error})") from error


def read_maps(storage: Storage, file: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read all maps of a part, and what there is to say of each tensor."""
    with storage.open(file) as opened:
        found = read_open_tensor_file(opened, storage.url(file), _MAPS, _WHAT_MAPS)
    return dict(found.tensors), _about(found.metadata[_MAPS], storage.url(file))


def _about(text: str, url: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{url}: damaged, or not {_WHAT_MAPS} ({error})") from error
    if not isinstance(about, dict):
        raise FormatError(f"{url}: damaged, or not {_WHAT_MAPS}")
    return about


def activations_bytes(activations: Mapping[str, Mapping[int, Tensor]]) -> bytes:
    """Activations as the bytes of a file: for each tensor its name, the numbers of its samples, and its values."""
    tensors = {}
    for number, (_, of_layer) in enumerate(sorted(activations.items())):
        rows = sorted(of_layer)
        tensors[f"{number}.rows"] = torch.tensor(rows, dtype=torch.int64)
        tensors[f"{number}.values"] = torch.stack([of_layer[row] for row in rows])
    return packed(tensors, {_ACTIVATIONS: json_text(sorted(activations), ascii_only=True)})


def read_activations(storage: Storage, file: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name of a layer and sizes, numbers of samples (n,), values (n, ...)."""
    with storage.open(file) as opened:
        found = read_open_tensor_file(opened, storage.url(file), _ACTIVATIONS, _WHAT_ACTIVATIONS)
    try:
        for number, name in enumerate(json.loads(found.metadata[_ACTIVATIONS])):
            yield str(name), found.tensors[f"{number}.rows"], found.tensors[f"{number}.values"]
    except (LookupError, TypeError, ValueError) as error:
        raise FormatError(f"{storage.url(file)}: damaged, or not {_WHAT_ACTIVATIONS} ({error})") from error

"""maps.safetensors: the maps of a part, one tensor for each method, layer and grid, of which one map can be read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchpeek.errors import FormatError
from torchpeek.store.records import json_text
from torchpeek.store.tensor_files import packed, read_row

_KEY = "torchpeek.maps"


@dataclass(frozen=True)
class StoredMap:
    """A map as it is stored.

    Args:
        values: The grid, divided by a power of two.
        provenance: Every choice that it depends on.
        score_kind: What its score is.
    """

    values: Tensor
    provenance: Mapping[str, Any]
    score_kind: str


def maps_bytes(maps: Mapping[str, Sequence[Tensor]], about: Mapping[str, Any]) -> bytes:
    """Maps as the bytes of a file.

    Args:
        maps: Name of a tensor -> its maps, all of one grid.
        about: Name of a tensor -> what `StoredMap` has of it besides the values, as JSON.
    """
    tensors = {name: torch.stack(list(maps[name])) for name in sorted(maps)}
    return packed(tensors, {_KEY: json_text(about, ascii_only=True)})


def read_map(path: Path, name: str, place: int) -> StoredMap:
    """Read one map. Raises FormatError where the file is damaged or has no such map."""
    values, metadata = read_row(path, name, place, "the maps of a run")
    try:
        about = json.loads(metadata[_KEY])[name]
        return StoredMap(values, about["provenance"], about["score_kind"])
    except (LookupError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: damaged, or not the maps of a run ({error})") from error

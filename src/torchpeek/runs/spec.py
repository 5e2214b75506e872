"""RunSpec and Group: everything that the numbers of a run depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from torchpeek.errors import FormatError
from torchpeek.explanation.request import preprocessing_words
from torchpeek.models import LoadedModel

NUMERICAL_VERSION = 1
"""Changes when the same model and picture give other numbers, beyond rounding."""


@dataclass(frozen=True)
class RunSpec:
    """What all numbers of a run depend on. A run that is continued has to have the same.

    Args:
        model: Where the model comes from, as in `load_model`.
        weights: The name of the weights.
        weights_digest: A digest of all parameters and buffers: names, shapes, dtypes and values.
        preprocess: The preprocessing in words.
        precision: The dtype of the model.
        max_size: The largest side of a picture before the preprocessing, in pixels; None for no limit.
        seed: The seed of methods that draw random numbers.
        numerical_version: `NUMERICAL_VERSION` of the torchpeek that made it.
    """

    model: str
    weights: str
    weights_digest: str
    preprocess: str
    precision: str
    max_size: int | None = None
    seed: int = 0
    numerical_version: int = NUMERICAL_VERSION

    @property
    def digest(self) -> str:
        """The name of everything together."""
        return content_digest(asdict(self))

    def differences(self, other: RunSpec) -> list[str]:
        """What differs, in words."""
        return [
            f"{each.name.replace('_', ' ')} was {getattr(self, each.name)} and is {getattr(other, each.name)}"
            for each in fields(self)
            if getattr(self, each.name) != getattr(other, each.name)
        ]


@dataclass(frozen=True)
class Group:
    """What is computed together for every sample, and stored together.

    Args:
        methods: Name of a method -> its options.
        predictions: Whether the group also has what was read and predicted of each sample. The first group of a run has
            it, and no other.
        layers: The names or patterns of the layers; None for the default layer.
        target: The target, as text or class indices; None for the predicted class.
        fuse: How the maps of several layers become one.
        smooth: Whether maps are averaged over changed versions of the input.
        metrics: Name of a metric -> its options.
        dtype: The dtype in which maps are stored.
    """

    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    predictions: bool = False
    layers: Sequence[str] | None = None
    target: Any = None
    fuse: str | None = None
    smooth: bool = False
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dtype: str = "float16"

    @property
    def name(self) -> str:
        """The name of its folder in each shard: the methods, for a reader, and a digest of everything."""
        words = "-".join(self.methods)[:60] or "predictions"
        return f"{words}-{content_digest(asdict(self))[:12]}"


def spec_of(loaded: LoadedModel, *, max_size: int | None, seed: int) -> RunSpec:
    """The spec of a run with this model."""
    return RunSpec(
        loaded.spec or type(loaded.module).__name__,
        loaded.weights_label,
        weights_digest(loaded.module),
        preprocessing_words(loaded),
        str(loaded.dtype).removeprefix("torch."),
        max_size,
        seed,
    )


def weights_digest(module: nn.Module) -> str:
    """A digest of all parameters and buffers: names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            digest.update(f"{name}={tensor!r};".encode())
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        dense = tensor.detach().cpu().contiguous()
        digest.update(dense.flatten().view(torch.uint8).numpy() if dense.numel() else b"")
    return digest.hexdigest()


def content_digest(content: Any) -> str:
    """A digest of what can be written as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def spec_from_json(value: Any, where: str) -> RunSpec:
    """The spec that `asdict` gave. Raises FormatError, which names the file, where it is none."""
    known = {each.name for each in fields(RunSpec)}
    if not isinstance(value, dict) or set(value) != known:
        raise FormatError(f"{where}: the spec of the run is damaged, or of another version of torchpeek")
    return RunSpec(**value)

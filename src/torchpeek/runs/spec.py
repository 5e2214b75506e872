"""RunSpec and Group: everything that the numbers of a run depend on."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from torchpeek.anatomy import activations
from torchpeek.errors import FormatError, InputError
from torchpeek.explanation.request import preprocessing_words
from torchpeek.hooks import containers
from torchpeek.models import LoadedModel
from torchpeek.system_errors import is_from_outside

OF_LABEL = "label"
"""The target that is the label of each sample."""

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
        preprocess_sample: What the preprocessing makes of a fixed picture: means over a coarse grid. A function has no
            words that tell it from another one.
        output_sample: What the model makes of that picture: moments of its first output. Another architecture may have
            the same parameters. Empty where the model draws random numbers, or does not take the picture.
        precision: The dtype of the model.
        max_size: The largest side of a picture before the preprocessing, in pixels; None for no limit.
        seed: The seed of methods that draw random numbers.
        numerical_version: `NUMERICAL_VERSION` of the torchpeek that made it.

    Example:
        >>> spec = tp.open_run(folder / "epoch-12").spec
        >>> spec.precision, spec.seed
        ('float32', 0)
    """

    model: str
    weights: str
    weights_digest: str
    preprocess: str
    preprocess_sample: Sequence[float]
    output_sample: Sequence[float]
    precision: str
    max_size: int | None = None
    seed: int = 0
    numerical_version: int = NUMERICAL_VERSION

    @property
    def digest(self) -> str:
        """The name of everything together."""
        return content_digest(asdict(self))

    def differences(self, other: RunSpec) -> list[str]:
        """What differs, in words.

        Args:
            other: The spec of another run.

        Returns:
            A text for each difference; empty where there is none.

        Example:
            >>> spec = tp.open_run(folder / "epoch-12").spec
            >>> spec.differences(replace(spec, seed=1))
            ['seed was 0 and is 1']
        """
        found = [
            f"{each.name.replace('_', ' ')} was {getattr(self, each.name)} and is {getattr(other, each.name)}"
            for each in fields(self)
            if each.name not in ("preprocess_sample", "output_sample")
            and getattr(self, each.name) != getattr(other, each.name)
        ]
        if not found and not _are_close(self.output_sample, other.output_sample):
            found.append("the model makes another output of the same picture")
        if self.preprocess == other.preprocess and not _are_close(self.preprocess_sample, other.preprocess_sample):
            found.append("the preprocessing makes another tensor of the same picture")
        return found


def _are_close(one: Sequence[float], other: Sequence[float]) -> bool:
    # Decoders and resizing round in another way on other machines.
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=0.01, abs_tol=0.01) for a, b in zip(one, other, strict=True)
    )


@dataclass(frozen=True)
class Group:
    """What is computed together for every sample, and stored together.

    Args:
        methods: Name of a method -> its options.
        predictions: Whether the group also has what was read and predicted of each sample. The first group of a run has
            it, and no other.
        layers: The names or patterns of the layers; None for the default layer.
        target: The target as `as_target` takes it: None for the predicted class.
        fuse: How the maps of several layers become one.
        smooth: Whether maps are averaged over changed versions of the input.
        metrics: Name of a metric -> its options.
        keep: Name of a layer -> what is kept of its activations: "whole", "pooled", or "token <index>".
        dtype: The dtype in which maps and activations are stored.
    """

    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    predictions: bool = False
    layers: Sequence[str] | None = None
    target: Any = None
    fuse: str | None = None
    smooth: bool = False
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    keep: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float16"

    def without(self, others: Iterable[Group]) -> Group:
        """The group without the methods and the activations that other groups have with the same options."""

        def same(other: Group, name: str) -> bool:
            alike = ("layers", "target", "fuse", "smooth", "dtype")
            return all(getattr(self, each) == getattr(other, each) for each in alike) and (
                name not in self.methods
                or (other.methods.get(name) == self.methods[name] and self.metrics.items() <= other.metrics.items())
            )

        known = list(others)
        return replace(
            self,
            methods={
                name: options
                for name, options in self.methods.items()
                if not any(name in other.methods and same(other, name) for other in known)
            },
            keep={
                layer: what
                for layer, what in self.keep.items()
                if not any(other.keep.get(layer) == what and other.dtype == self.dtype for other in known)
            },
        )

    @property
    def name(self) -> str:
        """The name of its folder in each shard: the methods, for a reader, and a digest of everything."""
        words = re.sub(r"[^A-Za-z0-9.+_-]", "-", "-".join([*self.methods, *(["activations"] if self.keep else [])]))
        return f"{words[:60].lstrip('.+_-') or 'predictions'}-{content_digest(asdict(self))[:12]}"

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        parts = list(self.methods)
        if self.predictions:
            parts.insert(0, "predictions")
        if self.keep:
            parts.append(f"activations of {', '.join(self.keep)}")
        return ", ".join(parts) + (f" at {', '.join(self.layers)}" if self.layers else "")


def spec_of(loaded: LoadedModel, *, max_size: int | None, seed: int) -> RunSpec:
    """The spec of a run with this model.

    Raises:
        InputError: When the preprocessing makes another tensor of the same picture each time.
    """
    sample = preprocess_sample(loaded)
    if not _are_close(sample, preprocess_sample(loaded)):
        raise InputError(
            "the preprocessing makes another tensor of the same picture each time, so no run could be continued. Next: "
            "leave out what draws random numbers, such as the augmentations of a training"
        )
    return RunSpec(
        loaded.spec or type(loaded.module).__name__,
        loaded.weights_label,
        weights_digest(loaded.module),
        preprocessing_words(loaded),
        sample,
        output_sample(loaded),
        str(loaded.dtype).removeprefix("torch."),
        max_size,
        seed,
    )


def output_sample(loaded: LoadedModel) -> list[float]:
    """Moments of the first tensor that the model returns of a fixed picture."""
    try:
        outputs = [activations(loaded, loaded.read(_fixed_picture()), "")[""] for _ in range(2)]
    except Exception as error:  # it is told where the first sample is computed
        if is_from_outside(error):
            raise
        return []
    moments = []
    for output in outputs:
        values = (
            next((tensor for _, tensor in containers.leaves(output)), torch.zeros(0)).detach().double().cpu().flatten()
        )
        weights = torch.cos(torch.arange(len(values), dtype=torch.float64))
        scale = float(values.abs().max()) if len(values) else 0.0
        moments.append(
            [round(float(number), 6) for number in (scale, values.mean(), (values * weights).mean(), values.std())]
        )
    return moments[0] if _are_close(*moments) else []


def preprocess_sample(loaded: LoadedModel) -> list[float]:
    """What the preprocessing makes of a fixed picture: means over 4 x 4 cells of each channel."""
    tensor = loaded.read(_fixed_picture()).tensor.detach().float().cpu()
    means = nn.functional.adaptive_avg_pool2d(tensor, 4) if tensor.ndim == 4 else tensor.flatten(1)[:, :64]
    return [round(number, 4) for number in means.flatten().tolist()]


def _fixed_picture() -> Image.Image:
    down, across = torch.meshgrid(torch.arange(300), torch.arange(400), indexing="ij")
    pixels = torch.stack([across * 255 // 399, down * 255 // 299, (across // 20 + down // 20) % 2 * 255], dim=-1)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def weights_digest(module: nn.Module) -> str:
    """A digest of all parameters and buffers: names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    tensors = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        dense = tensor.detach().cpu().contiguous()
        digest.update(dense.flatten().view(torch.uint8).numpy().data if dense.numel() else b"")
    return digest.hexdigest()


def content_digest(content: Any) -> str:
    """A digest of what can be written as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def spec_from_json(value: Any, where: str) -> RunSpec:
    """The spec that `asdict` gave. Raises FormatError, which names the file, where it is none."""
    known = {each.name for each in fields(RunSpec)}
    if not isinstance(value, dict) or set(value) != known:
        raise FormatError(f"{where}: the spec of the run is damaged, or of another version of torchpeek")
    return RunSpec(**value)


def group_from_json(value: Any, where: str) -> Group:
    """The group that `asdict` gave. Raises FormatError, which names the file, where it is none."""
    known = {each.name for each in fields(Group)}
    if not isinstance(value, dict) or set(value) != known:
        raise FormatError(f"{where}: a group of the run is damaged, or of another version of torchpeek")
    mappings = all(isinstance(value[name], dict) for name in ("methods", "metrics", "keep"))
    if not mappings or value["dtype"] not in ("float16", "float32"):
        raise FormatError(f"{where}: a group of the run is damaged")
    return Group(**value)

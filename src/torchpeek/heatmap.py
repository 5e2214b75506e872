"""Heatmap: what a method found, raw, with everything that it depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from torchpeek.engine import Question
from torchpeek.errors import InputError

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}

Index: TypeAlias = int | slice


@dataclass(frozen=True)
class Provenance:
    """Every choice that a heatmap depends on. Saved with it, and printed beside its picture."""

    method: str
    layer: str
    layer_reason: str = ""
    layout: str = ""  # how what the layer returned was read: "channels-first 7x7", "tokens 1+14x14"
    model: str = ""
    weights: str = ""  # "random" where they were not trained
    preprocess: str = ""
    paper: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    score: str = ""  # what a score is: "logit" or "probability"
    class_names: Mapping[int, str] = field(default_factory=dict)  # of the labels in the question
    device: str = ""
    dtype: str = ""
    torch: str = ""
    torchpeek: str = ""
    steps: Sequence[str] = ()  # what was done to the values since: "positive", "unit", "resized to 224 x 224"

    def class_name(self, label: int) -> str:
        """The class's name, or `class 281` where the model came without names."""
        return self.class_names.get(label, f"class {label}")


@dataclass(frozen=True, eq=False)
class Heatmap:
    """What a method found, for each of N samples and K scores.

    `values` (N, K, *grid) are signed and raw, at the layer's own resolution, as the paper's equation gives them before
    a final ReLU, in float32, or float64 for a float64 model. `scores` (N, K) are those of the clean pass, and
    `question` says what of; `provenance` says how. `heatmap[n, k]` is the Heatmap of one sample and score.
    """

    values: Tensor
    scores: Tensor
    question: Question
    provenance: Provenance

    def __getitem__(self, index: Index | tuple[Index, Index]) -> Heatmap:
        """One sample, or one sample and score, as a Heatmap: (1, K, *grid) or (1, 1, *grid). Slices take several."""
        pair = index if isinstance(index, tuple) else (index, slice(None))
        if len(pair) != 2:
            raise InputError(f"a heatmap is indexed by sample and score, [n] or [n, k]; got {index!r}")
        rows, columns = (
            _as_slice(each, size, axis) for each, size, axis in zip(pair, self.scores.shape, "NK", strict=True)
        )
        return Heatmap(
            self.values[rows, columns], self.scores[rows, columns], self.question.select(rows, columns), self.provenance
        )

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        steps = "".join(f", {step}" for step in self.provenance.steps)
        return (
            f"Heatmap({self.provenance.method} at {self.provenance.layer!r}{steps}, values {tuple(self.values.shape)})"
        )

    def label(self, n: int = 0, k: int = 0) -> int:
        """What score k of sample n is of."""
        return int(self.question.labels[n, k])

    def positive(self) -> Heatmap:
        """Only what speaks for the score: the ReLU with which most papers end."""
        return self._stepped(self.values.clamp(min=0), "positive")

    def unit(self) -> Heatmap:
        """Each map on its own scaled linearly to [0, 1].

        Its maximum becomes 1. Zero stays zero in a map that has no negative values, whatever its minimum, so that a
        uniform map stays uniform; in one that has some, the minimum becomes 0. A map of zeros stays one.
        """
        return self._stepped(unit_range(self.values), "unit")

    def resized(self, size: Sequence[int]) -> Heatmap:
        """Interpolated to `size`, (H, W) for a picture: bilinear, `align_corners=False`."""
        return self._stepped(upsample(self.values, size), "resized to " + " x ".join(map(str, size)))

    def _stepped(self, values: Tensor, step: str) -> Heatmap:
        return replace(self, values=values, provenance=replace(self.provenance, steps=(*self.provenance.steps, step)))


def unit_range(values: Tensor) -> Tensor:
    """Each map of (N, K, *grid) scaled to [0, 1]; zero stays zero where nothing is negative."""
    flat = values.flatten(2)  # (N, K, positions)
    low = flat.amin(2, keepdim=True).clamp(max=0)
    span = flat.amax(2, keepdim=True) - low
    return torch.where(span > 0, (flat - low) / span, 0).view_as(values)


def upsample(values: Tensor, size: Sequence[int]) -> Tensor:
    """(N, K, *grid) interpolated to (N, K, *size): (bi-, tri-)linear, `align_corners=False`."""
    grid = values.ndim - 2
    if len(size) != grid or any(each < 1 for each in size):
        raise InputError(f"size {tuple(size)} for a grid of {grid} axes; give {grid} positive numbers")
    return F.interpolate(values, size=list(size), mode=_INTERPOLATION[grid], align_corners=False)


def _as_slice(index: Index, size: int, axis: str) -> slice:
    if isinstance(index, slice):
        return index
    if not -size <= index < size:
        raise IndexError(f"index {index} on axis {axis} of a heatmap with {axis} = {size}")
    return slice(index % size, index % size + 1)

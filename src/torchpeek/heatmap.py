"""Heatmap: the raw values that a method returned, with every choice that they depend on."""

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
    """Every choice that a heatmap depends on. It is saved with the heatmap and printed beside its picture.

    Args:
        method: Name of the method, a key of `METHODS`.
        layer: Name of the target layer. Several names are joined by ", ".
        layer_reason: Why this layer was taken, where it was suggested.
        layout: How the layer's output was read: "channels-first 7x7", "tokens 1+14x14".
        model: Name of the model's class.
        weights: Name of the weights; "random" if they are not trained.
        preprocess: The preprocessing of the pictures.
        paper: Where the method was published: "arXiv:..." or "doi:...".
        options: The method's options, name -> value.
        score: What a score is: "logit", "probability", ...
        class_names: Class index -> name, for the labels of the question.
        device: The device on which the model ran.
        dtype: The dtype of the activations.
        torch: Version of torch.
        torchpeek: Version of torchpeek.
        steps: What was done to the values afterwards: "positive", "unit", "resized to 224 x 224".

    Example:
        >>> tp.Provenance("gradcam", "layer4", class_names={281: "tabby"})
        Provenance(method='gradcam', layer='layer4', ...)
        >>> tp.Provenance("gradcam", "layer4").options
        {}
    """

    method: str
    layer: str
    layer_reason: str = ""
    layout: str = ""
    model: str = ""
    weights: str = ""
    preprocess: str = ""
    paper: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    score: str = ""
    class_names: Mapping[int, str] = field(default_factory=dict)
    device: str = ""
    dtype: str = ""
    torch: str = ""
    torchpeek: str = ""
    steps: Sequence[str] = ()

    def class_name(self, label: int) -> str:
        """Return the name of a class, or `class 281` if the model has no class names.

        Args:
            label: The class index.

        Returns:
            The name.

        Example:
            >>> provenance = tp.Provenance("gradcam", "layer4", class_names={281: "tabby"})
            >>> provenance.class_name(281), provenance.class_name(7)
            ('tabby', 'class 7')
        """
        return self.class_names.get(label, f"class {label}")


@dataclass(frozen=True, eq=False)
class Heatmap:
    """The maps that a method returned for N samples and K scores.

    `heatmap[n]` and `heatmap[n, k]` are again a Heatmap, of one sample, or of one sample and score; slices work too.
    `len(heatmap)` is N.

    Args:
        values: (N, K, *grid), signed and raw, at the layer's own resolution: what the paper's equation gives before its
            final ReLU. float32, or float64 for a float64 model. (N, K, views, *grid) where the layer holds frames or
            views in its batch axis.
        scores: (N, K), the scores of the clean pass.
        question: What the scores are of; its `labels` are (N, K).
        provenance: Every choice that the values depend on.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmap = tp.explain(model, torch.rand(2, 3, 8, 8), layer="0", target=[[0, 3], [1, 3]])
        >>> heatmap.values.shape, heatmap[1, 0].values.shape
        (torch.Size([2, 2, 6, 6]), torch.Size([1, 1, 6, 6]))
    """

    values: Tensor
    scores: Tensor
    question: Question
    provenance: Provenance

    def __getitem__(self, index: Index | tuple[Index, Index]) -> Heatmap:
        """Return one sample (1, K, *grid), or one sample and score (1, 1, *grid), as a Heatmap. Slices take several."""
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
        """Return what score k of sample n is of: a class index, unless the target says otherwise.

        Args:
            n: Index of the sample.
            k: Index of the score.

        Returns:
            The label.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> tp.explain(model, torch.rand(1, 3, 8, 8), layer="0", target=2).label()
            2
        """
        return int(self.question.labels[n, k])

    def sign_remark(self, n: int = 0, k: int = 0) -> str:
        """Say whether positive values alone hide what a map says.

        Args:
            n: Index of the sample.
            k: Index of the score.

        Returns:
            "no positive value" or "mostly negative values" with advice, "zero everywhere", or "" for a map whose
            positive values outweigh the negative ones: their sum is at least as large.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0").unit()
            >>> heatmap.sign_remark()
            ''
        """
        values = self.values[n, k].detach().double()
        above, below = float(values.clamp(min=0).sum()), float(-values.clamp(max=0).sum())
        if above >= below:
            return "zero everywhere" if above == below == 0 else ""
        what = "mostly negative values" if above > 0 else "no positive value"
        return f"{what}: read it signed (signed=True, --signed)"

    def positive(self) -> Heatmap:
        """Set negative values to zero: the ReLU with which most papers end.

        Returns:
            A new Heatmap; `provenance.steps` gains "positive".

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0").positive()
            >>> bool((heatmap.values >= 0).all()), heatmap.provenance.steps
            (True, ('positive',))
        """
        return self._stepped(self.values.clamp(min=0), "positive")

    def unit(self) -> Heatmap:
        """Scale each map linearly to [0, 1].

        The maximum of a map becomes 1. In a map without negative values, zero stays zero, whatever its minimum: a
        uniform map stays uniform. In a map with negative values, the minimum becomes 0. A map of zeros stays zero.

        Returns:
            A new Heatmap; `provenance.steps` gains "unit".

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0").positive().unit()
            >>> heatmap.provenance.steps
            ('positive', 'unit')
        """
        return self._stepped(unit_range(self.values), "unit")

    def resized(self, size: Sequence[int]) -> Heatmap:
        """Interpolate the maps to another size: bilinear, `align_corners=False`.

        Args:
            size: Length of each axis of the grid, in positions: (H, W) for a picture.

        Returns:
            A new Heatmap, values (N, K, *size); `provenance.steps` gains "resized to H x W".

        Raises:
            InputError: When `size` has another number of axes than the grid, or a length below 1.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> tp.explain(model, torch.rand(1, 3, 8, 8), layer="0").resized((8, 8)).values.shape
            torch.Size([1, 1, 8, 8])
        """
        return self._stepped(upsample(self.values, size), "resized to " + " x ".join(map(str, size)))

    def _stepped(self, values: Tensor, step: str) -> Heatmap:
        return replace(self, values=values, provenance=replace(self.provenance, steps=(*self.provenance.steps, step)))


def unit_range(values: Tensor) -> Tensor:
    """Scale each map of (N, K, *grid) to [0, 1]. Zero stays zero in a map without negative values."""
    flat = values.flatten(2)  # (N, K, positions)
    low = flat.amin(2, keepdim=True).clamp(max=0)
    span = flat.amax(2, keepdim=True) - low
    # A division by zero would make the derivative NaN, although `where` leaves its result out.
    return torch.where(span > 0, (flat - low) / torch.where(span > 0, span, 1), 0).view_as(values)


def upsample(values: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate (N, K, *grid) to (N, K, *size): linear, bilinear or trilinear, `align_corners=False`."""
    grid = values.ndim - 2
    if len(size) != grid or any(each < 1 for each in size):
        raise InputError(f"size is {tuple(size)}, but the grid has {grid} axes; give a positive length for each")
    return F.interpolate(values, size=list(size), mode=_INTERPOLATION[grid], align_corners=False)


def _as_slice(index: Index, size: int, axis: str) -> slice:
    if isinstance(index, slice):
        return index
    if not -size <= index < size:
        raise IndexError(f"index {index} is out of range on axis {axis}, which has length {size}")
    return slice(index % size, index % size + 1)

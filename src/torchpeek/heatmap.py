"""Heatmap: the raw values that a method returned, with every choice that they depend on."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from torchpeek.argument_types import Allowed, PositiveInt
from torchpeek.engine import Question
from torchpeek.errors import InputError, type_shown
from torchpeek.html import collapsed, html_paragraph, notebook_html
from torchpeek.keywords import checked_class
from torchpeek.picture import Picture
from torchpeek.provenance import Provenance
from torchpeek.render.colormaps import Colormap
from torchpeek.render.heatmaps import MOST, ShownMap, drawn_maps, maps_html, plot_map
from torchpeek.render.overlay import Alpha
from torchpeek.render.scale import Limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}

Index: TypeAlias = int | slice


class _OneForEach:
    """What the argument `pictures` may be."""

    allowed = "a Picture, or a list of them"

    def take(self, value: Any) -> Any:
        """The pictures. Raises TypeError for anything else."""
        listed = (value,) if isinstance(value, Picture) else tuple(value)
        if not all(isinstance(each, Picture) for each in listed):
            raise TypeError
        return listed


@checked_class
@dataclass(frozen=True, eq=False)
class Heatmap:
    """The maps that a method returned for N samples and K scores.

    `heatmap[n]` and `heatmap[n, k]` are again a Heatmap, of one sample, or of one sample and score; slices work too.
    `len(heatmap)` is N, and `np.asarray(heatmap)` are the values. A notebook shows a heatmap as `overlay` draws it.

    Args:
        values: (N, K, *grid), signed and raw, at the layer's own resolution: what the paper's equation gives before its
            final ReLU. float32, or float64 for a float64 model. (N, K, views, *grid) where the layer holds frames or
            views in its batch axis.
        scores: (N, K), the scores of the clean pass.
        question: What the scores are of; its `labels` are (N, K).
        provenance: Every choice that the values depend on.
        pictures: What the maps lie over: a Picture for each of the N samples; empty where it is not known, as for a
            bare tensor. These are the Pictures that `explain` was called with. A picture that `explain` itself read is
            here with an image of at most 800 pixels a side, so that many heatmaps need little memory. `tp.save` does
            not store them.

    Raises:
        InputError: When there are pictures, but not one for each sample.

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
    pictures: Annotated[Sequence[Picture], _OneForEach()] = ()

    def __post_init__(self) -> None:
        pictures = (self.pictures,) if isinstance(self.pictures, Picture) else tuple(self.pictures)
        if pictures and len(pictures) != len(self.values):
            raise InputError(
                f"pictures has {len(pictures)} entries for {len(self.values)} samples; give one for each, or none"
            )
        object.__setattr__(self, "pictures", pictures)

    def __getitem__(self, index: Index | tuple[Index, Index]) -> Heatmap:
        """Return one sample (1, K, *grid), or one sample and score (1, 1, *grid), as a Heatmap. Slices take several."""
        pair = index if isinstance(index, tuple) else (index, slice(None))
        if len(pair) != 2:
            raise InputError(f"a heatmap is indexed by sample and score, [n] or [n, k]; got {index!r}")
        rows, columns = (
            _as_slice(each, size, axis) for each, size, axis in zip(pair, self.scores.shape, "NK", strict=True)
        )
        return Heatmap(
            self.values[rows, columns],
            self.scores[rows, columns],
            self.question.select(rows, columns),
            self.provenance if len(self) == 1 else self.provenance.of_samples(rows),
            self.pictures[rows],
        )

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False and self.values.device.type != "cpu":
            raise ValueError(f"values on {self.values.device} become an array only by a copy")
        return np.array(self.values.detach().cpu().numpy(), dtype, copy=copy)

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
        self._check_indices(n, k)
        return int(self.question.labels[n, k])

    def _check_indices(self, n: int, k: int) -> None:
        """Raise InputError unless the heatmap has the score k of the sample n."""
        for name, index, count in zip("nk", (n, k), self.values.shape, strict=False):
            if not -count <= index < count:
                what = "samples" if name == "n" else "scores"
                raise InputError(f"{name} is {index}; the heatmap has {count} {what}, counted from 0")

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
        self._check_indices(n, k)
        values = self.values[n, k].detach().double()
        above, below = float(values.clamp(min=0).sum()), float(-values.clamp(max=0).sum())
        if above >= below:
            return "zero everywhere" if above == below == 0 else ""
        what = "mostly negative values" if above > 0 else "no positive value"
        return f"{what}: read it signed (signed=True, --signed)"

    def overlay(
        self,
        picture: Any = None,
        *,
        colormap: Colormap = "viridis",
        alpha: Alpha = 0.6,
        fade: bool = True,
        limit: Limit | None = None,
        signed: bool = False,
        colorbar: bool = True,
        most: PositiveInt = MOST,
    ) -> Image.Image:
        """Draw the map over its picture; several maps in a grid, each with its class and its score.

        Without a picture, the map is drawn alone, each value as a square. So is a map whose grid has one axis, as a
        strip, or three, unless `picture` is a volume: of three axes, the slice with the highest value is drawn.
        `tp.render.overlay` has further options, and `tp.render.signal`, `filmstrip` and `montage` draw other inputs.

        Args:
            picture: What the map lies over, where it is not `pictures`: a Picture, or what else `tp.render.overlay`
                takes; of several samples a sequence of these, one for each.
            colormap: A key of `render.COLORMAPS`.
            alpha: How much of the colour is mixed in, from 0 (the picture) to 1 (the colour). Without effect on a map
                that is drawn alone.
            fade: Whether the colour is mixed in proportion to the value, up to `alpha`. False is an even mix, which
                shows a map of both signs over a dark picture.
            limit: The value of the last colour. None is each map's own, as for `tp.render.overlay`.
            signed: Whether negative values are drawn, too, in the colormap "diverging".
            colorbar: Whether a colour bar with the map's values is drawn below it.
            most: Most maps of a grid. The image says where there are more.

        Returns:
            A PIL image in RGB: of one map in the size of its picture, with the colour bar below.

        Raises:
            InputError: When there is not one picture for each sample, or there are no maps.
            OptionError: When an option has a value that is not allowed.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0", target=2)
            >>> heatmap.overlay(torch.rand(3, 300, 400), signed=True, colorbar=False).size
            (400, 300)
        """
        maps = shown_maps(self, most, picture)
        if not maps:
            raise InputError(f"the heatmap has no maps: its values have the shape {tuple(self.values.shape)}")
        style = {"colormap": colormap, "alpha": alpha, "fade": fade, "limit": limit, "signed": signed}
        return drawn_maps(maps, self.scores.numel(), _columns(self), colorbar=colorbar, **style)

    def plot(
        self, ax: Axes | None = None, *, colormap: Colormap = "viridis", alpha: Alpha = 0.6, signed: bool = False
    ) -> Axes:
        """Draw the map over its picture with matplotlib, with a title and a colour bar. Needs the extra `plot`.

        Args:
            ax: The axes to draw on. None makes a new figure with pyplot.
            colormap: As for `overlay`.
            alpha: As for `overlay`.
            signed: As for `overlay`.

        Returns:
            The matplotlib Axes.

        Raises:
            InputError: When the heatmap has several maps.
            TorchpeekError: When matplotlib is not installed.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0", target=2)
            >>> heatmap.plot(signed=True).get_title().startswith("class 2")
            True
        """
        if self.scores.numel() != 1:
            raise InputError(
                f"heatmap has {self.scores.numel()} maps; plot draws one. Next: heatmap[n, k].plot(ax), or "
                "heatmap.overlay() for a grid"
            )
        return plot_map(shown_maps(self, 1)[0], ax, colormap=colormap, alpha=alpha, signed=signed)

    @notebook_html
    def _repr_html_(self) -> str:
        maps = maps_html(shown_maps(self, MOST), self.scores.numel(), _columns(self))
        return html_paragraph(heading(self)) + maps + collapsed("provenance", self.provenance._repr_html_())

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

    def resized(self, size: Annotated[Sequence[int], Allowed("the sizes of the grid, such as (224, 224)")]) -> Heatmap:
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


def heading(heatmap: Heatmap) -> str:
    """Return in a line what a heatmap is of: method, layer, model and what was done to the values."""
    about = heatmap.provenance
    weights = f", {about.weights} weights" if about.weights == "random" else ""
    return ", ".join([f"{about.method} at {about.layer} of {about.model or 'a model'}{weights}", *about.steps])


def shown_maps(heatmap: Heatmap, most: int, picture: Any = None) -> list[ShownMap]:
    """Return the first maps, sample by sample, with what they lie over and the words beside them.

    Raises:
        InputError: When there is not one picture for each sample.
    """
    samples, scores = heatmap.scores.shape
    pictures = _pictures_of(heatmap, picture)
    return [_shown(heatmap, n, k, pictures[n]) for n, k in islice(product(range(samples), range(scores)), most)]


def _columns(heatmap: Heatmap) -> int | None:
    """The maps in a row of a grid: those of one sample, where there are several of each. None: as many as fit."""
    samples, scores = heatmap.scores.shape
    return scores if samples > 1 and 1 < scores <= MOST // 2 else None


def _pictures_of(heatmap: Heatmap, picture: Any) -> Sequence[Any]:
    flat = heatmap.values.ndim == 4  # a map of one axis or of three does not lie over a Picture
    if picture is None:
        return heatmap.pictures if heatmap.pictures and flat else [None] * len(heatmap)
    # Of three axes, a sequence for one sample is the frames of a video.
    several = isinstance(picture, (list, tuple)) and (flat or len(heatmap) != 1)
    if several and len(picture) == len(heatmap):
        return tuple(picture)
    if not several and len(heatmap) == 1:
        return (picture,)
    got = f"has {len(picture)} entries" if several else f"is {type_shown(picture)}"
    raise InputError(f"picture {got}, and the heatmap has {len(heatmap)} samples; give a list with one for each")


def _shown(heatmap: Heatmap, n: int, k: int, picture: Any) -> ShownMap:
    score = f"{heatmap.provenance.score or 'score'} {float(heatmap.scores[n, k]):.4g}"
    of_sample = (picture.name if isinstance(picture, Picture) else "") or (f"sample {n}" if len(heatmap) > 1 else "")
    title = heatmap.provenance.class_name(heatmap.label(n, k))
    return ShownMap(heatmap[n, k], picture, title, tuple(filter(None, [score, of_sample])))


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
    try:
        index = operator.index(index)  # of NumPy and torch, too
    except TypeError as error:
        raise InputError(
            f"a heatmap is indexed by whole numbers and slices, [n] or [n, k]; got {type(index).__name__}"
        ) from error
    if not -size <= index < size:
        raise IndexError(f"index {index} is out of range on axis {axis}, which has length {size}")
    return slice(index % size, index % size + 1)

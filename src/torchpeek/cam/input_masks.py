"""Methods that hide parts of the input and read the score. Their maps are on the input's own grid.

They need no gradients, so they are defined for every model. Each pass gives all K scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil
from typing import Annotated, Any

import torch
from torch import Tensor

from torchpeek.argument_types import Cells, Count, Number, Seed
from torchpeek.cam.algebra import Filling, filled, floating_inputs
from torchpeek.cam.method import cam_method
from torchpeek.engine import Trace
from torchpeek.engine.batching import Precision
from torchpeek.errors import MethodNotApplicable, OptionError
from torchpeek.heatmap import upsample

# How many masks are added up at once.
_MASKS = 64
_MOST_CELLS = 2**30  # of all masks of rise: 4 GiB while they are drawn


@cam_method("occlusion", needs="inputs", layers="none", passes="1 for each window", paper="arXiv:1311.2901")
def occlusion(
    trace: Trace,
    *,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    fill: Filling = 0.0,
    precision: Precision = None,
) -> Tensor:
    """How far the score falls when a window of the input is covered (section 4.2).

    The window covers all channels and slides over the input; at the far border it is cut off. A position that several
    windows cover has the mean of their falls. The paper leaves the size of its grey square open.

    Args:
        window: Length of the window along each axis of the grid, or one for all axes. None is a seventh of the input.
        stride: From one window to the next, as for `window`; not longer than it. None is half of the window.
        fill: What the window is filled with: a number, or a tensor (*grid), (C, *grid) or (N, C, *grid) with 1 in
            place of any length. After normalisation 0 is the mean colour, the paper's grey.
        precision: None runs the passes as the model is, "bfloat16" under autocast. The scores are float32 either way.
    """
    x = floating_inputs(trace, "occlusion")
    size = x.shape[2:]
    lengths = _per_axis("window", window, [ceil(each / 7) for each in size], size)
    strides = _per_axis("stride", stride, [ceil(each / 2) for each in lengths], lengths)
    filling = filled("fill", fill, trace.inputs)
    starts = [range(0, max(1, n - w + s), s) for n, w, s in zip(size, lengths, strides, strict=True)]
    windows = [
        (slice(None), *(slice(at, at + length) for at, length in zip(corner, lengths, strict=True)))
        for corner in product(*starts)
    ]

    def covered(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        for i, (row, trial) in enumerate(zip(rows.tolist(), trials.tolist(), strict=True)):
            inputs[i][windows[trial]] = filling[row][windows[trial]]
        return inputs

    scores = trace.rescore(covered, len(windows), precision=precision)  # (N, windows, K)
    falls = (trace.scores.unsqueeze(1) - scores).to(x)
    total, count = x.new_zeros(*trace.scores.shape, *size), x.new_zeros(1, *size)
    for fall, place in zip(falls.unbind(1), windows, strict=True):
        total[:, *place] += fall.view(*fall.shape, *(1 for _ in size))
        count[place] += 1
    return total / count


@cam_method("rise", needs="inputs", layers="none", passes="4000 over masked inputs", paper="arXiv:1806.07421")
def rise(
    trace: Trace,
    *,
    samples: Count = 4000,
    cells: Cells = 7,
    probability: Annotated[float, Number(1e-6, 1)] = 0.5,
    seed: Seed = 0,
    precision: Precision = None,
) -> Tensor:
    """The mean of random masks, each weighted by the score of the input seen through it (eq. 6).

    A mask is a coarse grid of cells, each visible with a given probability, upsampled bilinearly to one cell more than
    the input and cut to its size at a random offset (section 3.2). A cell is as long as the axis of the input divided
    by the number of cells, rounded up as in the authors' code; the paper rounds down, which leaves a margin. The sum is
    divided by the number of masks and the probability. The masks are the same for every picture and class. The paper's
    score is the probability: use target=ClassProbability(). The offset of a score, such as a logit, adds noise.

    Args:
        samples: Number of masks. The paper takes 4000 for VGG-16, 8000 for ResNet-50.
        cells: Number of cells along each axis.
        probability: How likely a cell is visible, above 0 and up to 1.
        seed: Seed of the masks.
        precision: None runs the passes as the model is, "bfloat16" under autocast. The scores are float32 either way.
    """
    x = floating_inputs(trace, "rise")
    size = x.shape[2:]
    if len(size) > 3:
        raise MethodNotApplicable(f"rise upsamples masks along one to three axes; the input has {len(size)}, {size}")
    if samples * cells ** len(size) > _MOST_CELLS:
        raise OptionError(
            f"options samples and cells are {samples} and {cells}: {samples * cells ** len(size)} cells of all masks; "
            f"allowed: {_MOST_CELLS} or fewer"
        )
    lengths = [ceil(each / cells) for each in size]
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on every device
    visible = (
        torch.rand(samples, 1, *(cells for _ in size), generator=generator, dtype=torch.float32) < probability
    ).to(x)
    offsets = torch.stack([torch.randint(each, (samples,), generator=generator) for each in lengths], 1).tolist()

    def masks(trials: Tensor) -> Tensor:
        larger = upsample(visible[trials], [(cells + 1) * each for each in lengths])  # (b, 1, *larger)
        cut = [
            mask[(slice(None), *(slice(at, at + n) for at, n in zip(offsets[trial], size, strict=True)))]
            for mask, trial in zip(larger, trials.tolist(), strict=True)
        ]
        return torch.stack(cut)  # (b, 1, *size)

    def masked(inputs: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
        return inputs * masks(trials).to(inputs)

    scores = trace.rescore(masked, samples, precision=precision).to(x)  # (N, samples, K)
    total = x.new_zeros(*trace.scores.shape, size.numel())
    for trials in torch.split(torch.arange(samples), _MASKS):
        total += scores[:, trials].mT @ masks(trials).flatten(1)
    return total.view(*trace.scores.shape, *size) / (probability * samples)


def _per_axis(
    name: str, value: int | Sequence[int] | None, default: Sequence[int], most: Sequence[int]
) -> Sequence[int]:
    """A length for each axis of the grid. Raises OptionError unless each is a whole number, 1 to `most`."""
    if value is None:
        return default
    lengths: list[Any] = list(value) if isinstance(value, (tuple, list)) else [value] * len(most)
    fits = len(lengths) == len(most) and all(
        isinstance(each, int) and not isinstance(each, bool) and 1 <= each <= limit
        for each, limit in zip(lengths, most, strict=True)
    )
    if not fits:
        limits = ", ".join(map(str, most))
        raise OptionError(
            f"option {name} is {value!r}; allowed: a whole number for each axis of the grid, or one for all, from 1 up "
            f"to {limits}" + (", the window, so that every position is covered" if name == "stride" else "")
        )
    return lengths

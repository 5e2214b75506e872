"""Which layers have the positions of the picture: change each end of the picture, and see where the layers change.

In a model of several inputs, a layer may depend on the picture and have the positions of another input: where features
of one input are scaled by a vector that is computed from the other, or where the tokens of one attend to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.forward import run
from torchpeek.engine.layout import Layout
from torchpeek.engine.layout_inference.candidates import CandidateLayer
from torchpeek.engine.layout_inference.input_dependence import changed_picture
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.preserve import preserved
from torchpeek.hooks import attached, containers, layer_at

# The least odds ratio of a layer with the positions of the picture. A layer that is scaled by a vector has 1, or up to
# 2 after an activation function. A deep network with global normalisation or attention has 10 and more.
_LEAST_ODDS = 3.0

# On a coarser grid, a deep network sees the whole picture at each position.
_LEAST_SIZE = 3


def layers_without_positions(model: nn.Module, call: ModelCall, candidates: Sequence[CandidateLayer]) -> frozenset[str]:
    """The candidates whose positions are not those of the picture.

    One pass over three versions of the first sample: as it is, with the first quarter of its last axis changed, and
    with the last quarter changed. For a model that cannot take them, the result is empty, because nothing is known.
    """
    axis = max(range(2, call.picture.ndim), key=lambda axis: (call.picture.shape[axis] > 1, axis))
    first = call.one_sample().picture
    changed = changed_picture(first)
    position = torch.arange(first.shape[axis], device=first.device).view(-1, *(1 for _ in range(axis + 1, first.ndim)))
    quarter = max(1, first.shape[axis] // 4)
    at_start, at_end = position < quarter, position >= first.shape[axis] - quarter
    versions = torch.cat([first, torch.where(at_start, changed, first), torch.where(at_end, changed, first)])
    three = call.select(torch.zeros(3, dtype=torch.long), versions)
    without: set[str] = set()

    def compare(candidate: CandidateLayer, module: nn.Module, args: Any, output: Any) -> None:
        tensor = dict(containers.leaves(output)).get(candidate.layout.part)
        if tensor is not None and _odds(candidate.layout, tensor.detach(), axis - 2) < _LEAST_ODDS:
            without.add(candidate.layer)

    hooks = [layer_at(model, each.layer).hooked(partial(compare, each)) for each in candidates]
    try:
        with preserved(model), attached(hooks):
            run(model, three.for_one_pass())
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the model takes batches of one size only, or its samples are not independent
        return frozenset()
    return frozenset(without)


def _odds(layout: Layout, tensor: Tensor, axis: int) -> float:
    """The odds ratio of a change at an end of the layer and at the same end of the picture; infinite if unknown."""
    grids = layout.to_grid(layout.samples_first(tensor)).double()  # (3, C, *grid)
    size = grids.shape[axis + 2] if axis + 2 < grids.ndim else 1
    if len(grids) != 3 or size < _LEAST_SIZE:
        return float("inf")
    change = (grids[1:] - grids[:1]).square().sum(1).movedim(axis + 1, 1).flatten(2).sum(2)  # (2, size)
    quarter = max(1, size // 4)
    ends = torch.stack([change[:, :quarter].sum(1), change[:, -quarter:].sum(1)], 1)  # (2, 2)
    same, opposite = ends[0, 0] * ends[1, 1], ends[0, 1] * ends[1, 0]
    if not same + opposite > 0:
        return float("inf")
    return float(torch.maximum(same, opposite) / torch.minimum(same, opposite))  # a mirrored picture has its positions

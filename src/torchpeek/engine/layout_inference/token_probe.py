"""The token probe: find which tokens lie on the grid, by changing the first corner of the picture and then the last."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.forward import run
from torchpeek.engine.layout import Grid, Layout
from torchpeek.engine.layout_inference.candidates import CandidateLayer
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.preserve import preserved
from torchpeek.hooks import attached, containers, layer_at


def token_movement(
    model: nn.Module, sample: ModelCall, size: Grid, candidate: CandidateLayer
) -> tuple[Tensor, Tensor] | None:
    """How far each token moves when a corner of the picture changes. Three passes of one sample each.

    A corner is as large as one cell of the grid, rounded up.

    Args:
        model: The model.
        sample: The call of one sample. Some models take no more.
        size: The sizes of the picture's own axes.
        candidate: The layer whose tokens are observed.

    Returns:
        (T,) and (T,): the movement for the first corner and for the last. None where the model fails on the changed
        pictures, or where no token moves.
    """
    layout, layer = candidate.layout, layer_at(model, candidate.layer)
    sides = [-(-length // cells) for length, cells in zip(size, layout.grid, strict=True)]

    def tokens(*corner: slice) -> Tensor:
        """(C, T): the tokens for the picture with this corner changed, or for the picture itself."""
        picture = sample.picture.clone()
        region: Any = (..., *corner)
        patch = picture[region]
        if corner and patch.is_floating_point():
            low, high = patch.amin(), patch.amax()
            picture[region] = low + high - patch + (high - low + 1) / 4  # differs from the patch everywhere
        elif corner:  # integers, of which only those in the picture are known to be valid
            picture[region] = patch.flip(-1).roll(1, -1)
        observed: list[Tensor] = []

        def observe(module: nn.Module, args: Any, output: Any) -> None:
            if layout.fits(output, len(sample)):
                returned = containers.at(output, layout.part)
                # The layer's input, if it is the same tokens: the layer itself may let each token depend on all others.
                before = next(
                    (each for each in args if isinstance(each, Tensor) and each.shape == returned.shape), returned
                )
                observed.append(before.movedim(layout.batch_axis, 0).detach().double().clone())

        with preserved(model), attached([layer.hooked(observe)]):
            run(model, sample.with_picture(picture).for_one_pass())
        [of_samples] = observed
        return of_samples[0] if layout.kind == "channel-tokens" else of_samples[0].mT

    try:
        clean = tokens()
        corners = [slice(side) for side in sides], [slice(-side, None) for side in sides]
        differences = [tokens(*corner) - clean for corner in corners]
        # Attention with untrained weights moves all tokens alike. The median removes that.
        movement = [(each - each.median(1, keepdim=True).values).abs().sum(0) for each in differences]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the model's own error; the clean pass raises it again if it matters
        return None
    return (movement[0], movement[1]) if all(bool(each.any()) for each in movement) else None


def locate_grid(first: Tensor, last: Tensor, layout: Layout) -> tuple[int, int] | None:
    """How many tokens come before and after the grid, by how far each token moves for the first and the last corner.

    Before any attention, only the tokens at the changed corner move, so the first and the last token that move are the
    ends of the grid. After attention all tokens move, and those at the corner move farthest.

    Args:
        first: (T,), the movement when the first corner changes.
        last: (T,), the movement when the last corner changes.
        layout: A layout with the grid and the total number of tokens outside it.

    Returns:
        The numbers of tokens before and after the grid. None where the grid's tokens are not next to each other.
    """
    count, others = math.prod(layout.grid), layout.others
    start, stop = int(first.nonzero().min()), int(last.nonzero().max())
    if stop == start + count - 1:
        return start, others - start
    few_moved = (2 * (first > 0).sum() <= len(first)) & (2 * (last > 0).sum() <= len(last))
    if bool(few_moved):  # no attention yet, so the ends are right, and no layout has them there
        return None
    moved = [float(first[prefix] / first.max() + last[prefix + count - 1] / last.max()) for prefix in range(others + 1)]
    prefix = max(range(others + 1), key=moved.__getitem__)
    return prefix, others - prefix

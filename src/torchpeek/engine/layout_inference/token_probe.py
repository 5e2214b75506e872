"""The token probe: find which tokens lie on the grid, by changing the first corner of the picture and then the last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from torchpeek.engine.attempts import Refusal, attempted
from torchpeek.engine.forward import run
from torchpeek.engine.layout import Grid, Layout
from torchpeek.engine.layout_inference.candidates import CandidateLayer
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.preserve import preserved
from torchpeek.hooks import attached, containers, layer_at


def token_movements(
    model: nn.Module, sample: ModelCall, size: Grid, candidates: Sequence[CandidateLayer]
) -> list[tuple[Tensor, Tensor] | None]:
    """How far each token moves when a corner of the picture changes. Three passes of one sample each.

    A corner is as large as one cell of the grid, rounded up.

    Args:
        model: The model.
        sample: The call of one sample. Some models take no more.
        size: The sizes of the picture's own axes.
        candidates: The layers whose tokens are observed. All have the same grid.

    Returns:
        For each candidate (T,) and (T,): the movement for the first corner and for the last. None where the model
        fails on the changed pictures, or where no token moves.
    """
    grid = candidates[0].layout.grid
    sides = [-(-length // cells) for length, cells in zip(size, grid, strict=True)]

    def tokens(*corner: slice) -> list[Tensor]:
        """(C, T) of each candidate: the tokens for the picture with this corner changed, or for the picture itself."""
        picture = sample.picture.clone()
        region: Any = (..., *corner)
        patch = picture[region]
        if corner and patch.is_floating_point():
            low, high = patch.amin(), patch.amax()
            picture[region] = low + high - patch + (high - low + 1) / 4  # differs from the patch everywhere
        elif corner:  # integers, of which only those in the picture are known to be valid
            picture[region] = patch.flip(-1).roll(1, -1)
        observed: dict[str, Tensor] = {}

        def observe(candidate: CandidateLayer, module: nn.Module, args: Any, output: Any) -> None:
            layout = candidate.layout
            if layout.fits(output, len(sample)):
                returned = containers.at(output, layout.part)
                # The layer's input, if it is the same tokens: the layer itself may let each token depend on all others.
                before = next(
                    (each for each in args if isinstance(each, Tensor) and each.shape == returned.shape), returned
                )
                of_sample = before.movedim(layout.batch_axis, 0)[0].detach().double().clone()
                observed[candidate.layer] = of_sample if layout.kind == "channel-tokens" else of_sample.mT

        hooks = [layer_at(model, each.layer).hooked(partial(observe, each)) for each in candidates]
        with preserved(model), attached(hooks):
            run(model, sample.with_picture(picture).for_one_pass())
        if len(observed) < len(candidates):
            raise _NotObserved
        return [observed[each.layer] for each in candidates]

    def of_corners() -> tuple[list[Tensor], list[Tensor]]:
        return tokens(*(slice(side) for side in sides)), tokens(*(slice(-side, None) for side in sides))

    try:
        clean = tokens()
        # A model may refuse the changed pictures.
        changed = attempted(of_corners, tokens)
    except _NotObserved:
        return [None] * len(candidates)
    if isinstance(changed, Refusal):
        return [None] * len(candidates)
    first, last = (
        [_movement(one - other, math.prod(grid)) for one, other in zip(of_corner, clean, strict=True)]
        for of_corner in changed
    )
    return [(one, other) if one.any() and other.any() else None for one, other in zip(first, last, strict=True)]


class _NotObserved(Exception):
    """A pass did not call each of the layers, or some returned no such tokens."""


def _movement(difference: Tensor, positions: int) -> Tensor:
    """(C, T), the difference that a corner makes -> (T,), how far each token moves, without what is common to them.

    Attention with untrained weights moves all tokens alike, and the median removes that. Where at least as many tokens
    move as the grid has positions, those that do not move, such as words, are no part of it.
    """
    moves = difference.any(0)
    if moves.sum() < positions:
        return (difference - difference.median(1, keepdim=True).values).abs().sum(0)
    return (difference - difference[:, moves].median(1, keepdim=True).values).abs().sum(0) * moves


def locate_grid(first: Tensor, last: Tensor, layout: Layout) -> tuple[int, int] | None:
    """How many tokens come before and after the grid, by how far each token moves for the first and the last corner.

    Before any attention, only the tokens at the changed corner move, so the first and the last token that move are the
    ends of the grid. After attention all tokens of the grid move, and those at the corner move farthest.

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
    distances = first / first.max() + last.roll(1 - count) / last.max()  # where the grid starts there
    moves = (first > 0) | (last > 0)
    possible = [start for start in range(others + 1) if bool(moves[start : start + count].all())]
    prefix = max(possible or range(others + 1), key=distances.__getitem__)
    return prefix, others - prefix

"""How many tokens come before and after the grid, by changing one corner of the picture and then the other."""

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
from torchpeek.hooks import attached, containers


def token_movement(
    model: nn.Module, first: ModelCall, size: Grid, layer: CandidateLayer
) -> tuple[Tensor, Tensor] | None:
    """(T,) and (T,): how far each token of a layer moves when the first corner of the picture changes, and the last.

    None where the model takes no such picture, or nothing moves. One sample at a time, as some models take no more.
    """
    layout, module = layer.layout, dict(model.named_modules())[layer.layer]
    sides = [-(-length // cells) for length, cells in zip(size, layout.grid, strict=True)]

    def tokens(*corner: slice) -> Tensor:
        picture = first.picture.clone()
        where: Any = (..., *corner)
        part = picture[where]
        if corner and part.is_floating_point():
            low, high = part.amin(), part.amax()
            picture[where] = low + high - part + (high - low + 1) / 4  # never what it was
        elif corner:  # numbers that the picture has already: others may stand for nothing
            picture[where] = part.flip(-1).roll(1, -1)
        taken: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if layout.fits(output, 1):
                made = containers.at(output, layout.part)
                # What it was call, if that are the same tokens: they may have seen each other in it.
                before = next((each for each in args if isinstance(each, Tensor) and each.shape == made.shape), made)
                taken.append(before.movedim(layout.batch_axis, 0).detach().double().clone())

        with preserved(model), attached([(module, keep)]):
            run(model, first.with_picture(picture).for_one_pass())
        [of_sample] = taken
        return of_sample[0] if layout.kind == "channel-tokens" else of_sample[0].mT  # (C, T)

    try:
        clean = tokens()
        corners = [slice(side) for side in sides], [slice(-side, None) for side in sides]
        moved = [tokens(*corner) - clean for corner in corners]
        # Less what moves all tokens alike, as attention does in a network that has learned nothing.
        found = [(each - each.median(1, keepdim=True).values).abs().sum(0) for each in moved]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # it is the model's own; the pass that is asked for will say so
        return None
    return (found[0], found[1]) if all(bool(each.any()) for each in found) else None


def locate_grid(first: Tensor, last: Tensor, layout: Layout) -> tuple[int, int] | None:
    """How many tokens come before and after the grid; None where they lie as no layout has them.

    As long as tokens have not seen each other only those move that lie at the corner. Later on all do, and these most.
    """
    count, others = math.prod(layout.grid), layout.others
    start, stop = int(first.nonzero().min()), int(last.nonzero().max())
    if stop == start + count - 1:
        return start, others - start
    if bool((2 * (first > 0).sum() <= len(first)) & (2 * (last > 0).sum() <= len(last))):
        return None
    moved = [float(first[prefix] / first.max() + last[prefix + count - 1] / last.max()) for prefix in range(others + 1)]
    prefix = max(range(others + 1), key=moved.__getitem__)
    return prefix, others - prefix

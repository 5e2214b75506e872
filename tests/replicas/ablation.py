"""Scores with the output of a layer changed, by whole passes with a plain hook, one sample and trial at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def other(activation: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
    """Something else in every trial."""
    factor = 0.3 + 0.2 * trials.to(activation).view(-1, *(1 for _ in activation.shape[1:]))
    return activation.roll(1, dims=1) * factor


def by_whole_passes(
    model: nn.Module, layer: str, x: Tensor, labels: list[int], trials: int, edit: Callable[..., Tensor] = other
) -> Tensor:
    """(N, trials, K) on a fresh copy of the model, one sample and trial at a time, with a plain hook."""
    fresh = copy.deepcopy(model).eval()
    module = fresh.get_submodule(layer)
    kept: list[Tensor] = []
    scores = torch.zeros(len(x), trials, len(labels), dtype=x.dtype)
    with torch.no_grad():
        for n in range(len(x)):
            handle = module.register_forward_hook(lambda _, args, output: kept.append(output.clone()))
            fresh(x[n : n + 1].clone())
            handle.remove()
            for trial in range(trials):
                changed = edit(kept[-1], torch.tensor([n]), torch.tensor([trial]))
                handle = module.register_forward_hook(lambda _, args, output, changed=changed: changed.clone())
                found: Any = fresh(x[n : n + 1].clone())
                handle.remove()
                scores[n, trial] = (found if isinstance(found, Tensor) else found["logits"])[0, labels]
    return scores

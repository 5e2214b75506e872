"""What plain hooks and plain autograd say of one call of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def changing(layer: nn.Module, call: int, change: Callable[[Tensor], Tensor]):
    """Change what one call of the layer returns, counted by hand."""
    number = 0

    def hook(module, args, output):
        nonlocal number
        number += 1
        return change(output) if number - 1 == call else None

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def outputs_and_gradients(
    model: nn.Module, inputs: Sequence[Tensor], layer: nn.Module, score: Callable[[Tensor], Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """(output, gradient of the score) of each call, by retain_grad."""
    outputs: list[Tensor] = []

    def hook(module, args, output):
        output.retain_grad()
        outputs.append(output)

    handle = layer.register_forward_hook(hook)
    with torch.enable_grad():
        score(model(*(each.detach().clone().requires_grad_() for each in inputs))).backward()
    handle.remove()
    model.zero_grad()
    return [
        (each.detach(), torch.zeros_like(each) if each.grad is None else each.grad.detach().clone()) for each in outputs
    ]

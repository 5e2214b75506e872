"""Inputs for SplitNet, and its activations and gradients by hand."""

from __future__ import annotations

import torch

from networks import SplitNet

X = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(net: SplitNet, labels: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations (N, C, h, w) and gradients (N, K, C, h, w), one sample and class at a time, by splitting the net."""
    activations = net.prefix(X).detach()
    gradients = torch.zeros(len(X), len(labels[0]), *activations.shape[1:], dtype=X.dtype)
    for n, row in enumerate(labels):
        for k, label in enumerate(row):
            a = activations[n : n + 1].clone().requires_grad_()
            net.suffix(a)[0, label].backward(inputs=[a])
            gradients[n, k] = a.grad[0]
    return activations, gradients

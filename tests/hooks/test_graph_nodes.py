"""Gradients edited at nodes of a graph, for the time of a block."""

from __future__ import annotations

import pytest
import torch

from torchpeek.hooks import edited_gradients


def test_inside_the_block_only_also_after_an_exception() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = x.relu()
    score = (y * torch.tensor([-3.0, 5.0])).sum()

    def gradient() -> list[float]:
        return torch.autograd.grad(score, x, retain_graph=True)[0].tolist()

    assert gradient() == [-3.0, 0.0]
    with pytest.raises(ValueError, match="inside"), edited_gradients([y.grad_fn], lambda each: each.clamp(min=0)):
        assert gradient() == [0.0, 0.0]
        raise ValueError("inside")
    assert gradient() == [-3.0, 0.0]


def test_of_a_batch_of_gradients() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = x.relu()
    with edited_gradients([y.grad_fn], lambda each: each.clamp(min=0)):
        (batched,) = torch.autograd.grad(y, x, torch.tensor([[1.0, -1.0], [-2.0, 3.0]]), is_grads_batched=True)
    assert batched.tolist() == [[1.0, 0.0], [0.0, 3.0]]

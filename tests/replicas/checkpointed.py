"""A network whose parts can be checkpointed in several ways, and its edits written into its forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

Run = Callable[..., Tensor]


class Block(nn.Module):
    """Two calls of one activation, and a layer between them."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.lin, self.drop = nn.Tanh(), nn.Linear(3, 3), nn.Dropout(0.3)

    def forward(self, x: Tensor, around: Run) -> Tensor:
        return self.drop(self.act(around(self.inner, x)))

    def inner(self, x: Tensor) -> Tensor:
        return self.lin(self.act(x))


class Checkpointed(nn.Module):
    """first, block and last; the block runs inside `outer`, and a part of it inside `inner`.

    Args:
        outer: Calls a function with its input, as `checkpoint` does.
        inner: The same, for the part of the block.
    """

    def __init__(self, outer: Run, inner: Run) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.block, self.last = nn.Linear(3, 3), Block(), nn.Linear(3, 2)
        self.outer, self.inner = outer, inner
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.outer(partial(self.block, around=self.inner), self.first(x)))


class EditedByHand(nn.Module):
    """The same network without checkpoints, with functions in its forward where an edit would change it.

    Args:
        like: A network with the weights.
        **changes: `act_0` and `act_1` for the output of these calls of block.act, `lin_input`, and `lin_output`.
    """

    def __init__(self, like: Checkpointed, **changes: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.block, self.last = like.first, like.block, like.last
        self.changes = changes

    def changed(self, name: str, value: Tensor) -> Tensor:
        return self.changes.get(name, lambda value: value)(value)

    def forward(self, x: Tensor) -> Tensor:
        x = self.changed("act_0", self.block.act(self.first(x)))
        x = self.changed("lin_output", self.block.lin(self.changed("lin_input", x)))
        return self.last(self.block.drop(self.changed("act_1", self.block.act(x))))


def plain(function: Run, x: Tensor) -> Tensor:
    """Call the function without a checkpoint."""
    return function(x)


def reentrant(function: Run, x: Tensor) -> Tensor:
    """Checkpoint the function in the old way."""
    return checkpoint(function, x, use_reentrant=True)


def not_reentrant(function: Run, x: Tensor) -> Tensor:
    """Checkpoint the function in the new way."""
    return checkpoint(function, x, use_reentrant=False)


def to_the_end(function: Run, x: Tensor) -> Tensor:
    """Checkpoint the function in the new way, and run all of it again."""
    return checkpoint(function, x, use_reentrant=False, early_stop=False)


def sequential(function: Run, x: Tensor) -> Tensor:
    """The function as the first part of a checkpointed sequence."""
    return checkpoint_sequential([function, nn.Identity()], 2, x, use_reentrant=False)


CHECKPOINTS: dict[str, tuple[Run, Run]] = {
    "no checkpoint": (plain, plain),
    "reentrant": (reentrant, plain),
    "not reentrant": (not_reentrant, plain),
    "to the end": (to_the_end, plain),
    "sequential": (sequential, plain),
    "only a part": (plain, not_reentrant),
    "reentrant in reentrant": (reentrant, reentrant),
    "not reentrant in not reentrant": (not_reentrant, not_reentrant),
    "reentrant in not reentrant": (not_reentrant, reentrant),
    "not reentrant in reentrant": (reentrant, not_reentrant),
}


def gradients_of(model: nn.Module) -> dict[str, Any]:
    """The gradients of the weights, and none afterwards."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return gradients

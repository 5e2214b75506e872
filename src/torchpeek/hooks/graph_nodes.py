"""Edit the gradients that arrive at nodes of an autograd graph. The nodes belong to one pass, not to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node


@contextmanager
def edited_gradients(nodes: Iterable[Node], edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, each node's backward gets `edit(gradient)` in place of the gradient of its output.

    Args:
        nodes: Nodes of a graph.
        edit: Called with each gradient that arrives at one of them; returns one of the same shape.
    """

    def before(gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(None if gradient is None else edit(gradient) for gradient in gradients)

    with ExitStack() as stack:
        for node in nodes:
            stack.callback(node.register_prehook(before).remove)
        yield

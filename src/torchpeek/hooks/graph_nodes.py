"""Edit the gradients that arrive at nodes of an autograd graph. The nodes belong to one pass, not to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from torchpeek.undo import Undo, undone


@undone
def edited_gradients(undo: Undo, nodes: Iterable[Node], edit: Callable[[Tensor], Tensor]) -> None:
    """Inside the block, each node's backward gets `edit(gradient)` in place of the gradient of its output.

    Args:
        undo: What ends the edit.
        nodes: Nodes of a graph.
        edit: Called with each gradient that arrives at one of them; returns one of the same shape.
    """

    is_open = [True]
    handles: list[RemovableHandle] = []

    def before(gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        if not is_open:  # an exception has struck before the handle was known
            return gradients
        return tuple(None if gradient is None else edit(gradient) for gradient in gradients)

    undo.push(_remove, handles)
    undo.push(is_open.clear)
    for node in nodes:
        handles.append(node.register_prehook(before))


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()

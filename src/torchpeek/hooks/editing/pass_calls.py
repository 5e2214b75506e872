"""Count the calls of layers in each pass of a model, so that an edit can be of one call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from torchpeek.hooks.backward_pass import in_backward_pass
from torchpeek.hooks.model_calls import ModelCalls
from torchpeek.hooks.process import current_thread
from torchpeek.hooks.selected_layer import SelectedLayer
from torchpeek.undo import Block, Undo, undone


class CallCounts(NamedTuple):
    """The calls that one thread has counted in a pass."""

    depth: int  # how many calls of the model are open
    numbers: dict[object, int]


class PassCalls:
    """Counts the calls of layers in each pass of a model, for each thread apart.

    A pass is an outermost call of the model. A thread that no pass has begun in counts from 0. So does each replica of
    DataParallel, which runs in a new thread.

    Args:
        model_calls: The calls of the model.
    """

    def __init__(self, model_calls: ModelCalls) -> None:
        self._model_calls = model_calls
        self.completed = False  # whether a pass has returned
        self._most: dict[str, int] = {}  # layer -> the most calls of a pass so far
        self._of_thread = threading.local()

    def at(self, layer: SelectedLayer, hook: Callable[..., Any]) -> Callable[..., Any]:
        """A hook that runs `hook` at the selected call of each pass alone, or at every call of a whole layer."""
        if layer.call is None:
            return hook
        key = object()

        def at_selected_call(*arguments: Any) -> Any:
            numbers = self._counts().numbers
            number = numbers.get(key, 0)
            numbers[key] = number + 1
            self._most[layer.path] = max(self._most.get(layer.path, 0), number + 1)
            return hook(*arguments) if number == layer.call else None

        return at_selected_call

    def most(self, layer: SelectedLayer) -> int:
        """The most calls of the layer in a pass; 0 for a whole layer, whose calls are not counted."""
        return self._most.get(layer.path, 0) if layer.call is not None else 0

    def begin_pass(self, *hook_arguments: Any) -> None:
        """The pre-hook of the model: a pass begins, unless the model calls itself."""
        depth, numbers = self._counts()
        if self._model_calls.depth.get(current_thread()) == 1 and not in_backward_pass():
            depth = 0  # what was counted before is of a pass that Ctrl-C ended
        self._of_thread.counts = CallCounts(depth + 1, numbers if depth else {})

    def end_pass(self, *hook_arguments: Any) -> None:
        """The forward hook of the model, also where it raises."""
        depth, numbers = self._counts()
        self._of_thread.counts = CallCounts(max(0, depth - 1), numbers)

    def complete_pass(self, *hook_arguments: Any) -> None:
        """The forward hook of the model where it returns."""
        self.completed = True

    def counts(self) -> CallCounts:
        """A copy of what the current thread has counted so far."""
        depth, numbers = self._counts()
        return CallCounts(depth, dict(numbers))

    def counted_from(self, counts: CallCounts) -> Block[None]:
        """Inside the block, count the calls of the current thread from `counts`; afterwards as before."""
        return _with_attribute(
            self._of_thread, "counts", self._counts(), CallCounts(counts.depth, dict(counts.numbers))
        )

    def _counts(self) -> CallCounts:
        counts: CallCounts | None = getattr(self._of_thread, "counts", None)
        if counts is None:
            counts = self._of_thread.counts = CallCounts(0, {})
        return counts


@undone
def _with_attribute(undo: Undo, owner: object, name: str, before: Any, inside: Any) -> None:
    undo.push(setattr, owner, name, before)
    setattr(owner, name, inside)

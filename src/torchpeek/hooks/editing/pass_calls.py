"""Count the calls of layers in each pass of a model, so that an edit can be of one call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torchpeek.errors import GradUnavailable
from torchpeek.hooks.recording.pass_tracker import in_backward_pass
from torchpeek.hooks.selected_layer import SelectedLayer


class PassCalls:
    """Counts the calls of layers in each pass of a model, for each thread apart.

    A pass is an outermost call of the model. A thread that no pass has begun in counts from 0. So does each replica of
    DataParallel, which runs in a new thread.
    """

    def __init__(self) -> None:
        self.completed = False  # whether a pass has returned
        self._most: dict[str, int] = {}  # layer -> the most calls of a pass so far
        self._of_thread = threading.local()

    def at(self, layer: SelectedLayer, hook: Callable[..., Any]) -> Callable[..., Any]:
        """A hook that runs `hook` at the selected call of each pass alone, or at every call of a whole layer."""
        if layer.call is None:
            return hook
        key = object()

        def at_selected_call(*arguments: Any) -> Any:
            if in_backward_pass():
                raise GradUnavailable(
                    f"the edited layer {layer.name!r} is in a checkpointed part of the model, which runs again in the "
                    "backward pass, where calls cannot be counted. Next: turn checkpointing off, or edit all calls: "
                    f"{layer.path!r}"
                )
            counts = self._counts()
            number = counts.get(key, 0)
            counts[key] = number + 1
            self._most[layer.path] = max(self._most.get(layer.path, 0), number + 1)
            return hook(*arguments) if number == layer.call else None

        return at_selected_call

    def most(self, layer: SelectedLayer) -> int:
        """The most calls of the layer in a pass; 0 for a whole layer, whose calls are not counted."""
        return self._most.get(layer.path, 0) if layer.call is not None else 0

    def begin_pass(self, *hook_arguments: Any) -> None:
        """The pre-hook of the model: a pass begins, unless the model calls itself."""
        depth = getattr(self._of_thread, "depth", 0)
        self._of_thread.depth = depth + 1
        if not depth:
            self._counts().clear()

    def end_pass(self, *hook_arguments: Any) -> None:
        """The forward hook of the model, also where it raises."""
        self._of_thread.depth = max(0, getattr(self._of_thread, "depth", 0) - 1)

    def complete_pass(self, *hook_arguments: Any) -> None:
        """The forward hook of the model where it returns."""
        self.completed = True

    def _counts(self) -> dict[object, int]:
        counts: dict[object, int] | None = getattr(self._of_thread, "counts", None)
        if counts is None:
            counts = self._of_thread.counts = {}
        return counts

"""Outputs of inner layers that a target reads: recorded beside what the model returns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn

from torchpeek.engine.layout import Layout
from torchpeek.hooks import SelectedLayer, attached

ObservedLayers: TypeAlias = Mapping[str, tuple[SelectedLayer, Layout | None]]
"""Name -> the layer, or call of one, and the layout of its output; None where the output has no grid."""


@dataclass(frozen=True, eq=False)
class ObservedOutput:
    """What the model returned, together with what the observed layers returned in the same pass."""

    output: Any
    layers: Mapping[str, Tensor]  # (N, C, *grid), or as the layer returned it where it has no grid
    observed: ObservedLayers = field(default_factory=dict)  # also those that the pass did not call
    calls: Mapping[str, int] = field(default_factory=dict)  # how often the pass called each of them


class Observer:
    """Keeps copies of what the observed layers return in one pass."""

    def __init__(self, observed: ObservedLayers) -> None:
        self._observed = observed
        self._calls = dict.fromkeys(observed, 0)
        # Of a call that is counted from the end: as many of the latest outputs as it is from the end.
        self._latest: dict[str, deque[Any]] = {
            name: deque(maxlen=-layer.call if layer.call is not None and layer.call < 0 else 1)
            for name, (layer, _) in observed.items()
        }

    @contextmanager
    def observing(self) -> Iterator[None]:
        """The layers are observed inside the block."""
        if not self._observed:  # most passes: a block would take longer than all the rest
            yield
            return
        hooks = [
            (layer.module, partial(self._keep, name, layer, layout)) for name, (layer, layout) in self._observed.items()
        ]
        with attached(hooks):
            yield

    def result(self, output: Any) -> ObservedOutput:
        """What the pass returned, with what was observed."""
        latest = self._latest.items()
        layers = {name: outputs[0] for name, outputs in latest if len(outputs) == outputs.maxlen}
        return ObservedOutput(output, layers, self._observed, self._calls)

    def _keep(
        self, name: str, layer: SelectedLayer, layout: Layout | None, module: nn.Module, args: Any, output: Any
    ) -> None:
        number = self._calls[name]
        self._calls[name] += 1
        if layer.call in (None, number) or layer.counts_from_end:
            tensor = output if layout is None else layout.to_grid(layout.taken(output))
            # A copy, because the next operation may write into it.
            self._latest[name].append(tensor.clone() if isinstance(tensor, Tensor) else tensor)


def counted_from_end(output: Any) -> ObservedLayers:
    """The observed layers of a pass, with each selected call counted from the end of the pass.

    A replay runs the end of a pass alone, so there a call has another number from the start, but the same from the end.
    """
    if not isinstance(output, ObservedOutput):
        return {}
    return {
        name: (layer.counted_from_end(output.calls[name]), layout) for name, (layer, layout) in output.observed.items()
    }


def layers_of_target(target: object) -> Sequence[str]:
    """The names of the inner layers that a target reads; empty for a target that reads the model's output."""
    names: Sequence[str] = getattr(target, "layers", ())
    return names


def output_for(target: object, output: Any) -> Any:
    """The part of a pass that a target reads: the model's output, or that together with the observed layers."""
    return output.output if isinstance(output, ObservedOutput) and not layers_of_target(target) else output

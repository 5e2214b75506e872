"""Outputs of inner layers that a target reads: recorded beside what the model returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn

from torchpeek.engine.layout import Layout
from torchpeek.hooks import attached

ObservedLayers: TypeAlias = Mapping[str, tuple[nn.Module, Layout | None]]
"""Layer name -> the module and the layout of its output; None where the output has no grid."""


@dataclass(frozen=True, eq=False)
class ObservedOutput:
    """What the model returned, together with what the observed layers returned in the same pass."""

    output: Any
    layers: Mapping[str, Tensor]  # (N, C, *grid), or as the layer returned it where it has no grid
    observed: frozenset[str] = frozenset()  # all observed layers, also those that the pass did not call


@contextmanager
def observe(layers: ObservedLayers) -> Iterator[dict[str, Tensor]]:
    """Inside the block, the dict is filled with copies of what the layers return."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, layout: Layout | None, module: nn.Module, args: Any, output: Any) -> None:
        tensor = output if layout is None else layout.to_grid(layout.taken(output))
        # A copy, because the next operation may write into it.
        outputs[name] = tensor.clone() if isinstance(tensor, Tensor) else tensor

    with attached([(module, partial(keep, name, layout)) for name, (module, layout) in layers.items()]):
        yield outputs


def layers_of_target(target: object) -> Sequence[str]:
    """The names of the inner layers that a target reads; empty for a target that reads the model's output."""
    names: Sequence[str] = getattr(target, "layers", ())
    return names


def output_for(target: object, output: Any) -> Any:
    """The part of a pass that a target reads: the model's output, or that together with the observed layers."""
    return output.output if isinstance(output, ObservedOutput) and not layers_of_target(target) else output

"""Questions about what a layer inside the model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.observed import ObservedOutput
from torchpeek.engine.targets.question import index_list
from torchpeek.errors import NotConnected, NotFired, TargetError


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """What fixed channels of a layer say: at one position of its grid, or their means over it."""

    labels: Tensor  # (N, K), int64: the channels
    layer: str
    position: tuple[int, ...] | None = None
    noun: str = "channel"

    @property
    def layers(self) -> Sequence[str]:
        """The layers whose outputs the question reads."""
        return (self.layer,)

    @property
    def positional(self) -> bool:
        """Whether it is of a place, which a mirrored picture would have elsewhere."""
        return self.position is not None

    @property
    def kind(self) -> str:
        """What a score is, for a heatmap's provenance."""
        where = "mean" if self.position is None else f"at {', '.join(map(str, self.position))}"
        return f"channel of {self.layer!r}, {where}"

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        values = _layer_output(output, self.layer)  # (n, C, *grid)
        if self.position is not None:
            for at in self.position:
                values = values.select(2, at)
        found = values.flatten(2).mean(2) if values.ndim > 2 else values  # (n, C)
        return found.gather(1, self.labels.to(found.device)[rows.to(found.device)])

    def select(self, rows: slice | Tensor, columns: slice) -> NeuronScores:
        return replace(self, labels=self.labels[rows][:, columns])


@dataclass(frozen=True)
class Neuron:
    """Channels of any layer: what they say at one `position` of the layer's grid, or, left out, on average over it.

    For a layer that returns (N, D) a channel is one of the D. It is to come after the layer that is looked at.
    """

    layer: str
    channel: int | Sequence[int] = 0
    position: int | Sequence[int] | None = None

    @property
    def layers(self) -> Sequence[str]:
        """The layers whose outputs the question reads."""
        return (self.layer,)

    def bind(self, output: Any) -> NeuronScores:
        values = _layer_output(output, self.layer, clean=True).detach()
        given = index_list(self.channel)
        if not given:
            raise TargetError(f"Neuron(channel={self.channel!r}): give the index of a channel, or a list of these")
        if wrong := [each for each in given if not 0 <= each < values.shape[1]]:
            raise TargetError(f"no channel {wrong[0]}: layer {self.layer!r} has {values.shape[1]}, counted from 0")
        grid, position = tuple(values.shape[2:]), None
        if self.position is not None:
            position = tuple(index_list(self.position))
            if len(position) != len(grid) or any(not 0 <= at < have for at, have in zip(position, grid, strict=True)):
                have = f"a grid of {' x '.join(map(str, grid))}, counted from 0" if grid else "no grid; leave it out"
                raise TargetError(f"position {self.position!r}: layer {self.layer!r} has {have}")
        labels = torch.tensor([given], device=values.device).expand(len(values), -1)
        return NeuronScores(labels, self.layer, position)


def _layer_output(output: Any, layer: str, *, clean: bool = False) -> Tensor:
    """(N, C, *grid) of an observed layer, at least float32.

    Raises TargetError where the pass did not look at it, and where it did not run NotFired of a `clean` pass, and
    NotConnected of one of what comes after another layer.
    """
    if not isinstance(output, ObservedOutput) or layer not in output.observed:
        raise TargetError(
            f"Neuron({layer!r}) asks about a layer, which the pass has to keep: give it as the target of that pass, "
            "explain(model, inputs, target=...) or trace(model, inputs, target=...)"
        )
    if layer not in output.layers:
        if clean:
            raise NotFired(f"layer {layer!r}, which the target asks about, was not called in the pass")
        raise NotConnected(
            f"layer {layer!r}, which the target asks about, does not run after the layer that is looked at, and so the "
            "score does not depend on it. Choose an earlier layer to look at; layer=None suggests one"
        )
    found = output.layers[layer]
    if not isinstance(found, Tensor) or found.ndim < 2 or not found.is_floating_point():
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise TargetError(f"layer {layer!r} returned {what}; Neuron is of layers that return (N, C, *grid) or (N, D)")
    return at_least_float32(found)

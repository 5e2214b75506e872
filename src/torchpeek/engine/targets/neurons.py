"""Target for channels of a layer inside the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchpeek.engine.numerics import at_least_float32
from torchpeek.engine.observed import ObservedOutput
from torchpeek.engine.targets.question import index_list
from torchpeek.errors import AmbiguousCall, NotConnected, NotFired, TargetError, type_shown
from torchpeek.hooks import no_such_call, several_calls
from torchpeek.keywords import checked_methods


@checked_methods
@dataclass(frozen=True, eq=False)
class NeuronScores:
    """The activations of fixed channels of a layer: at one position of its grid, or their means over the grid.

    Args:
        labels: (N, K), int64: the channels.
        layer: The name of the layer.
        position: The position on the layer's grid; None for the mean over the grid.
        noun: What a label counts.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
        >>> target = tp.targets.Neuron("1", channel=[0, 4])
        >>> tp.explain(model, torch.rand(1, 3, 8, 8), layer="0", target=target).question.labels
        tensor([[0, 4]])
    """

    labels: Tensor  # (N, K), int64
    layer: str
    position: tuple[int, ...] | None = None
    noun: str = "channel"

    @property
    def layers(self) -> Sequence[str]:
        """The names of the inner layers that the question reads."""
        return (self.layer,)

    @property
    def positional(self) -> bool:
        """Whether the question is about a position of the input, which moves when the input is mirrored."""
        return self.position is not None

    @property
    def kind(self) -> str:
        """What a score is, for a heatmap's provenance."""
        place = "mean" if self.position is None else f"at {', '.join(map(str, self.position))}"
        return f"channel of {self.layer!r}, {place}"

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        """Compute the scores of an output.

        Args:
            output: An `ObservedOutput` of n samples, which holds what the layer returned.
            rows: (n,), int64: the clean sample that each of them is a version of.

        Returns:
            (n, K) scores, at least float32.

        Raises:
            TargetError: When the pass did not record the layer, or the layer returned something else than (n, C, ...).
            NotConnected: When the layer did not run in the pass.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
            >>> trace = tp.trace(model, torch.rand(2, 3, 8, 8), layer="0", target=tp.targets.Neuron("1", channel=3))
            >>> trace.scores.shape
            torch.Size([2, 1])
        """
        values = _layer_output(output, self.layer)  # (n, C, *grid)
        if self.position is not None:
            for index in self.position:
                values = values.select(2, index)
        channels = values.flatten(2).mean(2) if values.ndim > 2 else values  # (n, C)
        return channels.gather(1, self.labels.to(channels.device)[rows.to(channels.device)])

    def select(self, rows: slice | Tensor, columns: slice) -> NeuronScores:
        """Select some of the samples and of the channels.

        Args:
            rows: Which of the N samples.
            columns: Which of the K channels.

        Returns:
            The question of these samples and channels.

        Example:
            >>> question = tp.targets.NeuronScores(torch.tensor([[1, 2], [3, 4]]), "layer")
            >>> question.select(slice(1, 2), slice(0, 1)).labels
            tensor([[3]])
        """
        return replace(self, labels=self.labels[rows][:, columns])


@checked_methods
@dataclass(frozen=True)
class Neuron:
    """The activations of channels of any layer: at one position of the layer's grid, or their means over the grid.

    The layer has to run after the target layer of the heatmap. For a layer that returns (N, D), a channel is one of
    the D.

    Args:
        layer: The name of the layer; "act[1]" is its second call in a pass.
        channel: The index of a channel, or a list of these.
        position: One index for each axis of the layer's grid. None for the mean over the grid.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
        >>> target = tp.targets.Neuron("1", channel=2, position=(0, 3))
        >>> tp.explain(model, torch.rand(1, 3, 8, 8), layer="0", target=target).provenance.score
        "channel of '1', at 0, 3"
    """

    layer: str
    channel: int | Sequence[int] = 0
    position: int | Sequence[int] | None = None

    @property
    def layers(self) -> Sequence[str]:
        """The names of the inner layers that the target reads."""
        return (self.layer,)

    def bind(self, output: Any) -> NeuronScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: An `ObservedOutput` of N samples, which holds what the layer returned.

        Returns:
            The question, with labels (N, K), K the number of channels.

        Raises:
            TargetError: When the layer has no such channel or position, the pass did not record the layer, or the layer
                returned something else than (N, C, ...).
            NotFired: When the layer, or the call, did not run.
            AmbiguousCall: When the layer was called several times, and no call is named.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
            >>> target = tp.targets.Neuron("1", channel=[0, 4])
            >>> tp.trace(model, torch.rand(2, 3, 8, 8), layer="0", target=target).question.labels.shape
            torch.Size([2, 2])
        """
        values = _layer_output(output, self.layer, clean=True).detach()
        channels = index_list(self.channel)
        if not channels:
            raise TargetError(f"Neuron(channel={self.channel!r}): give the index of a channel, or a list of these")
        if wrong := [channel for channel in channels if not 0 <= channel < values.shape[1]]:
            raise TargetError(f"no channel {wrong[0]}: layer {self.layer!r} has {values.shape[1]}, counted from 0")
        grid, position = tuple(values.shape[2:]), None
        if self.position is not None:
            position = tuple(index_list(self.position))
            inside = all(0 <= index < size for index, size in zip(position, grid, strict=False))
            if len(position) != len(grid) or not inside:
                allowed = f"a grid of {' x '.join(map(str, grid))}, counted from 0" if grid else "no grid; leave it out"
                raise TargetError(f"position {self.position!r}: layer {self.layer!r} has {allowed}")
        labels = torch.tensor([channels], device=values.device).expand(len(values), -1)
        return NeuronScores(labels, self.layer, position)


def _layer_output(output: Any, layer: str, *, clean: bool = False) -> Tensor:
    """(N, C, *grid): what an observed layer returned, at least float32.

    Raises TargetError where the pass did not record the layer. Where the layer did not run, raises NotFired for a
    `clean` pass, and NotConnected for a pass that starts after the target layer. Raises AmbiguousCall where the layer
    was called several times and the target names no call.
    """
    if not isinstance(output, ObservedOutput) or layer not in output.observed:
        raise TargetError(
            f"Neuron({layer!r}) reads a layer that this pass did not record. Give it as the target of the pass: "
            "explain(model, inputs, target=...) or trace(model, inputs, target=...)"
        )
    selected, calls = output.observed[layer][0], output.calls.get(layer, 0)
    if clean and selected.call is None and calls > 1:
        raise AmbiguousCall(f"the target reads one output: {several_calls(layer, calls)}")
    if layer not in output.layers:
        if clean and calls:
            raise NotFired(f"the target reads a call that did not take place: {no_such_call(selected, calls)}")
        if clean:
            raise NotFired(f"layer {layer!r}, which the target reads, was not called in the pass")
        raise NotConnected(
            f"layer {layer!r}, which the target reads, does not run after the target layer, so the score does not "
            "depend on the target layer. Choose an earlier target layer; layer=None suggests one"
        )
    tensor = output.layers[layer]
    if not isinstance(tensor, Tensor) or tensor.ndim < 2 or not tensor.is_floating_point():
        got = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type_shown(tensor)
        raise TargetError(f"layer {layer!r} returned {got}; Neuron reads layers that return (N, C, *grid) or (N, D)")
    return at_least_float32(tensor)

"""What record() keeps of each tensor, if not the tensor itself: `record(..., keep=...)`.

`Stored` keeps it elsewhere, smaller or in part; `Running` keeps statistics of all calls; `Callback` hands it on, to a
file say. A plain function is `Stored(reduce=function)`. Each is for all layers, or a dict gives each selection its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.errors import InputError, LayerNotFound
from torchpeek.hooks.module_channels import Channels, channels_of
from torchpeek.hooks.recording.running_statistics import RunningStatistics
from torchpeek.hooks.recording.storage import Leaf, StoredTensor, StoredValue
from torchpeek.hooks.select import Selection, select

Keeper: TypeAlias = Callable[[str, int, int, Tensor, bool], Leaf]
"""Called as `keeper(part, order, number, tensor, copy)`: what to leave in the place of this part of a layer's call.

`order` is among the calls of all layers, `number` among those of this one in the pass where the policy accumulates.
"""


class Policy(Protocol):
    """Decides what is kept of a layer."""

    accumulates: bool  # over all passes, so that the calls of one go with those of the others

    def keeper(self, layer: str, module: nn.Module, channels: Channels) -> Keeper:
        """For one layer."""
        ...


Keep: TypeAlias = "Policy | Callable[[Tensor], Any]"
"""A policy, or a function of the tensor, whose result is kept."""


@dataclass(frozen=True)
class Stored:
    """Keep `reduce(tensor)`, such as `gap`, as that type on that device. `clone` makes a copy in any case."""

    reduce: Callable[[Tensor], Any] | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    clone: bool = False

    accumulates = False

    def keeper(self, layer: str, module: nn.Module, channels: Channels) -> Keeper:
        """Keeps one tensor after the other."""

        def keep(part: str, order: int, number: int, tensor: Tensor, copy: bool) -> Leaf:
            value = tensor.detach()
            if self.reduce is not None:
                value = _call_user_function(self.reduce, layer, part, value)
            if not isinstance(value, Tensor):
                return StoredValue(value)
            dtype = self.dtype if value.is_floating_point() else None
            # A copy is only needed of what is still the layer's own memory.
            stored = value.to(device=self.device, dtype=dtype)
            return StoredTensor(stored, (copy or self.clone) and _same_memory(stored, tensor))

        return keep


@dataclass(frozen=True)
class Running:
    """Keep statistics over all passes, in constant memory: `tape[layer].output` is a `RunningStatistics`.

    A layer that is called several times in a pass has one for each, `tape[layer][i].output`.

    Channels are on axis 1 or the last, whichever has as many as the last layer in it, or before it, that has channels;
    `channel_axis` says otherwise. The histogram takes in at most `SAMPLED` values of a call.
    """

    histogram: bool = True
    channel_axis: int | None = None

    accumulates = True

    def keeper(self, layer: str, module: nn.Module, channels: Channels) -> Keeper:
        """Each call in a pass, and each part of it, has statistics of its own."""
        return StatisticsKeeper(layer, channels, self)


class StatisticsKeeper:
    """The statistics of one layer."""

    def __init__(self, layer: str, channels: Channels, policy: Running) -> None:
        self._layer = layer
        self._channels = channels
        self._policy = policy
        self._parts: dict[tuple[int, str], RunningStatistics] = {}
        self._lock = threading.Lock()  # DataParallel's replicas come at the same time

    def __call__(self, part: str, order: int, number: int, tensor: Tensor, copy: bool) -> Leaf:
        with self._lock:
            statistics = self._parts.get((number, part))
            if statistics is None:
                axis = self._policy.channel_axis
                axis = self._channels.axis_of(tensor) if axis is None else axis
                statistics = RunningStatistics(channel_axis=axis, histogram=self._policy.histogram)
                self._parts[number, part] = statistics
            try:
                statistics.update(tensor)
            except Exception as error:
                error.add_note(f"in the statistics of the {part} of layer {self._layer!r}")
                raise
        return statistics

    def current(self, number: int, part: str) -> Leaf | None:
        """What there is before this call adds to it."""
        return self._parts.get((number, part))


@dataclass(frozen=True)
class Captured:
    """What a `Callback` is given: `part` is output, input, grad_output or grad_input, with the path of a container."""

    layer: str
    part: str
    order: int  # among the calls of all recorded layers in the pass
    tensor: Tensor


@dataclass(frozen=True)
class Callback:
    """Hand each tensor to `function(captured)`; what it returns is kept in the tensor's place."""

    function: Callable[[Captured], Any]

    accumulates = False

    def keeper(self, layer: str, module: nn.Module, channels: Channels) -> Keeper:
        """Calls the function each time."""

        def keep(part: str, order: int, number: int, tensor: Tensor, copy: bool) -> Leaf:
            value = _call_user_function(self.function, layer, part, Captured(layer, part, order, tensor.detach()))
            return StoredTensor(value, copy) if isinstance(value, Tensor) else StoredValue(value)

        return keep


def gap(tensor: Tensor) -> Tensor:
    """Global average pooling: the mean over everything behind (N, C), in at least float32. (N, C, *grid) -> (N, C)."""
    values = tensor if tensor.dtype == torch.float64 else tensor.float()
    return values.flatten(2).mean(2) if tensor.ndim > 2 else values.clone()


def layer_keepers(
    model: nn.Module, layers: Mapping[str, nn.Module], keep: Keep | Mapping[Any, Keep] | None
) -> dict[str, tuple[Keeper, bool]]:
    """For each layer with a policy its keeper, and whether that accumulates. The first selection that fits counts."""
    policies: dict[str, Policy] = {}
    if isinstance(keep, Mapping):
        for selection, policy in keep.items():
            layer_selection: Selection = list(selection) if isinstance(selection, tuple) else selection
            modules = set(map(id, select(model, layer_selection).values()))
            matches = [name for name, module in layers.items() if id(module) in modules]
            if not matches:
                raise LayerNotFound(f"keep names {selection!r}, but no layer of that is recorded")
            for name in matches:
                policies.setdefault(name, _policy(policy))
    elif keep is not None:
        policies = dict.fromkeys(layers, _policy(keep))
    channels = channels_of(model) if any(policy.accumulates for policy in policies.values()) else {}
    unknown = Channels(-1, last=False)
    return {
        name: (policy.keeper(name, layers[name], channels.get(id(layers[name]), unknown)), policy.accumulates)
        for name, policy in policies.items()
    }


def _policy(keep: Keep) -> Policy:
    if isinstance(keep, (Stored, Running, Callback)):
        return keep
    if callable(keep) and not isinstance(keep, type):
        return Stored(reduce=keep)
    raise InputError(
        f"keep is {keep!r}; allowed: tp.keep.Stored(...), tp.keep.Running(), tp.keep.Callback(function), a function of "
        "a tensor, or a dict from a layer selection to one of these"
    )


def _call_user_function(function: Callable[[Any], Any], layer: str, part: str, argument: Any) -> Any:
    try:
        return function(argument)
    except Exception as error:
        error.add_note(f"while the {part} of layer {layer!r} was kept")
        raise


def _same_memory(a: Tensor, b: Tensor) -> bool:
    if a.layout != torch.strided or b.layout != torch.strided:
        return a is b
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()

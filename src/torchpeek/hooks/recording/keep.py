"""What record() stores of each tensor instead of the tensor itself: `record(..., keep=...)`.

`Stored` stores it reduced, in another dtype or on another device. `Running` keeps statistics over all calls. `Callback`
hands it to a function, for example one that writes to a file. A plain function is short for `Stored(reduce=function)`.
One of these applies to all layers; a dict from layer selections gives each selection its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.argument_types import Allowed
from torchpeek.errors import InputError, LayerNotFound, OptionError, notify, shown, type_shown
from torchpeek.forks import Lock
from torchpeek.hooks.module_channels import UNKNOWN_CHANNELS, Channels, channels_of
from torchpeek.hooks.recording.running_statistics import ChannelsVary, RunningStatistics
from torchpeek.hooks.recording.storage import Leaf, StoredTensor, StoredValue
from torchpeek.hooks.select import Selection, select
from torchpeek.hooks.selected_layer import SelectedLayer
from torchpeek.keywords import checked_class, checked_keywords
from torchpeek.tensor_formats import (
    RAGGED,
    dense,
    has_values,
    is_ordinary,
    is_plain,
    shape_sizes,
    shape_text,
    storages,
    why_without_values,
)

__all__ = ["Callback", "Captured", "Running", "Stored", "gap"]

Keeper: TypeAlias = Callable[[str, int, int, Tensor, bool], Leaf]
"""Called as `keeper(part, order, number, tensor, copy)`; returns the leaf that takes the place of the tensor.

`order` counts the calls of all layers. `number` counts the calls of this layer in one pass, if the policy accumulates.
"""


class Policy(Protocol):
    """Decides what is stored of a layer."""

    accumulates: bool  # over all passes: the first call of a pass adds to the first calls of the passes before

    def _keeper(self, layer: str, channels: Channels) -> Keeper: ...


Keep: TypeAlias = "Policy | Callable[[Tensor], Any]"
"""A policy, or a function of the tensor whose result is stored."""

_DEVICES = "a torch.device or its name, such as 'cpu', or None"
_DTYPES = "a floating-point torch.dtype, such as torch.float16, or None"


@checked_class
@dataclass(frozen=True)
class Stored:
    """Store a reduction of each tensor, or the tensor in another dtype or on another device.

    Args:
        reduce: Called with the detached tensor; its result is stored. `tp.keep.gap` is one.
        device: The device of what is stored; None for the device of the layer.
        dtype: The floating-point dtype of what is stored; None for the dtype of the layer. Integers stay as they are.
        clone: Store a copy in any case, also where nothing writes into the tensor.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3))
        >>> with tp.record(model, "0", keep=tp.keep.Stored(dtype=torch.float16)) as tape:
        ...     output = model(torch.ones(1, 3, 8, 8))
        >>> tape["0"].output.dtype
        torch.float16
    """

    reduce: Callable[[Tensor], Any] | None = None
    device: Annotated[torch.device | str | int | None, Allowed(_DEVICES)] = None
    dtype: Annotated[torch.dtype | None, Allowed(_DTYPES)] = None
    clone: bool = False

    accumulates = False

    def __post_init__(self) -> None:
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise OptionError(f"Stored: dtype is {self.dtype}; allowed: {_DTYPES}")
        try:
            torch.device(self.device if self.device is not None else "cpu")
        except RuntimeError:
            raise OptionError(f"Stored: device is {self.device!r}; allowed: {_DEVICES}") from None

    def _keeper(self, layer: str, channels: Channels) -> Keeper:
        def keep(part: str, order: int, number: int, tensor: Tensor, copy: bool) -> Leaf:
            value = tensor.detach()
            if self.reduce is not None:
                value = _call_user_function(self.reduce, layer, part, value)
            if not isinstance(value, Tensor):
                return StoredValue(value)
            dtype = self.dtype if value.is_floating_point() else None
            stored = self._converted(value, dtype)
            # A copy is needed only of memory that still belongs to the layer.
            return StoredTensor(stored, (copy or self.clone) and _same_memory(stored, tensor))

        return keep

    def _converted(self, value: Tensor, dtype: torch.dtype | None) -> Tensor:
        if is_plain(value):
            return value.to(device=self.device, dtype=dtype)
        if value.is_meta and self.device is not None and torch.device(self.device).type != "meta":
            raise InputError(f"what tp.keep.Stored(device={str(self.device)!r}) stores is {why_without_values(value)}")
        if value.is_mkldnn and dtype is not None:  # it has no other dtypes
            value = value.to_dense()
        return value.to(device=self.device, dtype=dtype)


@checked_class
@dataclass(frozen=True)
class Running:
    """Keep statistics over all passes in constant memory: `tape[layer].output` is a `RunningStatistics`.

    If a layer is called several times in a pass, each call has its own statistics: `tape[layer][i].output`. The same
    holds for inputs and gradients, if they are recorded.

    Args:
        histogram: Whether to count a histogram, of at most 65,536 values of a call.
        channel_axis: The axis of the channels. By default it is axis 1 or the last axis, whichever has as many entries
            as the layers in and around this one have channels. If that does not decide, it is the one whose length does
            not vary from call to call. If the length of the channel axis varies, all channels count as one, and a
            notice says so.
        reduce: Called with each tensor; the statistics are those of its result, such as `torch.abs` of complex numbers.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> with tp.record(model, "0", keep=tp.keep.Running()) as tape:
        ...     outputs = [model(torch.tensor([[-1.0, 2.0]])), model(torch.tensor([[-1.0, 4.0]]))]
        >>> tape["0"].output.mean
        tensor([0., 3.], dtype=torch.float64)
    """

    histogram: bool = True
    channel_axis: int | None = None
    reduce: Callable[[Tensor], Tensor] | None = None

    accumulates = True

    def _keeper(self, layer: str, channels: Channels) -> Keeper:
        return StatisticsKeeper(layer, channels, self)


@dataclass(frozen=True)
class LenientRunning(Running):
    """`Running` for many layers at once: a tensor without statistics is left out, with the reason, and never raises.

    Integers, such as class indices, are left out, too.
    """

    def _keeper(self, layer: str, channels: Channels) -> Keeper:
        return StatisticsKeeper(layer, channels, self, lenient=True)


class NoStatistics(Leaf):
    """Stands for the statistics of a tensor that has none.

    Args:
        reason: Why there are none.
    """

    __slots__ = ("reason",)

    accumulates = True

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def read(self) -> NoStatistics:
        """Read it, as every leaf of a recording is read: the object itself."""
        return self


class StatisticsKeeper:
    """The statistics of one layer: a RunningStatistics for each call in a pass, and for each of its tensors."""

    def __init__(self, layer: str, channels: Channels, policy: Running, *, lenient: bool = False) -> None:
        self._layer = layer
        self._channels = channels
        self._policy = policy
        self._lenient = lenient
        self._parts: dict[tuple[int, str], RunningStatistics | NoStatistics] = {}
        self._lock = Lock()  # the replicas of DataParallel call it at the same time

    def __call__(self, part: str, order: int, number: int, tensor: Tensor, copy: bool) -> Leaf:
        with self._lock:
            statistics = self._parts.get((number, part))
            if isinstance(statistics, NoStatistics):
                return statistics
            try:
                values = tensor.detach()
                if self._policy.reduce is not None:
                    values = self._policy.reduce(values)
                    if not isinstance(values, Tensor):
                        raise OptionError(f"reduce returned {type_shown(values)}; allowed: a tensor")
                if statistics is None:
                    statistics = self._parts[number, part] = self._new(values)
                if isinstance(statistics, RunningStatistics):
                    self._update(statistics, part, values)
            except Exception as error:
                if self._lenient and isinstance(error, InputError):
                    statistics = self._parts[number, part] = NoStatistics(str(error))
                    return statistics
                error.add_note(f"in the statistics of the {part} of layer {self._layer!r}")
                raise
        return statistics

    def _new(self, values: Tensor) -> RunningStatistics | NoStatistics:
        if self._lenient and not (values.is_floating_point() or values.is_complex() or values.is_quantized):
            return NoStatistics(
                f"its values are no floating-point numbers but {values.dtype}, such as class indices or a mask. Next: "
                "reduce=torch.Tensor.float counts them all the same"
            )
        axes = self._channels.axes_of(values) if self._policy.channel_axis is None else (self._policy.channel_axis,)
        return RunningStatistics(
            channel_axis=axes[0],
            histogram=self._policy.histogram,
            alternative_axis=axes[1] if len(axes) > 1 and axes[1] is not None else None,
        )

    def _update(self, statistics: RunningStatistics, part: str, values: Tensor) -> None:
        try:
            statistics.update(values)
        except ChannelsVary:
            if self._policy.channel_axis is not None:
                raise
            if not self._lenient:
                notify(
                    f"the number of channels of the {part} of layer {self._layer!r} varies from call to call, so they "
                    "count as one channel; tp.keep.Running(channel_axis=...) sets their axis"
                )
            statistics.pool_channels()
            statistics.update(values)

    def current(self, number: int, part: str) -> Leaf | None:
        """The statistics of this call and part over the passes so far; None if there are none yet."""
        return self._parts.get((number, part))


@dataclass(frozen=True)
class Captured:
    """A tensor, and where it was recorded: the argument of the function of a `Callback`.

    Args:
        layer: The name of the layer.
        part: `output`, `input`, `grad_output` or `grad_input`. The path of a tensor in a container is appended:
            `output.0.k`.
        order: The number of the call among the calls of all recorded layers in the pass, from 0.
        tensor: The tensor, detached. A later operation may write into it, so copy it if you store it.

    Example:
        >>> model, parts = nn.Sequential(nn.LSTM(3, 2)), []
        >>> with tp.record(model, "0", keep=tp.keep.Callback(lambda captured: parts.append(captured.part))):
        ...     output = model(torch.ones(5, 3))
        >>> parts
        ['output.0', 'output.1.0', 'output.1.1']
    """

    layer: str
    part: str
    order: int
    tensor: Tensor


@checked_class
@dataclass(frozen=True)
class Callback:
    """Hand each tensor to a function, and store what the function returns.

    Args:
        function: Called with a `Captured`. Its result, a tensor or anything else, takes the place of the tensor.

    Example:
        >>> model = nn.Sequential(nn.Identity())
        >>> with tp.record(model, "0", keep=tp.keep.Callback(lambda captured: captured.tensor.sum().item())) as tape:
        ...     output = model(torch.ones(2, 3))
        >>> tape["0"].output
        6.0
    """

    function: Callable[[Captured], Any]

    accumulates = False

    def _keeper(self, layer: str, channels: Channels) -> Keeper:
        def keep(part: str, order: int, number: int, tensor: Tensor, copy: bool) -> Leaf:
            value = _call_user_function(self.function, layer, part, Captured(layer, part, order, tensor.detach()))
            return StoredTensor(value, copy) if isinstance(value, Tensor) else StoredValue(value)

        return keep


@checked_keywords
def gap(tensor: Tensor) -> Tensor:
    """Global average pooling: the mean over all axes after (N, C).

    Args:
        tensor: (N, C, *grid). Of a nested tensor only the axes of the grid may vary in length.

    Returns:
        (N, C), dense, in float32 or, for float64, in float64; of complex numbers in complex64 or complex128.

    Raises:
        InputError: When the channels of a nested tensor vary in number.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3))
        >>> with tp.record(model, "0", keep=tp.keep.gap) as tape:
        ...     output = model(torch.ones(1, 3, 8, 8))
        >>> tape["0"].output.shape
        torch.Size([1, 4])
    """
    if tensor.is_nested:
        if shape_sizes(tensor)[1] == RAGGED:
            raise InputError(
                f"tp.keep.gap got a tensor of shape {shape_text(tensor)}, whose axis 1 varies in length; allowed: (N, "
                "C, *grid). Next: a function of your own; for tokens, "
                "lambda tensor: torch.stack([part.mean(0) for part in tensor.unbind()])"
            )
        return torch.cat([gap(part[None]) for part in tensor.unbind()])
    values = tensor if is_ordinary(tensor) or not has_values(tensor) else dense(tensor, "what tp.keep.gap got")
    if values.is_complex():
        values = values.to(torch.promote_types(values.dtype, torch.complex64))
    elif values.dtype != torch.float64:
        values = values.float()
    return values.flatten(2).mean(2) if tensor.ndim > 2 else values.clone()


def layer_keepers(
    model: nn.Module, layers: Mapping[str, SelectedLayer], keep: Keep | Mapping[Any, Keep] | None
) -> dict[str, tuple[Keeper, bool]]:
    """The keeper of each layer that has a policy, and whether it accumulates.

    If several selections of a dict contain a layer, the first one applies.
    """
    policies: dict[str, Policy] = {}
    if isinstance(keep, Mapping):
        for key, policy in keep.items():
            selection: Selection = list(key) if isinstance(key, tuple) else key  # a list cannot be the key of a dict
            calls = {(id(layer.module), layer.call) for layer in select(model, selection).values()}
            names = [
                name
                for name, layer in layers.items()
                if (id(layer.module), layer.call) in calls or (id(layer.module), None) in calls
            ]
            if not names:
                raise LayerNotFound(f"keep selects {key!r}, but no layer of that selection is recorded; record it, too")
            for name in names:
                policies.setdefault(name, _policy(policy))
    elif keep is not None:
        policies = dict.fromkeys(layers, _policy(keep))
    for name, policy in policies.items():
        if layers[name].counts_from_end and not isinstance(policy, Stored):
            raise InputError(
                f"keep of {name!r} is tp.keep.{type(policy).__name__}, which reads a tensor when the layer returns; "
                f"only the end of a pass shows which call that is. Count from the start: {layers[name].path + '[0]'!r}"
            )
    channels = channels_of(model) if any(policy.accumulates for policy in policies.values()) else {}
    return {
        name: (policy._keeper(name, channels.get(id(layers[name].module), UNKNOWN_CHANNELS)), policy.accumulates)
        for name, policy in policies.items()
    }


def _policy(keep: Keep) -> Policy:
    if isinstance(keep, (Stored, Running, Callback)):
        return keep
    if callable(keep) and not isinstance(keep, type):
        return Stored(reduce=keep)
    raise InputError(
        f"keep is {shown(keep)}; allowed: tp.keep.Stored(...), tp.keep.Running(), tp.keep.Callback(function), a "
        "function of a tensor, or a dict from a layer selection to one of these"
    )


def _call_user_function(function: Callable[[Any], Any], layer: str, part: str, argument: Any) -> Any:
    try:
        return function(argument)
    except Exception as error:
        error.add_note(f"in the `keep` function of the {part} of layer {layer!r}")
        raise


def _same_memory(a: Tensor, b: Tensor) -> bool:
    if is_plain(a) and is_plain(b):
        return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    return a is b or not storages(a).keys().isdisjoint(storages(b))

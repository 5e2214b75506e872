"""A dry pass over a few samples: the shapes that layers return, and which layers compute what they return."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine import HookFreeModel, ModelCall, Refusal, attempted, hook_free, preserved, run
from torchpeek.hooks import (
    Channels,
    RunningStatistics,
    attached,
    channels_inside,
    channels_of,
    containers,
    is_sharded,
    rectifiers_observed,
    takes_hooks,
)
from torchpeek.tensor_formats import Sizes, shape_sizes, write_count


@dataclass(frozen=True, eq=False)
class DryPass:
    """What a dry pass showed.

    Args:
        shapes: (name of the module, number of the call, path in its output) -> the shape of that tensor. Rectifiers
            that are called as functions are in it, too, as (name of the module, number, name of the function + "()").
        own_output: The names of modules around others that return what none of these has returned: a sum of two layers,
            say.
        pass_through: The names of modules around others that return what one of these has returned.
        functions: The calls of rectifiers as functions: (name of the module, name of the function, number).
        covered: Those of them whose result is what a module without others in it returns, such as nn.ReLU.
        names: id of a module -> its first name.
        channel_axes: The same keys as of `shapes` -> the axis of the channels, where it is that of another layer's
            output of the same shape, which returned before.
    """

    shapes: dict[tuple[str, int, str], Sizes] = field(default_factory=dict)
    own_output: set[str] = field(default_factory=set)
    pass_through: set[str] = field(default_factory=set)
    functions: set[tuple[str, str, int]] = field(default_factory=set)
    covered: set[tuple[str, str, int]] = field(default_factory=set)
    names: dict[int, str] = field(default_factory=dict)
    channel_axes: dict[tuple[str, int, str], int] = field(default_factory=dict)

    def settle_channels(self, statistics: RunningStatistics, key: tuple[str, int, str]) -> None:
        """Decide on which axis the channels are, where the types and sizes of the layers leave it open.

        Args:
            statistics: The statistics of the first batch with this tensor.
            key: Which tensor, as in `shapes`.
        """
        statistics.exclude_axes(self.batch_axes(key, statistics.first_shape))
        axis = self.channel_axes.get(key)
        if statistics.is_ambiguous and axis is not None:
            others = set(range(len(statistics.first_shape))) - {axis}
            statistics.exclude_axes(others)

    def batch_axes(self, key: tuple[str, int, str], shape: Sizes) -> set[int]:
        """The axes whose length depends on the batch: those where this shape differs from that of the dry pass."""
        other = self.shapes.get(key, ())
        if len(other) != len(shape):
            return set()
        return {axis for axis, (one, two) in enumerate(zip(shape, other, strict=True)) if one != two}


def dry_pass(model: nn.Module, call: ModelCall) -> DryPass | None:
    """Run one sample of the call, in a batch of another size than the call's.

    None of the user's hooks runs, unless the model cannot run without them. The model is left as it was found.

    Args:
        model: The model.
        call: A call that the model takes.

    Returns:
        What the pass showed; None where the model does not run with that batch size.
    """
    # Not one sample: what a model squeezes away then would look like another layout.
    sample = call.one_sample(3 if len(call) == 2 else 2)
    with preserved(model):
        free, run_as_it_is = hook_free(model), partial(_run, model, call)

        def needs_hooks() -> bool:
            return isinstance(attempted(partial(_run, free.copy, call), run_as_it_is), Refusal)

        if not any(map(is_sharded, model.modules())):  # by hooks, without which no pass is possible
            without_hooks = attempted(partial(_observed, model, free, sample), needs_hooks)
            if not isinstance(without_hooks, Refusal):
                return without_hooks
            if not without_hooks.unchanged:
                return None
        as_it_is = HookFreeModel(model, tuple((each, each) for each in model.modules() if takes_hooks(each)))
        with_hooks = attempted(partial(_observed, model, as_it_is, sample), run_as_it_is)
    return None if isinstance(with_hooks, Refusal) else with_hooks


def _observed(model: nn.Module, runnable: HookFreeModel, sample: ModelCall) -> DryPass:
    """What a pass over the sample shows."""
    observer = _Observer(model, sample)
    names = {id(module): name for name, module in model.named_modules()}
    returned = [(each, partial(observer.returned, names[id(own)], own)) for each, own in runnable.modules]
    with rectifiers_observed(runnable.copy, observer.rectified), attached(returned):
        _run(runnable.copy, sample)
    return observer.result()


def _run(model: nn.Module, call: ModelCall) -> None:
    with torch.no_grad():
        run(model, call.for_one_pass())


class _Observer:
    def __init__(self, model: nn.Module, sample: ModelCall) -> None:
        self._outputs = DryPass(names={id(module): name for name, module in model.named_modules()})
        self._calls = Counter[str]()
        self._functions = Counter[tuple[str, str]]()
        self._returned: dict[int, tuple[Tensor, int]] = {}  # memory -> a tensor in it, and its version
        self._rectified: dict[int, tuple[str, str, int]] = {}  # memory -> the latest function whose result is there
        self._model = dict(model.named_modules())
        self._channels = channels_of(model)
        # The channel axis of the latest output of this shape. A picture is (N, C, h, w) and a signal (N, 1, t); other
        # inputs of three axes may be (N, T, C).
        shape = tuple(sample.picture.shape)
        self._axis_of_shape: dict[Sizes, int] = {}
        if len(shape) > 3 or (len(shape) == 3 and shape[1] == 1):
            self._axis_of_shape[shape] = 1

    def _record_axis(self, key: tuple[str, int, str], tensor: Tensor, channels: Channels) -> None:
        axes = channels.axes_of(tensor)
        if tensor.ndim > 2 and len(axes) == 1 and axes[0] is not None:
            self._axis_of_shape[shape_sizes(tensor)] = axes[0] % tensor.ndim
        elif shape_sizes(tensor) in self._axis_of_shape:
            self._outputs.channel_axes[key] = self._axis_of_shape[shape_sizes(tensor)]

    def returned(self, name: str, module: nn.Module, copy: nn.Module, args: Any, output: Any) -> None:
        number = self._calls[name]
        self._calls[name] += 1
        leaves = dict(containers.leaves(output))
        for place, (path, tensor) in enumerate(leaves.items()):
            self._outputs.shapes[name, number, path] = shape_sizes(tensor)
            self._record_axis((name, number, path), tensor, self._channels[id(module)])
            if not module._modules:
                function = self._rectified.get(_memory(tensor))
                if function is not None and function[0] == name:
                    self._outputs.covered.add(function)
            elif place == 0:  # the first says what it is: further ones are such as attention weights
                (self._outputs.own_output if self._is_new(tensor) else self._outputs.pass_through).add(name)
        for tensor in leaves.values():
            self._keep(tensor)

    def rectified(self, module: str, function: str, result: Tensor) -> None:
        number = self._functions[module, function]
        self._functions[module, function] += 1
        self._outputs.functions.add((module, function, number))
        key = module, number, f"{function}()"
        self._outputs.shapes[key] = shape_sizes(result)
        self._record_axis(key, result, channels_inside(self._model[module]))
        self._rectified[_memory(result)] = module, function, number
        self._keep(result)

    def _is_new(self, tensor: Tensor) -> bool:
        earlier = self._returned.get(_memory(tensor))
        return earlier is None or earlier[1] != write_count(tensor)

    def _keep(self, tensor: Tensor) -> None:
        # The tensor is held, so that no later one gets the same memory.
        self._returned[_memory(tensor)] = tensor.detach(), write_count(tensor)

    def result(self) -> DryPass:
        self._returned.clear()
        self._outputs.own_output.difference_update(self._outputs.pass_through)
        return self._outputs


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse and nested tensors
        return id(tensor)

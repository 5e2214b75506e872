"""Statistics of the rectifiers that modules call as functions, such as `F.relu(x)`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn

from torchpeek.anatomy.dry_pass import DryPass
from torchpeek.hooks import (
    LenientRunning,
    NoStatistics,
    RunningStatistics,
    StatisticsKeeper,
    attached,
    call_name,
    channels_inside,
    in_backward_pass,
    rectifiers_observed,
)

_Key: TypeAlias = tuple[str, str]  # the names of the module and the function
_LayerCall: TypeAlias = tuple[str, int]


class FunctionStatistics:
    """The statistics of each call of a rectifier in a pass, by module, function and number.

    Args:
        model: The model.
        dry: What a dry pass showed; None without one.
        policy: How the statistics are kept.
        excluded: Modules whose functions are left out.
    """

    def __init__(
        self, model: nn.Module, dry: DryPass | None, policy: LenientRunning, excluded: Iterable[nn.Module] = ()
    ) -> None:
        self._model = model
        self._dry = dry
        self._policy = policy
        self._modules = dict(model.named_modules())
        ids = {id(module) for module in excluded}
        self._excluded = {name for name, module in self._modules.items() if id(module) in ids}
        self._keepers: dict[_Key, StatisticsKeeper] = {}
        self._leaves: dict[tuple[str, str, int], RunningStatistics | NoStatistics] = {}
        self._after: dict[tuple[str, str, int], _LayerCall | None] = {}
        self._calls = Counter[_Key]()
        self._layer_calls = Counter[str]()
        self._last_layer: _LayerCall | None = None

    @contextmanager
    def observed(self, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        """Count the rectifiers inside the block.

        Args:
            layers: The layers with statistics of their own, by name: a function is placed after the last that returned.

        Yields:
            None.
        """
        if self._dry is not None and self._dry.functions <= self._dry.covered:
            yield  # there are none
            return
        returned = [(module, partial(self._layer_returned, name)) for name, module in layers.items()]
        with attached(returned), rectifiers_observed(self._model, self._rectified):
            yield

    def start_pass(self) -> None:
        """Count the calls of the next pass from 0."""
        self._calls.clear()
        self._layer_calls.clear()
        self._last_layer = None

    def statistics(self) -> Iterator[tuple[tuple[str, int, str], RunningStatistics]]:
        """The statistics so far, each with its key in a dry pass."""
        for (module, function, number), leaf in self._leaves.items():
            if isinstance(leaf, RunningStatistics):
                yield (module, number, f"{function}()"), leaf

    def found(self) -> Iterator[tuple[str, RunningStatistics | NoStatistics, _LayerCall | None]]:
        """The name of each call, its statistics, and the call of a layer that it came after; None for none."""
        several = {key[:2] for key in self._leaves if key[2] > 0}
        for (module, function, number), leaf in self._leaves.items():
            name = f"{module}.{function}()" if module else f"{function}()"
            numbered = call_name(name, number if (module, function) in several else None)
            yield numbered, leaf, self._after[module, function, number]

    def _layer_returned(self, name: str, *hook_arguments: Any) -> None:
        self._last_layer = name, self._layer_calls[name]
        self._layer_calls[name] += 1

    def _rectified(self, module: str, function: str, result: Tensor) -> None:
        if in_backward_pass() or module in self._excluded:  # a checkpointed part runs again
            return
        number = self._calls[module, function]
        self._calls[module, function] += 1
        key = module, function, number
        if self._dry is not None and (module, function, 0) in self._dry.functions:
            is_covered = key in self._dry.covered
        else:  # without a dry pass, or called by a hook, which does not run in it
            is_covered = not self._modules[module]._modules
        if is_covered:
            return
        keeper = self._keepers.get((module, function))
        if keeper is None:
            channels = channels_inside(self._modules[module])
            keeper = StatisticsKeeper(f"{module}.{function}()", channels, self._policy, lenient=True)
            self._keepers[module, function] = keeper
        leaf = keeper("output", 0, number, result, False)
        assert isinstance(leaf, (RunningStatistics, NoStatistics))
        self._leaves[key] = leaf
        self._after.setdefault(key, self._last_layer)

"""A layer that was selected, or one of its calls: `act` is the layer, `act[1]` its second call in a pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from torch import nn

_CALL = re.compile(r"(?P<layer>.*)\[(?P<call>[^\[\]]*)\]", re.DOTALL)


@dataclass(frozen=True, eq=False)
class SelectedLayer:
    """A layer, or one of its calls in a pass.

    Args:
        path: The name of the layer, as `named_modules` gives it.
        module: The layer.
        call: The number of the call, from 0; negative counts from the end. None is the layer, whatever its calls.
        total: How many calls a pass makes. Needed to find a call that is counted from the end.
    """

    path: str
    module: nn.Module
    call: int | None = None
    total: int | None = None

    def __init__(self, path: str, module: nn.Module, call: int | None = None, total: int | None = None) -> None:
        # The generated one of a frozen dataclass takes twice as long, and a selection may have thousands of layers.
        attributes = self.__dict__
        attributes["path"], attributes["module"] = path, module
        if call is not None:
            attributes["call"] = call
        if total is not None:
            attributes["total"] = total

    @property
    def name(self) -> str:
        """The name under which results are found: `act`, or `act[1]`."""
        return call_name(self.path, self.call)

    @property
    def index(self) -> int | None:
        """The number of the call from 0; None for the layer. Negative where there are fewer calls than that."""
        if self.call is None or self.call >= 0:
            return self.call
        assert self.total is not None, "only a pass shows which call is the last"
        return self.total + self.call

    @property
    def counts_from_end(self) -> bool:
        """Whether the call is counted from the end, so that a pass must show how many there are."""
        return self.call is not None and self.call < 0

    def with_total(self, totals: Mapping[str, int]) -> SelectedLayer:
        """The same call, where it is counted from the end with the number of calls that a pass made of each layer."""
        return replace(self, total=totals.get(self.path, 0)) if self.counts_from_end else self

    def counted_from_end(self, calls: int) -> SelectedLayer:
        """The same call, counted from the end of a pass that made so many calls of the layer."""
        return self if self.call is None or self.call < 0 else replace(self, call=self.call - calls)

    def hooked(self, hook: Callable[..., Any]) -> tuple[nn.Module, Callable[..., Any]]:
        """The layer's module with `hook`, which runs at the selected call alone; for one pass."""
        return self.module, at_call(hook, self.index)


def at_call(hook: Callable[..., Any], index: int | None) -> Callable[..., Any]:
    """A hook that runs `hook` at the call `index` of its module alone, counted from when it is registered.

    With None it is `hook` itself.
    """
    if index is None:
        return hook
    numbers = count()
    return lambda *arguments: hook(*arguments) if next(numbers) == index else None


def call_name(path: str, call: int | None) -> str:
    """The name of a call of a layer, or of the layer itself."""
    return path if call is None else f"{path}[{call}]"


def split_call(name: str) -> tuple[str, str | None]:
    """The layer's part of a name, and the text in the brackets at its end; None where there are none."""
    match = _CALL.fullmatch(name)
    return (name, None) if match is None else (match["layer"], match["call"])


def several_calls(layer: str, calls: int) -> str:
    """The message for a layer of which one call is needed, and which was called several times."""
    return (
        f"layer {layer!r} was called {calls} times in one pass, so it has no one output. Next: choose a call, "
        f"{layer + '[0]'!r} to {f'{layer}[{calls - 1}]'!r}, or the layer around it"
    )


def no_such_call(layer: SelectedLayer, calls: int) -> str:
    """The message for a call that did not take place, of a layer that was called."""
    times = "once" if calls == 1 else f"{calls} times"
    allowed = f"{layer.path + '[0]'!r}" + (f" to {f'{layer.path}[{calls - 1}]'!r}" if calls > 1 else "")
    return (
        f"there is no call {layer.name!r}: layer {layer.path!r} was called {times} in the pass; allowed: {allowed}. "
        f"A number in brackets at the end of a name is a call, counted from 0 or, if negative, from the end. {NO_SETS}"
    )


NO_SETS = "A glob has no sets of characters; for these give re.compile(...)."

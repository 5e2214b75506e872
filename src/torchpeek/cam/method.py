"""What a method is, and the registry of all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from torchpeek.errors import MethodNotFound, OptionError, closest

Needs: TypeAlias = Literal["activations", "head", "gradients"]
Compute: TypeAlias = Callable[..., Tensor]
"""Called as `compute(trace, **options)`; returns (N, K, *grid), or (N, 1, *grid) where the scores do not matter."""

_COST = {"activations": "1 forward", "head": "1 forward", "gradients": "1 forward, 1 backward to the layer"}


@dataclass(frozen=True)
class CamMethod:
    """A way from a trace to a heatmap's values, as data: planner, command line, documentation and tests read it."""

    name: str
    needs: Needs
    paper: str  # arXiv number, or "" for a baseline
    compute: Compute

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return inspect.getdoc(self.compute).splitlines()[0]  # type: ignore[union-attr]  # cam_method insists on one

    @property
    def cost(self) -> str:
        """Passes through the model, however many classes are asked for."""
        return _COST[self.needs]

    @property
    def options(self) -> Mapping[str, Any]:
        """Keyword -> default."""
        parameters = inspect.signature(self.compute).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise OptionError for one that the method does not have."""
        for name in options:
            if name not in self.options:
                allowed = ", ".join(f"{key}={value!r}" for key, value in self.options.items()) or "none"
                raise OptionError(f"method {self.name!r} has no option {name!r}; its options: {allowed}")


METHODS: dict[str, CamMethod] = {}
"""Name -> method, in the order of the documentation."""


def cam_method(name: str, *, needs: Needs, paper: str = "") -> Callable[[Compute], Compute]:
    """Register a function from Trace to (N, K, *grid) as the method `name`."""

    def register(compute: Compute) -> Compute:
        if name in METHODS:
            raise ValueError(f"method {name!r} is registered already, by {METHODS[name].compute.__module__}")
        if not inspect.getdoc(compute):
            raise ValueError(f"method {name!r} needs a docstring; its first line is what users read of it")
        METHODS[name] = CamMethod(name, needs, paper, compute)
        return compute

    return register


def find_method(name: str) -> CamMethod:
    """The method of that name. Raises MethodNotFound with the closest ones."""
    if not isinstance(name, str) or name not in METHODS:
        raise MethodNotFound(
            f"no method {name!r}{closest(str(name), METHODS)}; torchpeek methods lists all {len(METHODS)}"
        )
    return METHODS[name]

"""What a method is, and the registry of all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from torchpeek.errors import MethodNotFound, OptionError, closest

Needs: TypeAlias = Literal["activations", "head", "gradients", "attention"]
Layers: TypeAlias = Literal["one", "many", "all"]
Compute: TypeAlias = Callable[..., Tensor]
"""Called as `compute(trace, **options)`; returns (N, K, *grid), or (N, 1, *grid) where the scores do not matter."""

_COST = {
    "activations": "1 forward",
    "head": "1 forward",
    "gradients": "1 forward, 1 backward to the layer",
    "attention": "1 forward",
}


class Registered:
    """A function that is known by a name: what it says of itself, and which options it takes."""

    kind: ClassVar[str]
    name: str
    compute: Callable[..., Any]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return inspect.getdoc(self.compute).splitlines()[0]  # type: ignore[union-attr]  # registering insists on one

    @property
    def options(self) -> Mapping[str, Any]:
        """Keyword -> default."""
        parameters = inspect.signature(self.compute).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise OptionError for one that it does not have."""
        for name in options:
            if name not in self.options:
                allowed = ", ".join(f"{key}={value!r}" for key, value in self.options.items()) or "none"
                raise OptionError(f"{self.kind} {self.name!r} has no option {name!r}; its options: {allowed}")


@dataclass(frozen=True)
class CamMethod(Registered):
    """A way from a trace to a heatmap's values, as data: planner, command line, documentation and tests read it.

    `needs` is what the trace has to hold, and `layers` of how many layers: of one; of many, which, if none are named,
    are the last ones of the `stages` coarsest sizes of grid; or of all there are. `passes` says what is run besides,
    and `ablates` that among it are changes of the layer's output, for which the trace had best take notes.
    """

    kind: ClassVar[str] = "method"

    name: str
    needs: Needs
    paper: str  # "arXiv:..." or "doi:..."; "" for a baseline
    compute: Compute
    layers: Layers = "one"
    stages: int = 3
    passes: str = ""
    ablates: bool = False

    @property
    def cost(self) -> str:
        """Passes through the model; however many classes are asked for, unless it says "for each class"."""
        return _COST[self.needs] + (self.passes and f", {self.passes}")

    @property
    def cheap(self) -> bool:
        """Whether a trace of one layer is all that it needs: nothing is run besides."""
        return not self.passes and self.needs != "attention"


METHODS: dict[str, CamMethod] = {}
"""Name -> method."""


def cam_method(name: str, *, needs: Needs, paper: str = "", **more: Any) -> Callable[[Compute], Compute]:
    """Register a function from Trace to (N, K, *grid) as the method `name`; `more` are fields of CamMethod."""

    def register(compute: Compute) -> Compute:
        if name in METHODS:
            raise ValueError(f"method {name!r} is registered already, by {METHODS[name].compute.__module__}")
        if not inspect.getdoc(compute):
            raise ValueError(f"method {name!r} needs a docstring; its first line is what users read of it")
        METHODS[name] = CamMethod(name, needs, paper, compute, **more)
        return compute

    return register


def find_method(name: str) -> CamMethod:
    """The method of that name. Raises MethodNotFound with the closest ones."""
    if not isinstance(name, str) or name not in METHODS:
        raise MethodNotFound(
            f"no method {name!r}{closest(str(name), METHODS)}; torchpeek methods lists all {len(METHODS)}"
        )
    return METHODS[name]


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise OptionError unless an option is a whole number, at least so large."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"option {name} is {value!r}; allowed: a whole number, {least} or more")


def check_number(name: str, value: object, least: float = 0.0, most: float = float("inf")) -> None:
    """Raise OptionError unless an option is a number between these."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        bounds = f"{least:g} or more" if most == float("inf") else f"{least:g} to {most:g}"
        raise OptionError(f"option {name} is {value!r}; allowed: a number, {bounds}")

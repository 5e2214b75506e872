"""What a method is, and the registry of all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from torchpeek.errors import MethodNotFound, closest
from torchpeek.registry import Registered

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

"""CamMethod: the definition of a method, and the registry METHODS."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from torchpeek.errors import MethodNotFound, closest
from torchpeek.registry import Registered

Needs: TypeAlias = Literal["inputs", "activations", "head", "gradients", "attention"]
Layers: TypeAlias = Literal["none", "one", "many", "all"]
Compute: TypeAlias = Callable[..., Tensor]
"""Called as `compute(trace, **options)`; returns (N, K, *grid), or (N, 1, *grid) if it is the same for all scores."""

_COST = {
    "inputs": "1 forward",
    "activations": "1 forward",
    "head": "1 forward",
    "gradients": "1 forward, 1 backward to the layer",
    "attention": "1 forward",
}


@dataclass(frozen=True)
class CamMethod(Registered):
    """The definition of a method. The planner, the command line, the documentation and the tests read it.

    Args:
        name: Name of the method.
        needs: What the trace has to hold: "inputs", "activations", "head", "gradients" or "attention".
        paper: Where it was published: "arXiv:..." or "doi:..."; "" for a baseline.
        compute: Called as `compute(trace, **options)`; returns (N, K, *grid).
        layers: Of how many layers: "one", "many" or "all"; "none" looks at the input, on the input's own grid.
        stages: With "many" and no layer named, the last layers of this many coarsest grid sizes are taken.
        passes: The passes that the method runs itself, in words.
        ablates: Whether they change the layer's output. The trace then records what a replay needs.
        through_model: Whether they compute gradients with respect to the input, through all layers.
        differentiable: Whether the map has derivatives with respect to the model's parameters, from one pass alone.
    """

    kind: ClassVar[str] = "method"

    name: str
    needs: Needs
    paper: str
    compute: Compute
    layers: Layers = "one"
    stages: int = 3
    passes: str = ""
    ablates: bool = False
    through_model: bool = False
    differentiable: bool = False

    @property
    def cost(self) -> str:
        """The passes through the model, whatever the number of classes, unless it says "for each class"."""
        return _COST[self.needs] + (self.passes and f", {self.passes}")

    @property
    def cheap(self) -> bool:
        """Whether the method needs a trace of one layer and runs no passes itself."""
        return not self.passes and self.needs != "attention"


METHODS: dict[str, CamMethod] = {}
"""The methods: name -> CamMethod."""


def cam_method(name: str, *, needs: Needs, paper: str = "", **more: Any) -> Callable[[Compute], Compute]:
    """Register a function from a Trace to values (N, K, *grid) as a method.

    `more` are further fields of CamMethod. Raises ValueError if the name is taken or the function has no docstring.
    """

    def register(compute: Compute) -> Compute:
        if name in METHODS:
            raise ValueError(f"method {name!r} is registered already, by {METHODS[name].compute.__module__}")
        if not inspect.getdoc(compute):
            raise ValueError(f"method {name!r} has no docstring; its first line is the summary that users read")
        METHODS[name] = CamMethod(name, needs, paper, compute, **more)
        return compute

    return register


def find_method(name: str) -> CamMethod:
    """Return the method of that name. Raises MethodNotFound with the closest names."""
    if not isinstance(name, str) or name not in METHODS:
        raise MethodNotFound(
            f"no method {name!r}{closest(str(name), METHODS)}; torchpeek methods lists all {len(METHODS)}"
        )
    return METHODS[name]

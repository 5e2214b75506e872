"""plan(): what recording these layers would give, before it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.anatomy.table import Table
from torchpeek.engine import ModelRunner, described, preserved, run
from torchpeek.hooks import Selection, attached, containers, select, why_not_fired
from torchpeek.models import Inputs, Model, given_to, module_of


@dataclass(frozen=True)
class PlannedLayer:
    """What recording one layer would give for these inputs."""

    layer: str
    type: str
    calls: int
    output: str | None  # of the last call; None where it is not called
    nbytes: int  # of what it returns in one pass, if all is kept
    gradient: bool  # whether a gradient flows back to it without help; record() sees to it for a frozen model, too
    written_into: bool  # whether a later operation writes into what it returned, so that it has to be copied
    remark: str = ""


@dataclass(frozen=True, repr=False)
class Plan(Table[PlannedLayer]):
    """What recording would give, layer by layer, in the order of `named_modules`."""

    rows: tuple[PlannedLayer, ...]

    header = ("layer", "type", "calls", "output", "bytes", "gradient", "written into", "remark")

    def cells(self) -> list[tuple[str, ...]]:
        """As `Table.cells`."""
        return [
            (
                row.layer,
                row.type,
                str(row.calls),
                row.output or "",
                f"{row.nbytes:,}",
                "yes" if row.gradient else "no",
                "yes" if row.written_into else "no",
                row.remark,
            )
            for row in self.rows
        ]

    @property
    def nbytes(self) -> int:
        """Of all of them together."""
        return sum(row.nbytes for row in self.rows)

    @property
    def footer(self) -> str:
        """The sum."""
        return f"{self.nbytes:,} bytes in one pass of this size"


def plan(model: Model, inputs: Inputs, layers: Selection = "*", *, exclude: Selection | None = None) -> Plan:
    """Which of the layers are called for `inputs`, how often, what they return, and whether it is safe to refer to it.

    One pass in eval mode, with gradients on, of which nothing is kept. The model is left exactly as it was found.
    """
    module = ModelRunner(module_of(model)).model
    call = given_to(model, inputs)
    selected = select(module, layers, exclude=exclude)
    observers = {name: RecordingPlanObserver() for name in selected}
    hooks = ((layer, observers[name]) for name, layer in selected.items())
    with preserved(module), attached(hooks), torch.enable_grad():
        result = run(module, call)
        for observer in observers.values():
            observer.finish()
    del result
    return Plan(tuple(_planned_layer(module, name, layer, observers[name]) for name, layer in selected.items()))


class RecordingPlanObserver:
    """Notes what one layer returns, and what becomes of it."""

    def __init__(self) -> None:
        self.calls = 0
        self.output: str | None = None
        self.nbytes = 0
        self.gradient = False
        self.written_into = False
        # An alias shares the count of what was written in, and holds no graph.
        self._versions: list[tuple[Tensor, int]] = []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.calls += 1
        self.output = described(output)
        for _, tensor in containers.leaves(output):
            self.nbytes += tensor.numel() * tensor.element_size()
            self.gradient |= tensor.requires_grad
            if not tensor.is_inference():
                self._versions.append((tensor.detach(), tensor._version))

    def finish(self) -> None:
        self.written_into = any(tensor._version != version for tensor, version in self._versions)
        self._versions.clear()


def _planned_layer(model: nn.Module, name: str, layer: nn.Module, observer: RecordingPlanObserver) -> PlannedLayer:
    remark = ""
    if not observer.calls:
        remark = why_not_fired(model, name, layer).partition(": ")[2]
    elif observer.calls > 1:
        remark = "called several times: tape[layer][i]"
    return PlannedLayer(
        name,
        type(layer).__name__,
        observer.calls,
        observer.output,
        observer.nbytes,
        observer.gradient,
        observer.written_into,
        remark,
    )

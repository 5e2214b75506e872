"""plan(): what a recording of layers would hold, found out before it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.anatomy.table import Table
from torchpeek.engine import described, inspectable_module, preserved, run, with_known_totals
from torchpeek.hooks import SelectedLayer, Selection, attached, containers, select, why_not_fired
from torchpeek.keywords import checked_class, checked_keywords
from torchpeek.models import Inputs, Model, model_call_for, module_of
from torchpeek.tensor_formats import value_bytes


@dataclass(frozen=True)
class PlannedLayer:
    """What a recording of one layer would hold.

    Args:
        layer: Name of the layer, or of one of its calls: `name[i]`.
        type: Name of its class.
        calls: Number of recorded calls in the forward pass.
        output: The output of the last call, as text. None if the layer is not called.
        nbytes: Size of all its outputs in one pass, in bytes.
        gradient: Whether a gradient reaches the output. `record(gradients=True)` makes it so for a frozen model, too.
        written_into: Whether a later operation writes into the output, so that it has to be copied.
        remark: Why the layer is not called, or that it is called several times.
    """

    layer: str
    type: str
    calls: int
    output: str | None
    nbytes: int
    gradient: bool
    written_into: bool
    remark: str = ""


@checked_class
@dataclass(frozen=True, repr=False)
class Plan(Table[PlannedLayer]):
    """What a recording would hold, layer by layer, in the order of `named_modules`.

    Args:
        rows: A row for each layer, or each selected call of one.

    Example:
        >>> plan = tp.plan(nn.Sequential(nn.Linear(2, 3)), torch.rand(1, 2))
        >>> [(row.layer, row.output, row.nbytes) for row in plan]
        [('0', '(N, 3)', 12)]
    """

    rows: tuple[PlannedLayer, ...]

    header = ("layer", "type", "calls", "output", "bytes", "gradient", "written into", "remark")

    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows as text, as in `Table.cells`."""
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
        """The size of all outputs together, in bytes."""
        return sum(row.nbytes for row in self.rows)

    @property
    def footer(self) -> str:
        """The size of all outputs together, as text."""
        return f"{self.nbytes:,} bytes in one pass of this size"


@checked_keywords
def plan(model: Model, inputs: Inputs, layers: Selection = "*", *, exclude: Selection | None = None) -> Plan:
    """Find out what a recording of these layers would hold, without recording them.

    One forward pass runs in eval mode with gradients on. Nothing of it is kept, and the model is left exactly as it was
    found.

    Args:
        model: An nn.Module or a LoadedModel.
        inputs: A batch (N, C, *grid), a Picture, with a LoadedModel also a path or a PIL image, or what else the model
            takes: a mapping of keyword arguments, or Arguments.
        layers: Which layers, selected as in `activations`.
        exclude: Layers to leave out, selected in the same ways.

    Returns:
        Plan: a row for each layer with its number of calls, its output, the output's size in bytes, whether a gradient
        reaches it, and whether a later operation writes into it. `nbytes` is the size of all of them.

    Raises:
        LayerNotFound: When the selection matches no layer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
        >>> plan = tp.plan(model, torch.rand(1, 3, 8, 8), ["0", "1"])
        >>> plan.nbytes, [row.written_into for row in plan]
        (1152, [True, False])
    """
    module = inspectable_module(module_of(model))
    call = model_call_for(model, inputs, any_tensor=True)
    selected = with_known_totals(module, call, select(module, layers, exclude=exclude))
    observers = {name: RecordingPlanObserver(len(call), layer.index) for name, layer in selected.items()}
    hooks = ((layer.module, observers[name]) for name, layer in selected.items())
    with preserved(module), attached(hooks), torch.enable_grad():
        result = run(module, call)
        for observer in observers.values():
            observer.finish()
    del result
    return Plan(tuple(_planned_layer(module, layer, observers[name]) for name, layer in selected.items()))


class RecordingPlanObserver:
    """Observes what one layer returns, and whether it is written into afterwards.

    Args:
        samples: How many samples the pass has.
        index: The one call that is observed; None for all.
    """

    def __init__(self, samples: int, index: int | None = None) -> None:
        self._samples = samples
        self._index = index
        self.all_calls = 0
        self.calls = 0
        self.output: str | None = None
        self.nbytes = 0
        self.gradient = False
        self.written_into = False
        # A detached alias shares the version counter and holds no graph.
        self._versions: list[tuple[Tensor, int]] = []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.all_calls += 1
        if self._index not in (None, self.all_calls - 1):
            return
        self.calls += 1
        self.output = described(output, self._samples)
        for _, tensor in containers.leaves(output):
            self.nbytes += value_bytes(tensor)
            self.gradient |= tensor.requires_grad
            if not tensor.is_inference():
                self._versions.append((tensor.detach(), tensor._version))

    def finish(self) -> None:
        self.written_into = any(tensor._version != version for tensor, version in self._versions)
        self._versions.clear()


def _planned_layer(model: nn.Module, layer: SelectedLayer, observer: RecordingPlanObserver) -> PlannedLayer:
    remark = ""
    if not observer.calls:
        remark = why_not_fired(model, layer, observer.all_calls).partition(": ")[2]
    elif observer.calls > 1:
        remark = "called several times: tape[layer][i]"
    return PlannedLayer(
        layer.name,
        type(layer.module).__name__,
        observer.calls,
        observer.output,
        observer.nbytes,
        observer.gradient,
        observer.written_into,
        remark,
    )

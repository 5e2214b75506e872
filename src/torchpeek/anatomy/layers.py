"""layers(): a table of a network's layers, with the shapes that they return."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from torchpeek.anatomy.table import Table
from torchpeek.engine import LayerCall, ModelRunner, Suggestion, as_model_call, layer_calls, suggest_layer
from torchpeek.errors import NoSpatialLayer
from torchpeek.models import Inputs, Model, given_to, module_of


@dataclass(frozen=True, repr=False)
class LayerTable(Table[LayerCall]):
    """The layers of a network, in the order of `named_modules`."""

    model: str
    rows: tuple[LayerCall, ...]
    suggested: Suggestion | None = None  # the layer that explain() would look at

    header = ("layer", "type", "output", "calls", "parameters")

    def cells(self) -> list[tuple[str, ...]]:
        """As `Table.cells`."""
        return [(r.name, r.type, r.output or "", str(r.calls or ""), f"{r.parameters:,}") for r in self.rows]

    @property
    def footer(self) -> str:
        """Which layer a heatmap would look at, and why."""
        return f"suggested for heatmaps: {self.suggested.layer}, {self.suggested.reason}" if self.suggested else ""


def layers(model: Model, inputs: Inputs | None = None) -> LayerTable:
    """The layers of `model`: name, type, parameters and, with `inputs`, what each returned in a dry pass.

    Shapes start with N, whatever the batch. The model is left exactly as it was found.
    """
    module = ModelRunner(module_of(model)).model
    if inputs is None:
        return LayerTable(type(module).__name__, tuple(layer_calls(module, None)))
    call, suggested = as_model_call(module, given_to(model, inputs)), None
    with suppress(NoSpatialLayer):  # nothing to suggest
        suggested = suggest_layer(module, call, anew=True)
    return LayerTable(type(module).__name__, tuple(layer_calls(module, call)), suggested)

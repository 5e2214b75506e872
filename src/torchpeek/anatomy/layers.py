"""layers(): a table of a network's layers, with the shapes of their outputs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from torchpeek.anatomy.table import Table
from torchpeek.engine import LayerCall, Suggestion, inspectable_module, layer_calls, suggest_layer
from torchpeek.errors import NoSpatialLayer
from torchpeek.models import Inputs, Model, model_call_for, module_of


@dataclass(frozen=True, repr=False)
class LayerTable(Table[LayerCall]):
    """The layers of a network, in the order of `named_modules`.

    Args:
        model: Name of the model's class.
        rows: A row for each layer.
        suggested: The layer that `explain` takes by default, with the reason.
    """

    model: str
    rows: tuple[LayerCall, ...]
    suggested: Suggestion | None = None

    header = ("layer", "type", "output", "calls", "parameters")

    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows as text, as in `Table.cells`."""
        return [(r.name, r.type, r.output or "", str(r.calls or ""), f"{r.parameters:,}") for r in self.rows]

    @property
    def footer(self) -> str:
        """The suggested target layer, and the reason."""
        return f"suggested for heatmaps: {self.suggested.layer}, {self.suggested.reason}" if self.suggested else ""


def layers(model: Model, inputs: Inputs | None = None) -> LayerTable:
    """Return a table of the model's layers.

    The model is left exactly as it was found.

    Args:
        model: An nn.Module or a LoadedModel.
        inputs: Inputs of a dry run, as in `activations`. None runs nothing, and the table has no outputs.

    Returns:
        LayerTable: a row for each layer with name, type, number of parameters and, with `inputs`, the number of calls
        and the output. Shapes start with N, whatever the batch size. `suggested` is the layer that `explain` takes by
        default.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> [row.type for row in tp.layers(model, torch.rand(2, 3, 8, 8))]
        ['Conv2d', 'AdaptiveAvgPool2d', 'Flatten']
    """
    module = inspectable_module(module_of(model))
    if inputs is None:
        return LayerTable(type(module).__name__, tuple(layer_calls(module, None)))
    call, suggested = model_call_for(model, inputs), None
    with suppress(NoSpatialLayer):  # then no layer is suggested
        suggested = suggest_layer(module, call, anew=True)
    return LayerTable(type(module).__name__, tuple(layer_calls(module, call)), suggested)

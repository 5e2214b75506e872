"""layers(): a table of a network's layers, with the shapes of their outputs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from torchpeek.anatomy.table import Table
from torchpeek.engine import LayerCall, Suggestion, inspectable_module, layer_calls, suggest_layer
from torchpeek.errors import NoSpatialLayer
from torchpeek.hooks import call_name
from torchpeek.keywords import checked_class, checked_keywords
from torchpeek.models import Inputs, Model, model_call_for, module_of


@checked_class
@dataclass(frozen=True, repr=False)
class LayerTable(Table[LayerCall]):
    """The layers of a network, in the order of `named_modules`.

    Args:
        model: Name of the model's class.
        rows: A row for each layer.
        suggested: The layer that `explain` takes by default, with the reason.

    Example:
        >>> table = tp.layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.rand(1, 3, 8, 8))
        >>> [(row.name, row.output) for row in table]
        [('0', '(N, 4, 6, 6)'), ('1', '(N, 4, 6, 6)')]
    """

    model: str
    rows: tuple[LayerCall, ...]
    suggested: Suggestion | None = None

    header = ("layer", "type", "output", "calls", "parameters")

    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows as text, as in `Table.cells`."""
        return [(r.name, r.type, _outputs(r), str(r.calls or ""), f"{r.parameters:,}") for r in self.rows]

    @property
    def marked(self) -> list[int]:
        """The row of the suggested layer."""
        suggested = self.suggested.layer if self.suggested else None
        return [number for number, row in enumerate(self.rows) if row.name == suggested]

    @property
    def footer(self) -> str:
        """The suggested target layer with the reason, and how one of several calls is named."""
        lines = [f"suggested for heatmaps: {self.suggested.layer}, {self.suggested.reason}"] if self.suggested else []
        several = next((row for row in self.rows if row.calls > 1), None)
        if several is not None:
            last = call_name(several.name, several.calls - 1)
            lines.append(
                "a number in brackets names one of several calls in a pass: "
                f"{call_name(several.name, 0)!r} to {last!r}, or {call_name(several.name, -1)!r} for the last"
            )
        return "\n".join(lines)


def _outputs(row: LayerCall) -> str:
    """What the layer returned, call by call where the calls differ."""
    if len(set(row.outputs)) < 2:
        return row.output or ""
    calls = [f"[{number}] {output}" for number, output in enumerate(row.outputs)]
    return ", ".join(calls) if len(calls) <= 3 else f"{calls[0]}, {calls[1]}, ..., {calls[-1]}"


@checked_keywords
def layers(model: Model, inputs: Inputs | None = None) -> LayerTable:
    """Return a table of the model's layers.

    The model is left exactly as it was found.

    Args:
        model: An nn.Module or a LoadedModel.
        inputs: Inputs of a dry run, as in `activations`. None runs nothing, and the table has no outputs. Parameters
            that a lazy layer has yet to make do not count.

    Returns:
        LayerTable: a row for each layer with name, type, number of parameters and, with `inputs`, the number of calls
        and the output, call by call where the calls return different shapes. Shapes start with N, whatever the batch
        size, or with 4N where a layer holds four parts of each sample in its batch axis. `suggested` is the layer that
        `explain` takes by default.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> [row.type for row in tp.layers(model, torch.rand(2, 3, 8, 8))]
        ['Conv2d', 'AdaptiveAvgPool2d', 'Flatten']
    """
    module = inspectable_module(module_of(model))
    if inputs is None:
        return LayerTable(type(module).__name__, tuple(layer_calls(module, None)))
    call, suggested = model_call_for(model, inputs, any_tensor=True), None
    with suppress(NoSpatialLayer):  # then no layer is suggested
        suggested = suggest_layer(module, call, anew=True)
    return LayerTable(type(module).__name__, tuple(layer_calls(module, call)), suggested)

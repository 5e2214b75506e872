"""What is recorded of layers, for reading: the base of a Recording, and what a copy or a pickle of one is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from torch import Tensor

from torchpeek.errors import InputError, LayerNotFound, closest
from torchpeek.hooks.recording.call import Call
from torchpeek.hooks.recording.calls import Calls
from torchpeek.hooks.recording.layer_mapping import LayerGradients, LayerMapping
from torchpeek.hooks.recording.storage import GradientSlot, Leaf, StoredTensor
from torchpeek.hooks.recording.summary import Cells, describe_gradient, describe_parameters, merged, table
from torchpeek.hooks.selected_layer import split_call
from torchpeek.html import cells_table, notebook_html

Parameters: TypeAlias = dict[str, dict[str, tuple[Leaf, GradientSlot]]]
"""Layer -> parameter -> what is stored of it, and the slot for its gradient."""


class RecordedLayer(Protocol):
    """A layer with its recorded calls."""

    @property
    def calls(self) -> list[Call]:
        """The recorded calls."""


@dataclass(frozen=True)
class CopiedLayer:
    """A layer in a copy of a recording: its calls, and what to say where there are none or several."""

    calls: list[Call]
    why_not_called: str
    about_several_calls: str


class RecordedLayers(LayerMapping[Calls]):
    """A mapping from the names of layers to their recorded calls. A Recording is one; a copy of it is only this.

    Args:
        layers: The layers by name. In a copy each is a CopiedLayer.
        parameters: The parameters of each layer with the slots of their gradients; None if they are not recorded.
        records_gradients: Whether gradients are recorded.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with tp.record(model, "*") as tape:
        ...     output = model(torch.ones(4, 3))
        >>> copied = pickle.loads(pickle.dumps(tape))
        >>> {name: tuple(calls.output.shape) for name, calls in copied.items()}
        {'0': (4, 2), '1': (4, 2)}
    """

    def __init__(
        self, layers: Mapping[str, RecordedLayer], parameters: Parameters | None, records_gradients: bool
    ) -> None:
        self._layers = layers
        self._parameters = parameters
        self._records_gradients = records_gradients

    def __getitem__(self, layer: str) -> Calls:
        self._check_recorded(layer)
        calls = self._layers[layer].calls
        parameters = None if self._parameters is None else self._parameters.get(layer, {})
        return Calls(layer, calls, parameters, self.why_not_called, self.about_several_calls)

    def _check_recorded(self, layer: str) -> None:
        if not isinstance(layer, str) or layer not in self._layers:
            path, call = split_call(str(layer))
            hint = f"; read that call as [{path!r}][{call}]" if call and path in self._layers else ""
            hint = hint or closest(str(layer), self._layers)
            raise LayerNotFound(f"layer {layer!r} is not recorded{hint}; {len(self._layers)} layers are")

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    @property
    def nbytes(self) -> int:
        """The memory that the recording keeps alive, in bytes.

        Each storage counts once and as a whole, also if only a view of it is recorded. Tensors in files do not count.
        """
        storages: dict[int, int] = {}
        leaves = [leaf for each in self._layers.values() for call in each.calls for leaf in call.stored()]
        leaves += [leaf for by_name in (self._parameters or {}).values() for pair in by_name.values() for leaf in pair]
        for leaf in leaves:
            stored = leaf.leaf if isinstance(leaf, GradientSlot) else leaf
            if isinstance(stored, StoredTensor) and stored.original_device is None:
                storages |= stored.storages()
        return sum(storages.values())

    def cells(self) -> list[Cells]:
        """What is recorded of each layer, in words: the rows of the table that is printed.

        Returns:
            For each layer its name, the number of its calls, and a text for each part that is recorded: `output`,
            `input`, `grad_output`, `grad_input`, `parameters` and `grad_parameters`.

        Example:
            >>> model = nn.Sequential(nn.Linear(3, 2))
            >>> with tp.record(model, "0") as tape:
            ...     output = model(torch.ones(4, 3))
            >>> tape.cells()
            [{'layer': '0', 'calls': '1', 'output': '(4, 2) float32'}]
        """
        rows = []
        for name, recorded_layer in self._layers.items():
            calls = recorded_layer.calls
            row = {"layer": name, "calls": str(len(calls))}
            row |= merged([call.cells() for call in calls]) if calls else {"output": "was not called"}
            if self._parameters is not None and name in self._parameters:
                recorded = self._parameters[name]
                row["parameters"] = describe_parameters({each: leaf for each, (leaf, _) in recorded.items()})
                if self._records_gradients:
                    slots = {each: slot for each, (_, slot) in recorded.items()}
                    row["grad_parameters"] = describe_gradient(slots, [leaf for leaf, _ in recorded.values()])
            rows.append(row)
        return rows

    @notebook_html
    def _repr_html_(self) -> str:
        return cells_table(self.cells())

    def __repr__(self) -> str:
        return table(self.cells())

    def why_not_called(self, layer: str) -> str:
        """Explain why a layer has no call.

        Args:
            layer: The name of a recorded layer without a call.

        Returns:
            A sentence with the likely reason.

        Example:
            >>> model = nn.Sequential(nn.Linear(3, 2), nn.ModuleList())
            >>> with tp.record(model, "1") as tape:
            ...     output = model[0](torch.ones(4, 3))
            >>> "a container that is never called" in tape.why_not_called("1")
            True
        """
        return self._copied(layer).why_not_called

    def about_several_calls(self, layer: str) -> str:
        """Say what to do where one call of a layer is read, and it has several.

        Args:
            layer: The name of a recorded layer.

        Returns:
            A sentence.

        Example:
            >>> with tp.record(nn.Sequential(nn.ReLU()), "0") as tape:
            ...     pass
            >>> tape.about_several_calls("0")
            "record(model, '0[0]') records one call of each pass alone"
        """
        return self._copied(layer).about_several_calls

    def _copied(self, layer: str) -> CopiedLayer:
        copied = self._layers[layer]
        assert isinstance(copied, CopiedLayer)
        return copied

    def __reduce__(self) -> tuple[type[RecordedLayers], tuple[Any, ...]]:
        layers = {
            name: CopiedLayer(
                list(layer.calls), "" if layer.calls else self.why_not_called(name), self.about_several_calls(name)
            )
            for name, layer in self._layers.items()
        }
        return RecordedLayers, (layers, self._parameters, self._records_gradients)

    # What needs the model. A Recording has it.

    def __enter__(self) -> Self:
        raise InputError(_WITHOUT_MODEL)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        raise InputError(_WITHOUT_MODEL)

    def new_pass(self) -> None:
        """Raises InputError: a copy of a recording records no more passes."""
        raise InputError(_WITHOUT_MODEL)

    def grad(self, score: Tensor, *, retain_graph: bool = True) -> LayerGradients:
        """Raises InputError: a copy of a recording has no graph."""
        raise InputError(_WITHOUT_MODEL)


_WITHOUT_MODEL = (
    "this is a copy of a recording, such as a pickle has: it has what was recorded, and no model to record more of. "
    "Next: make a recording with tp.record(model, ...)"
)

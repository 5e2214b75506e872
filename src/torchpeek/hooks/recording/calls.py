"""Calls: what was recorded of all calls of one layer, and how the user reads it."""

from __future__ import annotations

import operator
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor

from torchpeek.errors import AmbiguousCall, InputError, NotFired
from torchpeek.hooks import containers
from torchpeek.hooks.recording.call import Call
from torchpeek.hooks.recording.part import Part
from torchpeek.hooks.recording.storage import GradientSlot, Leaf
from torchpeek.hooks.recording.summary import (
    WIDTH,
    Cells,
    describe_parameters,
    paragraph,
    shortened_rows,
    table,
)
from torchpeek.hooks.selected_layer import call_name
from torchpeek.html import cells_table, notebook_html, preformatted


class Calls(Sequence[Call]):
    """The calls of one layer, in the order in which they began: `calls[i]` is a Call, `calls[1:]` are several.

    If there is only one call, its values are also here: `calls.output` is `calls[0].output`. The calls of the replicas
    of DataParallel in one pass are read as one call: their tensors are concatenated along the batch axis, in the order
    of the devices.

    Args:
        layer: The name of the layer.
        calls: The calls.
        parameters: The parameters of the layer with the slots of their gradients; None if they are not recorded.
        why_none: Called with the name of the layer; the reason why it has no call.
        if_several: Called with the name of the layer; what to do where one call is read and it has several.
        numbers: The numbers of these calls, if they are a slice of more.

    Example:
        >>> relu = nn.ReLU()
        >>> model = nn.Sequential(relu, nn.Linear(3, 2), relu)
        >>> with tp.record(model, "0") as tape:
        ...     output = model(torch.ones(4, 3))
        >>> tape["0"][1].output.shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        layer: str,
        calls: list[Call],
        parameters: dict[str, tuple[Leaf, GradientSlot]] | None,
        why_none: Callable[[str], str],
        if_several: Callable[[str], str],
        numbers: range | None = None,
    ) -> None:
        self._layer = layer
        self._calls = calls
        self._parameters = parameters
        self._why_none = why_none
        self._if_several = if_several
        self._numbers = numbers

    @overload
    def __getitem__(self, index: int) -> Call: ...
    @overload
    def __getitem__(self, index: slice) -> Calls: ...
    def __getitem__(self, index: int | slice) -> Call | Calls:
        if isinstance(index, slice):
            return self._sliced(index)
        if not self._calls:
            raise NotFired(self._why_none(self._layer))
        try:
            index = operator.index(index)
        except TypeError:
            raise InputError(
                f"a call of layer {self._layer!r} is read by its number, from 0, or several by a slice; got {index!r}"
            ) from None
        if not -len(self) <= index < len(self):
            raise NotFired(f"layer {self._layer!r} has calls [0] to [{len(self) - 1}]; got [{index}]")
        return self._calls[index]

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    def _sliced(self, index: slice) -> Calls:
        count = len(self._calls)
        why_none = self._why_none
        if count:
            text = f"of the {count} calls of layer {self._layer!r}, {index} selects none"
            why_none = partial(_text, text)
        numbers = (self._numbers or range(count))[index]
        return Calls(self._layer, self._calls[index], self._parameters, why_none, self._if_several, numbers)

    def __reduce__(self) -> tuple[type[Calls], tuple[Any, ...]]:
        # The reasons as texts: the functions belong to the recording, with its model.
        reason = "" if self._calls else self._why_none(self._layer)
        texts = partial(_text, reason), partial(_text, self._if_several(self._layer))
        return Calls, (self._layer, list(self._calls), self._parameters, *texts, self._numbers)

    @property
    def output(self) -> Any:
        """`Call.output` of the only call."""
        return self._read(lambda call: call.output)

    @property
    def input(self) -> Any:
        """`Call.input` of the only call."""
        return self._read(lambda call: call.input)

    @property
    def kwargs(self) -> Any:
        """`Call.kwargs` of the only call."""
        return self._read(lambda call: call.kwargs)

    @property
    def grad_output(self) -> Any:
        """`Call.grad_output` of the only call."""
        return self._read(lambda call: call.grad_output)

    @property
    def grad_input(self) -> Any:
        """`Call.grad_input` of the only call."""
        return self._read(lambda call: call.grad_input)

    @property
    def grad_kwargs(self) -> Any:
        """`Call.grad_kwargs` of the only call."""
        return self._read(lambda call: call.grad_kwargs)

    def at(self, path: str) -> Part:
        """Read one member of the containers of the only call.

        Args:
            path: The path of the member: `"0.k"` is entry k of the first member.

        Returns:
            An object whose `output`, `input`, `grad_output` and `grad_input` are those of the member.

        Example:
            >>> model = nn.Sequential(nn.LSTM(3, 2))
            >>> with tp.record(model, "0") as tape:
            ...     output = model(torch.ones(5, 3))
            >>> tape["0"].at("0").output.shape
            torch.Size([5, 2])
        """
        return Part(self, path)

    @property
    def paths(self) -> list[str]:
        """`Call.paths` of the first call."""
        return self[0].paths

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters of the layer and of the layers in it, by name, with their values at the start of the pass."""
        return {name: leaf.read() for name, (leaf, _) in self._recorded_parameters().items()}

    @property
    def grad_parameters(self) -> dict[str, Tensor | None]:
        """The gradient of each parameter in the last backward pass alone, by name; None where none has arrived.

        `.grad` differs: it is the sum over the backward passes. If the layer is called several times, the gradient is
        the sum over the calls, because they share the parameter. It is also the sum over all models that share it.
        """
        return {name: slot.read() for name, (_, slot) in self._recorded_parameters().items()}

    def cells(self) -> list[Cells]:
        """What is recorded of each call, in words.

        Returns:
            For each call the texts of `Call.cells`, after its name.

        Example:
            >>> model = nn.Sequential(nn.Linear(3, 2))
            >>> with tp.record(model, "0") as tape:
            ...     output = model(torch.ones(4, 3))
            >>> tape["0"].cells()
            [{'call': '0[0]', 'output': '(4, 2) float32'}]
        """
        numbers = self._numbers or range(len(self._calls))
        return [
            {"call": call_name(self._layer, number)} | call.cells()
            for number, call in zip(numbers, self._calls, strict=True)
        ]

    def _recorded_parameters(self) -> dict[str, tuple[Leaf, GradientSlot]]:
        if self._parameters is None:
            raise InputError(
                f"the parameters of layer {self._layer!r} were not recorded; record(..., parameters=True) does so"
            )
        return self._parameters

    def _read(self, read: Callable[[Call], Any]) -> Any:
        if len(self) < 2:
            return read(self[0])
        values = [read(call) for call in self] if all(call.replica for call in self) else []
        if not values or any(list(containers.leaves(value)) == [] for value in values):
            raise AmbiguousCall(
                f"layer {self._layer!r} was called {len(self)} times; read one call, [0] to [{len(self) - 1}]. "
                f"{self._if_several(self._layer)}"
            )
        return _concatenated(values)

    @notebook_html
    def _repr_html_(self) -> str:
        return cells_table(self.cells()) if self._calls else preformatted(repr(self))

    def __repr__(self) -> str:
        if not self._calls:
            return textwrap.fill(self._why_none(self._layer), WIDTH)
        rows, left_out = shortened_rows(self.cells())
        lines = [table(rows), left_out]
        if self._parameters is not None:
            values = describe_parameters({name: leaf for name, (leaf, _) in self._parameters.items()})
            lines.append(paragraph("parameters", values))
        return "\n".join(filter(None, lines))


def _text(text: str, layer: str) -> str:
    return text


def _concatenated(values: list[Any]) -> Any:
    """Concatenate the values of the replicas along the batch axis, in the order of their devices."""

    def device_key(value: Any) -> tuple[str, int]:
        device = next((tensor.device for _, tensor in containers.leaves(value)), torch.device("cpu"))
        return device.type, device.index or 0

    ordered = sorted(values, key=device_key)
    parts = [dict(containers.leaves(value)) for value in ordered]

    def concatenated(path: str, first: Tensor) -> Tensor:
        members = [part[path].to(first.device) for part in parts]
        return torch.cat(members) if first.ndim else torch.stack(members)

    return containers.mapped(ordered[0], concatenated)

"""Part: one member of the containers of a call, or of the calls of a layer."""

from __future__ import annotations

from typing import Any, Protocol

from torchpeek.hooks import containers


class RecordedValues(Protocol):
    """A call, or the calls of a layer that are read as one."""

    @property
    def output(self) -> Any:
        """What the layer returned."""

    @property
    def input(self) -> Any:
        """What it got."""

    @property
    def grad_output(self) -> Any:
        """The gradient with respect to `output`."""

    @property
    def grad_input(self) -> Any:
        """The gradient with respect to `input`."""


class Part:
    """One member of the containers of a call. `Call.at` makes it.

    Args:
        call: The call or calls.
        path: The path of the member.

    Example:
        >>> model = nn.Sequential(nn.LSTM(3, 2))
        >>> with tp.record(model, "0", gradients=True) as tape:
        ...     model(torch.ones(5, 3))[0].sum().backward()
        >>> tape["0"].at("0").grad_output.shape
        torch.Size([5, 2])
    """

    def __init__(self, call: RecordedValues, path: str) -> None:
        self._call = call
        self._path = path

    @property
    def output(self) -> Any:
        """The member of `Call.output`."""
        return containers.at(self._call.output, self._path)

    @property
    def input(self) -> Any:
        """The member of `Call.input`."""
        return containers.at(self._call.input, self._path)

    @property
    def grad_output(self) -> Any:
        """The member of `Call.grad_output`."""
        return containers.at(self._call.grad_output, self._path)

    @property
    def grad_input(self) -> Any:
        """The member of `Call.grad_input`."""
        return containers.at(self._call.grad_input, self._path)

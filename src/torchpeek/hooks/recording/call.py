"""Call and Calls: what was recorded of the calls of one layer, and how the user reads it."""

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
from torchpeek.hooks.gradient_tap import GradientTap
from torchpeek.hooks.recording.storage import GradientSlot, Leaf
from torchpeek.hooks.recording.summary import (
    WIDTH,
    Cells,
    describe,
    describe_gradient,
    describe_parameters,
    paragraph,
    paragraphs,
    shortened_rows,
    table,
)
from torchpeek.hooks.selected_layer import call_name
from torchpeek.html import cells_table, notebook_html, preformatted

_NOT_RECORDED = object()  # not None, which a layer may return


class Call:
    """One call of one layer.

    Args:
        layer: The name of the layer.
        order: The number of the call among the calls of all recorded layers in the pass, from 0.

    Attributes:
        complete: Whether the layer returned. False if it raised, or still runs.
        number: With `tp.keep.Running`, the number of the call among the calls of this layer in one pass, from 0.
        replica: Whether a replica of DataParallel ran.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2))
        >>> with tp.record(model, "0", inputs=True) as tape:
        ...     output = model(torch.ones(4, 3))
        >>> tape["0"][0]
        Call('0', (4, 2) float32)
    """

    # Class attributes are defaults, so that a call sets only what is recorded.
    input_taps: Sequence[GradientTap] = ()  # while the layer runs: the taps on its inputs
    first_node = 0  # while the layer runs: the sequence number of the first graph node that it can make
    complete = False
    number = 0
    replica = False
    stored_output: Any = _NOT_RECORDED
    stored_input: Any = _NOT_RECORDED
    stored_kwargs: Any = _NOT_RECORDED
    stored_grad_output: Any = _NOT_RECORDED
    stored_grad_input: Any = _NOT_RECORDED
    stored_grad_kwargs: Any = _NOT_RECORDED

    def __init__(self, layer: str, order: int) -> None:
        self.layer = layer
        self.order = order

    @property
    def output(self) -> Any:
        """What the layer returned: tensors, detached, in the layer's own container."""
        if not self.complete:
            raise NotFired(f"layer {self.layer!r} did not return, because an exception was raised in it")
        return _read(self.stored_output)

    @property
    def input(self) -> Any:
        """The positional input of the layer, or a tuple if it has several. Needs `record(..., inputs=True)`."""
        self._check(self.stored_input, "inputs")
        return _single(_read(self.stored_input))

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword inputs of the layer, by name. Needs `record(..., inputs=True)`."""
        self._check(self.stored_kwargs, "inputs")
        kwargs: dict[str, Any] = _read(self.stored_kwargs)
        return kwargs

    @property
    def grad_output(self) -> Any:
        """The gradient with respect to `output`, in the same container and shapes; None where none has arrived.

        A tensor that the layer returned in several places has the same gradient in each of them.
        """
        self._check(self.stored_grad_output, "gradients")
        return _read(self.stored_grad_output)

    @property
    def grad_input(self) -> Any:
        """The gradient with respect to `input` that comes from this layer alone, as torch defines it.

        None for an input that needs no gradient, and where none has arrived. A tensor that the layer got in several
        places is one tensor for it. So each of the places, also in `grad_kwargs`, has the gradient with respect to that
        tensor, the sum over all of its uses in the layer, as `torch.autograd.grad(score, [x, x])` gives it.
        """
        self._check(self.stored_grad_input, "gradients")
        return _single(_read(self.stored_grad_input))

    @property
    def grad_kwargs(self) -> dict[str, Any]:
        """The gradients with respect to `kwargs`, as `grad_input`."""
        self._check(self.stored_grad_kwargs, "gradients")
        gradients: dict[str, Any] = _read(self.stored_grad_kwargs)
        return gradients

    def at(self, path: str) -> Part:
        """Read one member of the containers of this call.

        Args:
            path: The path of the member: `"0.k"` is entry k of the first member.

        Returns:
            An object whose `output`, `input`, `grad_output` and `grad_input` are those of the member.

        Example:
            >>> model = nn.Sequential(nn.LSTM(3, 2))
            >>> with tp.record(model, "0") as tape:
            ...     output = model(torch.ones(5, 3))
            >>> tape["0"][0].at("1.0").output.shape
            torch.Size([1, 2])
        """
        return Part(self, path)

    @property
    def paths(self) -> list[str]:
        """The paths of the tensors in the output. A tensor that is not in a container has the path `""`."""
        return [path for path, _ in containers.leaves(self.stored_output, Leaf)]

    @property
    def has_gradients(self) -> bool:
        """Whether the gradient of the output is recorded."""
        return self.stored_grad_output is not _NOT_RECORDED

    def stored(self) -> Iterator[Leaf]:
        """Iterate over everything that is stored of this call, for example to count the memory.

        Yields:
            One leaf for each tensor.

        Example:
            >>> model = nn.Sequential(nn.Linear(3, 2))
            >>> with tp.record(model, "0", inputs=True) as tape:
            ...     output = model(torch.ones(4, 3))
            >>> len(list(tape["0"][0].stored()))
            2
        """
        for value in (
            self.stored_output,
            self.stored_input,
            self.stored_kwargs,
            self.stored_grad_output,
            self.stored_grad_input,
            self.stored_grad_kwargs,
        ):
            for _, leaf in containers.leaves(value, Leaf):
                yield leaf

    def __getstate__(self) -> dict[str, Any]:
        state = vars(self).copy()
        for name in ("input_taps", "first_node"):  # they belong to the graph
            state.pop(name, None)
        return state

    def _check(self, stored: Any, name: str) -> None:
        if stored is _NOT_RECORDED:
            if name == "gradients" and not self.complete and self.stored_grad_input is not _NOT_RECORDED:
                raise NotFired(f"layer {self.layer!r} did not return, so no gradient can flow back to it")
            raise InputError(f"the {name} of layer {self.layer!r} were not recorded; record(..., {name}=True) does so")

    def cells(self) -> Cells:
        """What is recorded of the call, in words.

        Returns:
            A text for each of `output`, `input`, `grad_output` and `grad_input` that is recorded.

        Example:
            >>> model = nn.Sequential(nn.Linear(3, 2))
            >>> with tp.record(model, "0", inputs=True) as tape:
            ...     output = model(torch.ones(4, 3))
            >>> tape["0"][0].cells()
            {'output': '(4, 2) float32', 'input': '(4, 3) float32'}
        """
        cells = {"output": describe(self.stored_output) if self.complete else "did not return"}
        inputs, gradients = _all_inputs(self.stored_input, self.stored_kwargs), self.stored_grad_output
        if inputs is not _NOT_RECORDED:
            cells["input"] = describe(inputs)
        if gradients is not _NOT_RECORDED:
            cells["grad_output"] = describe_gradient(gradients, self.stored_output)
        gradients = _all_inputs(self.stored_grad_input, self.stored_grad_kwargs)
        if gradients is not _NOT_RECORDED:
            cells["grad_input"] = describe_gradient(gradients, None if inputs is _NOT_RECORDED else inputs)
        return cells

    @notebook_html
    def _repr_html_(self) -> str:
        return cells_table([{"call": self.layer} | self.cells()])

    def __repr__(self) -> str:
        cells = self.cells()
        texts = list(cells.values()) if len(cells) == 1 else [f"{column} {text}" for column, text in cells.items()]
        line = f"Call({self.layer!r}, {', '.join(texts)})"
        return line if len(line) <= WIDTH else "\n".join(paragraphs(f"Call({self.layer!r})", cells))


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

    def __init__(self, call: Call | Calls, path: str) -> None:
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


def _read(value: Any) -> Any:
    return containers.mapped(value, lambda path, leaf: leaf.read(), Leaf)


def _text(text: str, layer: str) -> str:
    return text


def _all_inputs(args: Any, kwargs: Any) -> Any:
    """The positional and the keyword inputs in one container, or what says that they are not recorded."""
    return args if args is _NOT_RECORDED or kwargs is _NOT_RECORDED or not kwargs else (args, kwargs)


def _single(values: Any) -> Any:
    return values[0] if len(values) == 1 else values


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

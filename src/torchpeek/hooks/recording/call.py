"""Call: what was recorded of one call of a layer, and how the user reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torchpeek.errors import InputError, NotFired
from torchpeek.hooks import containers
from torchpeek.hooks.gradient_tap import GradientTap
from torchpeek.hooks.recording.part import Part
from torchpeek.hooks.recording.storage import Leaf
from torchpeek.hooks.recording.summary import (
    WIDTH,
    Cells,
    describe,
    describe_gradient,
    paragraphs,
)
from torchpeek.html import cells_table, notebook_html

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


def _read(value: Any) -> Any:
    return containers.mapped(value, lambda path, leaf: leaf.read(), Leaf)


def _all_inputs(args: Any, kwargs: Any) -> Any:
    """The positional and the keyword inputs in one container, or what says that they are not recorded."""
    return args if args is _NOT_RECORDED or kwargs is _NOT_RECORDED or not kwargs else (args, kwargs)


def _single(values: Any) -> Any:
    return values[0] if len(values) == 1 else values

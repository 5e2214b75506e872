"""What was recorded of the calls of a layer, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torchpeek.errors import AmbiguousCall, InputError, NotFired
from torchpeek.hooks import containers
from torchpeek.hooks.gradient_tap import GradientTap
from torchpeek.hooks.recording.storage import GradientSlot, Leaf, StoredTensor

_NOT_RECORDED = object()  # which None, that a layer may return, is not


class Call:
    """One call of one layer."""

    input_taps: Sequence[tuple[GradientTap, Tensor]] = ()  # of its inputs, while it is under way
    first_node = 0  # how many operations the graph had when it first_node
    complete = False  # False where the layer raised, or is still running
    number = 0  # among the calls of this layer in one pass, where statistics of all passes are kept
    replica = False  # True where a replica ran, as DataParallel makes them
    stored_output: Any = _NOT_RECORDED
    stored_input: Any = _NOT_RECORDED
    stored_kwargs: Any = _NOT_RECORDED
    stored_grad_output: Any = _NOT_RECORDED
    stored_grad_input: Any = _NOT_RECORDED
    stored_grad_kwargs: Any = _NOT_RECORDED

    def __init__(self, layer: str, order: int) -> None:
        self.layer = layer
        self.order = order  # among the calls of all recorded layers, from 0

    @property
    def output(self) -> Any:
        """What the layer returned, detached, in the container that it came in."""
        if not self.complete:
            raise NotFired(f"layer {self.layer!r} did not return: an exception came in between")
        return _read(self.stored_output)

    @property
    def input(self) -> Any:
        """What the layer was given: its one positional argument, or a tuple of several."""
        self._check(self.stored_input, "inputs")
        return _single(_read(self.stored_input))

    @property
    def kwargs(self) -> dict[str, Any]:
        """What the layer was given by name."""
        self._check(self.stored_kwargs, "inputs")
        read: dict[str, Any] = _read(self.stored_kwargs)
        return read

    @property
    def grad_output(self) -> Any:
        """The gradient with respect to the output, in its container; None where none has arrived."""
        self._check(self.stored_grad_output, "gradients")
        return _read(self.stored_grad_output)

    @property
    def grad_input(self) -> Any:
        """The gradient with respect to the input that comes of this layer alone, as torch defines it.

        None for an input that needs none, and where none has arrived.
        """
        self._check(self.stored_grad_input, "gradients")
        return _single(_read(self.stored_grad_input))

    @property
    def grad_kwargs(self) -> dict[str, Any]:
        """As `grad_input`, for what was given by name."""
        self._check(self.stored_grad_kwargs, "gradients")
        read: dict[str, Any] = _read(self.stored_grad_kwargs)
        return read

    def at(self, path: str) -> Part:
        """One part of the call by its path in the container: `at("0.k").output` is entry k of the first member."""
        return Part(self, path)

    @property
    def paths(self) -> list[str]:
        """The paths of the tensors in the output; the one path of a tensor without a container is empty."""
        return [path for path, _ in containers.leaves(self.stored_output, Leaf)]

    @property
    def has_gradients(self) -> bool:
        """Whether the gradient of its output was asked for, and can be had."""
        return self.stored_grad_output is not _NOT_RECORDED

    def stored(self) -> Iterator[Leaf]:
        """Everything that was kept, for those who count the memory."""
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

    def _check(self, recorded: Any, what: str) -> None:
        if recorded is _NOT_RECORDED:
            if what == "gradients" and not self.complete and self.stored_grad_input is not _NOT_RECORDED:
                raise NotFired(f"layer {self.layer!r} did not return, so no gradient can flow back to it")
            raise InputError(f"the {what} of {self.layer!r} were not recorded; record(..., {what}=True) keeps them")

    def __repr__(self) -> str:
        what = describe(self.stored_output) if self.complete else "did not return"
        return f"Call({self.layer!r}, {what})"


class Part:
    """What a call says of one path of its containers."""

    def __init__(self, call: Call | Calls, path: str) -> None:
        self._call = call
        self._path = path

    @property
    def output(self) -> Any:
        """As `Call.output`."""
        return containers.at(self._call.output, self._path)

    @property
    def input(self) -> Any:
        """As `Call.input`."""
        return containers.at(self._call.input, self._path)

    @property
    def grad_output(self) -> Any:
        """As `Call.grad_output`."""
        return containers.at(self._call.grad_output, self._path)

    @property
    def grad_input(self) -> Any:
        """As `Call.grad_input`."""
        return containers.at(self._call.grad_input, self._path)


class Calls(Sequence[Call]):
    """The calls of one layer, in order. Where there is just one, its values can be read right here.

    The calls of DataParallel's replicas in one pass are read here as one: put together in the order of the devices.
    """

    def __init__(
        self,
        layer: str,
        calls: list[Call],
        parameters: dict[str, tuple[Leaf, GradientSlot]] | None,
        why_none: Callable[[str], str],
    ) -> None:
        self._layer = layer
        self._calls = calls
        self._parameters = parameters
        self._why_none = why_none

    def __getitem__(self, index: int) -> Call:  # type: ignore[override]  # one call at a time
        if not self._calls:
            raise NotFired(self._why_none(self._layer))
        if not isinstance(index, int):
            raise InputError(f"a call of {self._layer!r} is asked for by its number, from 0; got {index!r}")
        if not -len(self) <= index < len(self):
            raise NotFired(f"layer {self._layer!r} has calls [0] to [{len(self) - 1}]; got [{index}]")
        return self._calls[index]

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    @property
    def output(self) -> Any:
        """As `Call.output`."""
        return self._read(lambda call: call.output)

    @property
    def input(self) -> Any:
        """As `Call.input`."""
        return self._read(lambda call: call.input)

    @property
    def kwargs(self) -> Any:
        """As `Call.kwargs`."""
        return self._read(lambda call: call.kwargs)

    @property
    def grad_output(self) -> Any:
        """As `Call.grad_output`."""
        return self._read(lambda call: call.grad_output)

    @property
    def grad_input(self) -> Any:
        """As `Call.grad_input`."""
        return self._read(lambda call: call.grad_input)

    @property
    def grad_kwargs(self) -> Any:
        """As `Call.grad_kwargs`."""
        return self._read(lambda call: call.grad_kwargs)

    def at(self, path: str) -> Part:
        """As `Call.at`."""
        return Part(self, path)

    @property
    def paths(self) -> list[str]:
        """As `Call.paths`."""
        return self[0].paths

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters of the layer, with those of the layers in it, as they were when the pass first_node."""
        return {name: leaf.read() for name, (leaf, _) in self._recorded_parameters().items()}

    @property
    def grad_parameters(self) -> dict[str, Tensor | None]:
        """What flowed back to each parameter in the last backward pass alone; None where nothing did.

        `.grad` has the sum over the backward passes; this has not. Of a layer that is called several times it is the
        sum over the calls, because the parameter is one.
        """
        return {name: slot.read() for name, (_, slot) in self._recorded_parameters().items()}

    def _recorded_parameters(self) -> dict[str, tuple[Leaf, GradientSlot]]:
        if self._parameters is None:
            raise InputError(
                f"the parameters of {self._layer!r} were not recorded; record(..., parameters=True) keeps them"
            )
        return self._parameters

    def _read(self, read: Callable[[Call], Any]) -> Any:
        if len(self) < 2:
            return read(self[0])
        values = [read(call) for call in self] if all(call.replica for call in self) else []
        if not values or any(list(containers.leaves(value)) == [] for value in values):
            raise AmbiguousCall(
                f"layer {self._layer!r} was called {len(self)} times; take one, [0] to [{len(self) - 1}]. With "
                "passes='last' only the last pass of the model is kept"
            )
        return _concatenated(values)

    def __repr__(self) -> str:
        return f"Calls({self._layer!r}, {len(self)})"


def _read(value: Any) -> Any:
    return containers.mapped(value, lambda path, leaf: leaf.read(), Leaf)


def _single(values: Any) -> Any:
    return values[0] if len(values) == 1 else values


def _concatenated(values: list[Any]) -> Any:
    """What the replicas have, one after the other along the batch, in the order of their devices."""

    def device(value: Any) -> tuple[str, int]:
        where = next((tensor.device for _, tensor in containers.leaves(value)), torch.device("cpu"))
        return where.type, where.index or 0

    ordered = sorted(values, key=device)
    parts = [dict(containers.leaves(value)) for value in ordered]

    def joined(path: str, first: Tensor) -> Tensor:
        members = [part[path].to(first.device) for part in parts]
        return torch.cat(members) if first.ndim else torch.stack(members)

    return containers.mapped(ordered[0], joined)


def describe(value: Any) -> str:
    """The shapes and types of the tensors in what was kept."""
    shown = []
    for _, leaf in containers.leaves(value, Leaf):
        if isinstance(leaf, StoredTensor):
            shape = "nested" if leaf.tensor.is_nested else str(tuple(leaf.tensor.shape))
            shown.append(f"{shape} {str(leaf.tensor.dtype).removeprefix('torch.')}")
        else:
            shown.append(repr(leaf.read()))
    return ", ".join(shown) or "no tensor"

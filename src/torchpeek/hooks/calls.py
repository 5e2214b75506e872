"""What was recorded of one call of a layer, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from torchpeek.errors import AmbiguousCall, InputError, NotFired, StaleCapture
from torchpeek.hooks.tensors import Slot


class Call:
    """One call of one layer."""

    def __init__(self, layer: str, order: int) -> None:
        self.layer = layer
        self.order = order  # among the calls of all recorded layers, from 0
        self.complete = False  # False where the layer raised, or is still running
        self.kept_output: Any = None
        self.kept_input: tuple[Any, ...] | None = None
        self.kept_grad_output: Any = None
        self.kept_grad_input: tuple[Any, ...] | None = None

    @property
    def output(self) -> Any:
        """What the layer returned, detached, in the container that it came in."""
        if not self.complete:
            raise NotFired(f"layer {self.layer!r} did not return: an exception came in between")
        return _read(self.kept_output)

    @property
    def input(self) -> Any:
        """What the layer was given: its one positional argument, or a tuple of several."""
        if self.kept_input is None:
            raise InputError(f"the inputs of {self.layer!r} were not recorded; record(..., inputs=True) keeps them")
        return _only(_read(self.kept_input))

    @property
    def grad_output(self) -> Any:
        """The gradient with respect to the output, in its container; None where none has arrived."""
        self._check_gradients(self.kept_grad_output)
        return _read(self.kept_grad_output)

    @property
    def grad_input(self) -> Any:
        """The gradient with respect to the input that comes of this layer alone, as torch defines it.

        None for an input that needs none, and where none has arrived.
        """
        self._check_gradients(self.kept_grad_input)
        return _only(_read(self.kept_grad_input))

    def _check_gradients(self, recorded: Any) -> None:
        if recorded is None:
            raise InputError(
                f"the gradients of {self.layer!r} were not recorded; record(..., gradients=True) keeps them"
            )

    def __repr__(self) -> str:
        what = described(self.kept_output) if self.complete else "did not return"
        return f"Call({self.layer!r}, {what})"


class Calls(Sequence[Call]):
    """The calls of one layer, in order. Where there is just one, its values can be read right here."""

    def __init__(self, layer: str, calls: list[Call], why_none: str) -> None:
        self._layer = layer
        self._calls = calls
        self._why_none = why_none

    def __getitem__(self, index: int) -> Call:  # type: ignore[override]  # one call at a time
        if not self._calls:
            raise NotFired(self._why_none)
        return self._calls[index]

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def output(self) -> Any:
        """As `Call.output`."""
        return self._one().output

    @property
    def input(self) -> Any:
        """As `Call.input`."""
        return self._one().input

    @property
    def grad_output(self) -> Any:
        """As `Call.grad_output`."""
        return self._one().grad_output

    @property
    def grad_input(self) -> Any:
        """As `Call.grad_input`."""
        return self._one().grad_input

    def _one(self) -> Call:
        if len(self._calls) > 1:
            raise AmbiguousCall(
                f"layer {self._layer!r} was called {len(self._calls)} times; take one, [0] to [{len(self) - 1}]"
            )
        return self[0]

    def __repr__(self) -> str:
        return f"Calls({self._layer!r}, {len(self._calls)})"


class Kept:
    """One tensor as it was: a copy, or a reference that knows when it has been written into."""

    __slots__ = ("_version", "tensor")

    def __init__(self, tensor: Tensor, copy: bool) -> None:
        alias = tensor.detach()
        self.tensor = alias.clone() if copy or alias.is_inference() else alias
        self._version = None if self.tensor.is_inference() else self.tensor._version

    def read(self) -> Tensor:
        if self._version is not None and self.tensor._version != self._version:
            raise StaleCapture(
                f"a later operation wrote into what was recorded (version {self._version} -> {self.tensor._version}); "
                f"record(..., snapshot='clone') keeps a copy"
            )
        return self.tensor


def _read(value: Any) -> Any:
    def one(leaf: Any) -> Any:
        if isinstance(leaf, Kept):
            return leaf.read()
        return leaf.value if isinstance(leaf, Slot) else leaf

    return tree_map(one, value)


def _only(values: Any) -> Any:
    return values[0] if len(values) == 1 else values


def described(value: Any) -> str:
    """The shapes and types of the tensors in what was kept."""
    tensors = [leaf.tensor for leaf in tree_flatten(value)[0] if isinstance(leaf, Kept)]
    shown = [f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors]
    return ", ".join(shown) or "no tensor"

"""What is remembered of a tensor that flows through a network: its range, and the operation that made it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from torchpeek.tensor_formats import Sizes, dtype_text, shape_sizes, shape_text, sizes_text, type_text, write_count


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LayerCall:
    """One call of a layer.

    Args:
        layer: The name of the layer; "" is the model.
        call: The number of the call in its pass, from 0. None for the second run of a checkpointed part.
        pass_number: The number of the forward pass, from 0.
        accepted: Whether NaN and infinity that are made here are accepted.
        module_ref: The layer.
        outer: The call of the layer around it.
        first_node: Nodes of the graph with this number or a larger one are made by the call, or later.
        inputs: What came in.
    """

    layer: str
    call: int | None
    pass_number: int
    accepted: bool
    module_ref: weakref.ref[nn.Module]
    outer: LayerCall | None
    first_node: int
    inputs: list[Value] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One operation of a forward pass.

    Args:
        function: The function. None for an operation that cannot be seen, such as an autograd.Function.
        layer_call: The innermost call in which it ran. None outside the model.
        inputs: The tensors among its arguments.
        constant: Whether a number among its arguments is infinity or NaN, as in `masked_fill(mask, -inf)`.
        number: Counts the operations of a block.
    """

    function: Callable[..., Any] | None
    layer_call: LayerCall | None
    inputs: tuple[Value, ...]
    constant: bool
    number: int


class Value:
    """The range of a tensor at one moment, and where the tensor comes from.

    Args:
        tensor: The tensor.
        operation: What made it. None for a value that flows in: an input, a parameter, a buffer or a constant.
        source: What a value without an operation is: "input", "parameter", "buffer" or "constant".
        name: The name of the parameter or buffer.
        later: Compute the range when it is needed. The tensor is kept alive until then.
    """

    __slots__ = (
        "_extremes",
        "_tensor",
        "dtype",
        "intended",
        "is_checked",
        "is_nested",
        "name",
        "operation",
        "sizes",
        "source",
    )

    def __init__(
        self, tensor: Tensor, operation: Operation | None, source: str = "", name: str = "", *, later: bool = False
    ) -> None:
        self.is_nested = tensor.is_nested
        self.sizes: Sizes = shape_sizes(tensor) if self.is_nested else tensor.shape
        self.dtype = tensor.dtype
        self.operation = operation
        self.source = source
        self.name = name
        self.is_checked = False  # whether the backward of what made it is checked
        self.intended = False  # whether its infinities were put in on purpose
        self._tensor = tensor.detach() if later else None
        self._extremes: tuple[Tensor, Tensor] | tuple[float, float] | None = None if later else extremes(tensor)

    def view(self, tensor: Tensor) -> Value:
        """The value of a view of all elements of the tensor, which has the same range."""
        other = object.__new__(Value)
        for name in Value.__slots__:
            setattr(other, name, getattr(self, name))
        other.is_nested = tensor.is_nested
        other.sizes = shape_sizes(tensor) if other.is_nested else tensor.shape
        return other

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest element; both are NaN if one of them is. Waits for the device."""
        if self._tensor is not None:
            self._extremes, self._tensor = extremes(self._tensor), None
        if self._extremes is None:
            return 0.0, 0.0
        low, high = self._extremes
        if isinstance(low, Tensor) and isinstance(high, Tensor):
            numbers = (low.item(), high.item()) if low.device.type == "cpu" else torch.stack((low, high)).tolist()
            self._extremes = float(numbers[0]), float(numbers[1])
        return self._extremes  # type: ignore[return-value]  # mypy does not join the two branches

    @property
    def is_finite(self) -> bool:
        """Whether all elements are finite numbers. Waits for the device."""
        low, high = self.range
        return math.isfinite(low) and math.isfinite(high)

    @property
    def has_nan(self) -> bool:
        """Whether an element is NaN. Waits for the device."""
        return math.isnan(self.range[0])

    def found_finite(self) -> None:
        """Forget what made the value, because nobody will ask."""
        self.operation = None

    def __str__(self) -> str:
        low, high = self.range
        shown = "with NaN" if math.isnan(low) else f"in [{low:.4g}, {high:.4g}]"
        return f"{sizes_text(self.sizes, nested=self.is_nested)} {dtype_text(self.dtype)} {shown}"


def holds_fractions(tensor: Tensor) -> bool:
    """Whether the tensor can hold NaN at all, and has elements."""
    return (tensor.is_floating_point() or tensor.is_complex()) and not isinstance(tensor, FakeTensor)


def extremes(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """The smallest and the largest element, in one reduction on the tensor's device; None where there are no elements.

    Both are NaN if an element is NaN. The parts of complex numbers are taken apart.
    """
    with torch._C.DisableTorchFunction():
        elements = stored_elements(tensor)
        if elements is None or not elements.numel():
            return None
        low, high = torch.aminmax(elements)
        return low, high


def stored_elements(tensor: Tensor) -> Tensor | None:
    """The elements of a tensor of any layout as a dense real one, detached; None where there are none to read."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # inside torch.vmap: the values of the whole batch
        tensor = torch._C._functorch.get_unwrapped(tensor)
    if tensor.is_meta or isinstance(tensor, FakeTensor) or torch._C._functorch.is_legacy_batchedtensor(tensor):
        return None
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):  # a part of a tensor that is spread over processes
        tensor = tensor.to_local()
    if tensor.is_nested:
        tensor = tensor.values()
    elif tensor.layout == torch.sparse_coo:
        tensor = tensor._values()
    elif tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        tensor = tensor.values()
    elif tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor  # 8-bit floats have no reductions


def contents(tensor: Tensor) -> str:
    """The contents of a tensor in words: how many elements are NaN or infinite, and the range of the others."""
    head = f"{shape_text(tensor)} {type_text(tensor)}"
    with torch._C.DisableTorchFunction():
        elements = stored_elements(tensor)
        if elements is None or not elements.numel():
            return f"{head} without elements"
        finite = elements[elements.isfinite()]
        counts = [
            f"{int(count)} {name}"
            for name, count in (
                ("NaN", elements.isnan().sum()),
                ("+inf", elements.isposinf().sum()),
                ("-inf", elements.isneginf().sum()),
            )
            if count
        ]
        among = f"{', '.join(counts)} of {elements.numel()} elements" if counts else ""
        of_finite = f"in [{finite.min().item():.4g}, {finite.max().item():.4g}]" if finite.numel() else ""
    if not among:
        return f"{head} {of_finite}"
    return f"{head} with {among}" + (f", the others {of_finite}" if of_finite else "")


class KnownValues:
    """The values of the tensors that were looked at, as long as the tensors live and nothing writes into them."""

    def __init__(self) -> None:
        self._by_id: dict[int, tuple[weakref.ref[Tensor], int, Value]] = {}

    def get(self, tensor: Tensor) -> Value | None:
        """The value of the tensor as it is now; None if it is not known."""
        found = self._by_id.get(id(tensor))
        if found is None or found[0]() is not tensor or found[1] != write_count(tensor):
            return None
        return found[2]

    def put(self, tensor: Tensor, value: Value) -> None:
        """Remember the value of the tensor as it is now."""
        self._by_id[id(tensor)] = weakref.ref(tensor), write_count(tensor), value

    def forget(self, tensor: Tensor) -> None:
        """Forget the value of the tensor, which may be written into without a trace."""
        self._by_id.pop(id(tensor), None)

    def forget_dead(self) -> None:
        """Forget the values of tensors that are no more."""
        self._by_id = {key: found for key, found in self._by_id.items() if found[0]() is not None}

    def clear(self) -> None:
        """Forget everything."""
        self._by_id.clear()


def tensors_in(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of an operation, also those in lists and tuples."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            if holds_fractions(argument):
                yield argument
        elif isinstance(argument, (tuple, list)):
            yield from tensors_in(argument)


def has_infinite_number(arguments: Iterable[Any]) -> bool:
    """Whether a plain number among the arguments is infinity or NaN."""
    return any(type(argument) is float and not math.isfinite(argument) for argument in arguments)

"""The calls of layers that are open, and the values of the tensors that flow between them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.hooks import containers
from torchpeek.hooks.backward_pass import graph_task
from torchpeek.hooks.finite.values import KnownValues, LayerCall, Operation, Value, holds_fractions
from torchpeek.hooks.process import current_thread

# A function of C, for which torch has no types.
next_node_number: Callable[[], int] = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]
"""The number that the next node of this thread's graph gets."""


class OpenCalls:
    """What the hooks of one `check_finite` share.

    It refers to no hook and, but for parameters and buffers, to no tensor of the network.

    Args:
        weights: The parameters and buffers by their `id`: "parameter" or "buffer", and the name.
    """

    def __init__(self, weights: Mapping[int, tuple[str, str]]) -> None:
        self.active = False
        self.thread = -1  # the one that opened the block; operations are seen in it alone
        self.pass_number = -1
        self.known = KnownValues()
        self.depth: Mapping[int, int] = {}  # thread -> how many calls of the model run in it
        self.hidden_in: LayerCall | None = None  # the call in which operations are not seen
        self.accepted_task = -1  # the backward pass in which an accepted layer made NaN or infinity
        self._weights = weights
        self._stacks: dict[int, list[LayerCall]] = {}
        self._call_counts: dict[tuple[int, str], int] = {}
        self._operation_numbers = count()

    def open_block(self) -> None:
        """Begin to check."""
        self.active, self.thread = True, current_thread()

    def close_block(self) -> None:
        """Stop, also for the hooks of a graph that lives on."""
        self.active = False
        self.known.clear()
        self._stacks.clear()

    @property
    def innermost(self) -> LayerCall | None:
        """The innermost open call of this thread. In the thread of a replica it may be that of the wrapper."""
        stack = self._stacks.get(current_thread()) or self._stacks.get(self.thread)
        return stack[-1] if stack else None

    @property
    def sees_operations(self) -> bool:
        """Whether the operations of this thread are seen."""
        return self.hidden_in is None and current_thread() == self.thread and graph_task() == -1

    @property
    def in_own_thread(self) -> bool:
        """Whether this is the thread that opened the block."""
        return current_thread() == self.thread

    def begin(self, layer: str, module: nn.Module, accepted: bool, arguments: Any) -> LayerCall:
        """A call of a layer begins."""
        if not layer and self.depth.get(current_thread()) == 1:  # a pass that Ctrl-C ended left its calls open
            self._stacks.pop(current_thread(), None)
        outer = self.innermost
        recomputed = graph_task() != -1
        if outer is None and not recomputed:
            self.pass_number += 1
            self._call_counts.clear()
            self.known.forget_dead()
        call = None
        if not recomputed:
            key = current_thread(), layer
            call = self._call_counts.get(key, 0)
            self._call_counts[key] = call + 1
        accepted = accepted or (outer is not None and outer.accepted)
        begun = LayerCall(layer, call, self.pass_number, accepted, weakref.ref(module), outer, next_node_number())
        begun.inputs.extend(
            self.value_of(tensor, outer) for _, tensor in containers.leaves(arguments) if holds_fractions(tensor)
        )
        self._stacks.setdefault(current_thread(), []).append(begun)
        return begun

    def end(self, layer: str) -> LayerCall | None:
        """The call of the layer ends: it is returned. None if it did not begin in this block."""
        stack = self._stacks.get(current_thread(), [])
        while stack:
            call = stack.pop()
            if call.layer == layer:
                return call
        return None

    def operation(
        self,
        function: Callable[..., Any] | None,
        call: LayerCall | None,
        inputs: Iterable[Value] = (),
        *,
        constant: bool = False,
    ) -> Operation:
        """A new operation that runs in this call."""
        return Operation(function, call, tuple(inputs), constant, next(self._operation_numbers))

    def value_of(self, tensor: Tensor, call: LayerCall | None) -> Value:
        """The value of a tensor that is used in this call; one that is not known comes from an unseen operation."""
        value = self.known.get(tensor)
        if value is None:
            value = self._unknown(tensor, call)
            self.known.put(tensor, value)
        return value

    def _unknown(self, tensor: Tensor, call: LayerCall | None) -> Value:
        source, name = self._weights.get(id(tensor)) or _own_weight(tensor, call)
        if source or isinstance(tensor, nn.Parameter):
            return Value(tensor, None, source or "parameter", name, later=True)
        if call is None:
            return Value(tensor, None, "input")
        if tensor.grad_fn is None and self.sees_operations:
            return Value(tensor, None, "constant", later=True)
        return Value(tensor, self.operation(None, call, call.inputs))

    def weight_name(self, tensor: Tensor) -> str:
        """The name of a parameter or buffer, or an empty string."""
        return self._weights.get(id(tensor), ("", ""))[1]


def _own_weight(tensor: Tensor, call: LayerCall | None) -> tuple[str, str]:
    """What a tensor is that somebody has put into the place of a weight of the layer, as `functional_call` does."""
    module = None if call is None else call.module_ref()
    if call is None or module is None:
        return "", ""
    prefix = f"{call.layer}." if call.layer else ""
    for source, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
        for name, weight in tensors.items():
            if weight is tensor:
                return source, prefix + name
    return "", ""

"""See each operation of a forward pass, and check what its backward returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from torchpeek.hooks.backward_pass import graph_task
from torchpeek.hooks.finite.calls import OpenCalls, next_node_number
from torchpeek.hooks.finite.causes import raise_for_gradients
from torchpeek.hooks.finite.values import LayerCall, Operation, Value, has_infinite_number, tensors_in


class OperationTracker(TorchFunctionMode):
    """Remembers the range of what each function of torch returns, and what it was computed from.

    Args:
        calls: The open calls.
        backward: Whether to check the gradients as well.
    """

    def __init__(self, calls: OpenCalls, *, backward: bool) -> None:
        super().__init__()
        self._calls = calls
        self._backward = backward

    def hide_in(self, call: LayerCall, module: nn.Module) -> None:
        """Leave the stack of modes while a layer runs that takes another path if it sees a mode there."""
        calls = self._calls
        if call.outer is None:
            self.show()  # a pass that Ctrl-C ended
        if isinstance(module, _WITH_FAST_PATH) and calls.sees_operations and _is_inference(module):
            stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]  # torch has no types for it
            if stack and stack[-1] is self:
                calls.hidden_in = call
                _pop_mode()  # type: ignore[no-untyped-call]  # nor for this

    def show_after(self, call: LayerCall) -> None:
        """Come back when that layer returns."""
        if self._calls.hidden_in is call:
            self.show()

    def show(self) -> None:
        """Come back to the stack of modes."""
        if self._calls.hidden_in is not None and self._calls.in_own_thread:
            self._calls.hidden_in = None
            _push_mode(self)  # type: ignore[no-untyped-call]  # torch has no types for it

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        calls = self._calls
        if func.__name__ in _READS or graph_task() != -1:
            if func in _UNCOUNTED:
                calls.known.forget(args[0])
            return func(*args, **kwargs)
        call = calls.innermost
        arguments = (*args, *kwargs.values())
        with torch._C.DisableTorchFunction():
            # Before the call, because an operation in place changes what its arguments are.
            inputs = [] if call is None else [self._input(tensor, call) for tensor in tensors_in(arguments)]
            first_node = next_node_number()
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            written = args[0] if func is torch.Tensor.__setitem__ else result
            results = list(tensors_in((written,)))
            if call is None and not any(tensor.grad_fn is not None for tensor in results):
                return result
            if call is None:
                inputs = [value for tensor in tensors_in(arguments) if (value := calls.known.get(tensor)) is not None]
            operation = calls.operation(func, call, inputs, constant=has_infinite_number(arguments))
            for tensor in results:
                self._put(tensor, operation, args[0] if args and isinstance(args[0], Tensor) else None)
                if self._backward and tensor.grad_fn is not None:
                    check_nodes(calls, tensor.grad_fn, first_node, operation)
                    if (value := calls.known.get(tensor)) is not None:
                        value.is_checked = True
        return result

    def _input(self, tensor: Tensor, call: LayerCall) -> Value:
        value = self._calls.value_of(tensor, call)
        if self._backward:
            check_unseen_node(self._calls, tensor, value, call)
        return value

    def _put(self, result: Tensor, operation: Operation, first: Tensor | None) -> None:
        known = self._calls.known
        value = known.get(result)
        if value is not None and not (result is first and result.is_inference()):
            return  # the operation returned a tensor that it did not change
        base = result._base
        if first is None or base is None:
            known.put(result, Value(result, operation))
        elif result is first:  # written through a view
            known.put(result, Value(result, operation))
            known.put(base, Value(base, operation))
        else:
            viewed = known.get(first) if first is base or first._base is base else None
            same = viewed is not None and result.numel() == first.numel() and result.dtype == first.dtype
            known.put(result, viewed.view(result) if same and viewed is not None else Value(result, operation))


# They compute in one fused call, with nested tensors, unless a mode is active.
_WITH_FAST_PATH = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


def _is_inference(module: nn.Module) -> bool:
    frozen = not any(parameter.requires_grad for parameter in module.parameters())
    return not module.training and (frozen or not torch.is_grad_enabled())


# Attributes of tensors are read by functions of these names.
_READS = frozenset(("__get__", "__set__", "__len__", "__bool__", "__repr__", "__format__", "backward", "numpy"))
# They give access to the memory of a tensor by which writes are not counted.
_UNCOUNTED = (torch.Tensor.data.__get__, torch.Tensor.numpy)  # type: ignore[attr-defined]  # a descriptor


def check_unseen_node(calls: OpenCalls, tensor: Tensor, value: Value, call: LayerCall) -> None:
    """Check what the backward of an operation returns that is not called as a function: an autograd.Function."""
    node = tensor.grad_fn
    if node is not None and not value.is_checked and node._sequence_nr() >= call.first_node:
        value.is_checked = True
        check_nodes(calls, node, node._sequence_nr(), calls.operation(None, call, call.inputs))


def check_nodes(calls: OpenCalls, last: Node, first_node: int, operation: Operation) -> None:
    """Check what the backward of each node returns, from `last` back to the node with the number `first_node`."""
    for node in _nodes_since(last, first_node):
        names = tuple(_parameter_name(calls, following, first_node) for following, _ in node.next_functions)
        node.register_hook(GradientCheck(calls, operation, node.name(), names))


def _parameter_name(calls: OpenCalls, node: Node | None, first_node: int) -> str:
    """The name of the parameter to which the node belongs, also where the operation transposed or converted it."""
    while node is not None and first_node <= node._sequence_nr() < _LEAF_NUMBER and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return calls.weight_name(node.variable) if node is not None and hasattr(node, "variable") else ""


def _nodes_since(last: Node, first_node: int) -> Iterator[Node]:
    pending, found = [last], {last}
    while pending:
        node = pending.pop()
        if not first_node <= node._sequence_nr() < _LEAF_NUMBER:
            continue
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in found:
                found.add(following)
                pending.append(following)


_LEAF_NUMBER = 2**63  # nodes that add to a leaf's gradient have a larger number


class GradientCheck:
    """The hook of a node: raises if its backward makes NaN or infinity. It keeps no tensor of the graph alive."""

    __slots__ = ("_calls", "_names", "_node", "_operation")

    def __init__(self, calls: OpenCalls, operation: Operation, node: str, names: tuple[str, ...]) -> None:
        self._calls = calls
        self._operation = operation
        self._node = node
        self._names = names  # of the parameters whose gradients the node returns

    def __call__(self, returned: tuple[Tensor | None, ...], arrived: tuple[Tensor | None, ...]) -> None:
        if not self._calls.active:
            return
        with torch._C.DisableTorchFunction():
            for index, gradient in enumerate(returned):
                if gradient is not None and not Value(gradient, None).is_finite:
                    name = self._names[index] if index < len(self._names) else ""
                    raise_for_gradients(self._calls, self._operation, self._node, name, gradient, arrived)

"""Find out what made NaN or infinity, and raise the error that says so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from torch import Tensor, nn
from torch.overrides import resolve_name

from torchpeek.errors import InputNotFinite, LayerNotFinite
from torchpeek.hooks.backward_pass import graph_task
from torchpeek.hooks.finite.calls import OpenCalls
from torchpeek.hooks.finite.values import LayerCall, Operation, Value, contents


@dataclass(frozen=True)
class _Causes:
    """Where the NaN and infinity of a value come from.

    Args:
        makers: Operations that made NaN or infinity from finite arguments.
        nan_makers: Operations that made NaN, where no argument had NaN.
        sources: Values that flowed in and are not finite.
    """

    makers: list[Operation] = field(default_factory=list)
    nan_makers: list[Operation] = field(default_factory=list)
    sources: list[Value] = field(default_factory=list)


def _causes(value: Value) -> _Causes:
    """Walk back from a value that is not finite, along those that are not finite."""
    causes, pending, visited = _Causes(), [value], {id(value)}
    while pending:
        value = pending.pop()
        operation = value.operation
        if operation is None:
            causes.sources.append(value)
            continue
        infinite = [each for each in operation.inputs if not each.is_finite]
        if not infinite and not operation.constant:
            causes.makers.append(operation)
        if value.has_nan and not any(each.has_nan for each in infinite):
            causes.nan_makers.append(operation)
        for each in infinite:
            if id(each) not in visited:
                visited.add(id(each))
                pending.append(each)
    return causes


def raise_for_output(call: LayerCall, path: str, output: Tensor, value: Value) -> None:
    """Raise the error for an output of a layer that is not finite, unless it is so on purpose.

    Args:
        call: The call of the layer.
        path: The place of the tensor in what the layer returned.
        output: The tensor.
        value: Its value.

    Raises:
        LayerNotFinite: When a layer made NaN or infinity, or its weights are not finite.
        InputNotFinite: When the input of the model was not finite.
    """
    causes = _causes(value)
    maker = min((each for each in causes.makers if not _accepts(each)), key=_number, default=None)
    nan_maker = min(causes.nan_makers, key=_number, default=None)
    inputs = [each for each in causes.sources if each.source == "input"]
    weights = [each for each in causes.sources if _is_broken_weight(each)]
    returned = f"{_described(call)} returned {contents(output)}" + (f" at path {path!r}" if path else "")
    if maker is not None:
        if maker.layer_call is None:
            raise InputNotFinite(
                _lines(
                    f"the input of the model is not finite: {_name(maker)} made it before the model was called",
                    f"{_name(maker)} got {_texts(maker.inputs)}",
                    returned,
                ),
                layer=call.layer,
                operation=_function_name(maker),
            )
        if maker.function is None and (broken := _infinite_weights(maker.layer_call)):
            raise _weights_error(maker.layer_call, broken, returned)
        raise _made(maker, "finite input", value, returned)
    if causes.makers:
        value.intended = True  # made in a layer that is excluded
    elif weights and not any(each.has_nan for each in inputs):
        raise _weights_error(call, [f"{each.source} {each.name!r}, {each}" for each in weights], returned)
    elif inputs:
        raise InputNotFinite(
            _lines(
                f"the input of the model is not finite: {'; '.join(map(str, inputs))}",
                f"the first output that is not finite: {returned}",
                "" if nan_maker is None else f"the first operation that made NaN of it: {_name(nan_maker)}",
                "Next: look at the data and at how it is prepared. A mask of -inf that hides a whole row makes a "
                "softmax return NaN",
            ),
            layer=call.layer,
            operation="" if nan_maker is None else _function_name(nan_maker),
        )
    elif nan_maker is not None and not _accepts(nan_maker):
        came = "an infinity that was put in on purpose, such as a mask that hides a whole row"
        raise _made(nan_maker, came, value, returned)
    else:
        value.intended = True


def raise_for_gradients(
    calls: OpenCalls,
    operation: Operation,
    node: str,
    parameter: str,
    gradient: Tensor,
    arrived: Sequence[Tensor | None],
) -> None:
    """Raise the error for a gradient that a node of the graph returned and that is not finite.

    Args:
        calls: The open calls.
        operation: The operation that made the node in the forward pass.
        node: The name of the node.
        parameter: The name of the parameter whose gradient it is, or an empty string.
        gradient: The gradient.
        arrived: The gradients that the node got.

    Raises:
        LayerNotFinite: When the backward of the layer made it.
        InputNotFinite: When the gradient that arrived at the model was not finite already.
    """
    call = operation.layer_call
    if call is not None and call.accepted:
        calls.accepted_task = graph_task()
        return
    came = [each for each in arrived if each is not None]
    arrived_finite = all(Value(each, None).is_finite for each in came)
    if not arrived_finite and calls.accepted_task == graph_task():
        return
    of = "" if operation.function is None else f", the backward of {_name(operation)}"
    what = f"the gradient of parameter {parameter!r}" if parameter else "the gradient"
    forward = "in the forward pass, it got" if operation.function is not None else "in the forward pass, the layer got"
    details = [
        f"{node} got the gradient {'; '.join(map(contents, came))}",
        f"{node} returned {what} {contents(gradient)}",
        f"{forward} {_texts(operation.inputs)}" if operation.inputs else "",
    ]
    if call is not None and arrived_finite:
        raise LayerNotFinite(
            _lines(
                f"the backward pass of {_described(call)} made {_kind(gradient)} from a finite gradient, in {node}{of}"
                f"{_counted(call)}",
                *details,
                "Next: keep the argument away from the values at which the derivative is infinite, before torch.where "
                "and not after it. The gradients of a GradScaler may overflow: check_finite(model, backward=False)",
            ),
            layer=call.layer,
            call=call.call,
            pass_number=call.pass_number,
            operation=_function_name(operation),
            node=node,
            direction="backward",
        )
    if arrived_finite:
        cause = f"{node}{of} made it after the model, as in the loss"
    else:
        cause = (
            "no operation that was checked made it. It was given to backward(), or a hook or an operation outside the "
            "block returned it, or the sum over several uses of one tensor overflowed"
        )
    at = "outside the model" if call is None else f"of {_described(call)}"
    raise InputNotFinite(
        _lines(f"the gradient that arrives at {node} {at} is not finite: {cause}", *details)
        if not arrived_finite
        else _lines(f"the gradient that arrives at the model is not finite: {cause}", *details),
        layer="" if call is None else call.layer,
        operation=_function_name(operation),
        node=node,
        direction="backward",
    )


def _made(maker: Operation, came: str, value: Value, returned: str) -> LayerNotFinite:
    call = maker.layer_call
    assert call is not None
    module = call.module_ref()
    return LayerNotFinite(
        _lines(
            f"{_described(call)} made {'NaN' if value.has_nan else 'infinity'} from {came}, in {_name(maker)}"
            f"{_counted(call)}",
            "" if maker.function is None else f"{_name(maker)} got {_texts(maker.inputs)}",
            f"the layer got {_texts(call.inputs)}" if call.inputs else "",
            returned,
            "" if module is None else _weights_text(module),
            f"Next: tp.record(model, {call.layer!r}, inputs=True) shows the values"
            + (f"; check_finite(model, exclude={call.layer!r}) accepts them" if call.layer else ""),
        ),
        layer=call.layer,
        call=call.call,
        pass_number=call.pass_number,
        operation=_function_name(maker),
    )


def _weights_error(call: LayerCall, weights: Iterable[str], returned: str) -> LayerNotFinite:
    return LayerNotFinite(
        _lines(
            f"the weights of {_described(call)} are not finite: {'; '.join(weights)}{_counted(call)}",
            returned,
            "Next: an earlier step of the training, or the file that was loaded, broke them; check_finite around the "
            "whole training finds the first step",
        ),
        layer=call.layer,
        call=call.call,
        pass_number=call.pass_number,
    )


def _lines(*lines: str) -> str:
    return "\n  ".join(filter(None, lines))


def _number(operation: Operation) -> int:
    return operation.number


def _kind(tensor: Tensor) -> str:
    return "NaN" if Value(tensor, None).has_nan else "infinity"


def _is_broken_weight(value: Value) -> bool:
    """Whether it is a mistake: always in a parameter, in a buffer but for a mask of -inf, NaN in a constant."""
    low, high = value.range
    if value.source == "buffer":
        return not (low == -math.inf and high < math.inf)
    return value.source == "parameter" or (value.source == "constant" and value.has_nan)


def _infinite_weights(call: LayerCall) -> list[str]:
    module = call.module_ref()
    if module is None:
        return []
    named = [*module.named_parameters(), *module.named_buffers()]
    return [f"{name!r}, {contents(weight)}" for name, weight in named if not Value(weight, None).is_finite]


def _weights_text(module: nn.Module) -> str:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    texts = [f"{name} {contents(weight)}" for name, weight in islice(own, 4) if weight.numel()]
    return f"its weights: {'; '.join(texts)}" if texts else ""


def _accepts(operation: Operation) -> bool:
    return operation.layer_call is not None and operation.layer_call.accepted


def _described(call: LayerCall) -> str:
    module = call.module_ref()
    name = "the model" if not call.layer else f"layer {call.layer!r}"
    return name if module is None else f"{name} ({type(module).__name__})"


def _counted(call: LayerCall) -> str:
    which = "the second run of a checkpointed part" if call.call is None else f"call {call.call}"
    return f" ({which} in forward pass {call.pass_number}, counted from 0)"


def _name(operation: Operation) -> str:
    return _function_name(operation) or "an operation that cannot be seen"


def _function_name(operation: Operation) -> str:
    function = operation.function
    return "" if function is None else resolve_name(function) or f"{function.__module__}.{function.__qualname__}"


def _texts(values: Sequence[Value]) -> str:
    shown = [f"{each.source} {each.name!r} {each}" if each.name else str(each) for each in values[:6]]
    return "; ".join(shown) + ("; ..." if len(values) > 6 else "") if shown else "no tensors"

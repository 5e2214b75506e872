"""check_finite(): raise at the first layer that makes NaN or infinity from finite numbers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from torchpeek.hooks import containers
from torchpeek.hooks.checked_model import checked_model
from torchpeek.hooks.finite.calls import OpenCalls
from torchpeek.hooks.finite.causes import raise_for_output
from torchpeek.hooks.finite.operations import OperationTracker, check_nodes, check_unseen_node
from torchpeek.hooks.finite.values import Value, holds_fractions
from torchpeek.hooks.function_modes import active
from torchpeek.hooks.model_calls import ModelCalls
from torchpeek.hooks.process import eagerly
from torchpeek.hooks.select import Selection, named_layers, select_modules
from torchpeek.hooks.temporary_hooks import attached, takes_hooks
from torchpeek.hooks.with_block import opened_by_with
from torchpeek.keywords import checked_keywords
from torchpeek.undo import Undo, undone


@checked_keywords
@opened_by_with("with tp.check_finite(model):")
def check_finite(model: nn.Module, *, exclude: Selection | None = None, backward: bool = True) -> Iterator[None]:
    """Raise at the first layer that makes NaN or infinity from finite numbers, forward or backward.

    The error says which layer and which call of it, which operation inside the layer, what came in, and whether the
    weights are finite. It is another error if the input of the model was not finite already.

    Only what a layer returns is checked. Infinity inside a layer, such as the scores that a mask sets to -inf before a
    softmax, is no error. Nor is infinity that is returned and that was put in on purpose, by a number or a constant: as
    in `scores.masked_fill(mask, -inf)`. `exclude` accepts what else is meant.

    In the backward pass each operation is checked: what its backward returns must be finite if the gradient that
    arrived is. The gradients of a `GradScaler` may overflow, and it skips these steps itself; use `backward=False`
    there. The backward pass has to run inside the block.

    The model computes the same results, bit by bit, and is left as it was. There is one reduction for each
    result of an operation. The device is waited for once for each tensor that flows between two layers, and once for
    each gradient. Large layers on a CPU hardly slow down; a network of small layers takes about five times as long, and
    on a GPU the waiting counts. Use it to find a mistake, not for a whole training.

    Args:
        model: The model.
        exclude: Layers, selected as in `record`, whose NaN and infinity are accepted, also those of the layers inside.
        backward: Whether to check the gradients as well.

    Yields:
        None.

    Raises:
        LayerNotFinite: When a layer makes NaN or infinity, or its weights are not finite. The error has `layer`,
            `call`, `pass_number`, `operation`, `node` and `direction`.
        InputNotFinite: When the input of the model, or the gradient that arrives at it, is not finite already.
        LayerNotFound: When `exclude` matches no layer.
        InputError: When `model` is no module that takes hooks.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> with tp.check_finite(model):
        ...     loss = model(torch.rand(4, 2)).log().mean()
        >>> loss.shape
        torch.Size([])
    """
    checked_model(model)
    named = named_layers(model)
    accepted = set() if exclude is None else {*map(id, select_modules(model, exclude, named=named).values())}
    weights = {id(parameter): ("parameter", name) for name, parameter in model.named_parameters()}
    weights |= {id(buffer): ("buffer", name) for name, buffer in model.named_buffers()}
    model_calls, calls = ModelCalls(model), OpenCalls(weights)
    calls.depth = model_calls.depth
    tracker = OperationTracker(calls, backward=backward)
    modules: dict[int, tuple[str, nn.Module]] = {}
    for name, module in named.items():
        if takes_hooks(module):
            modules.setdefault(id(module), (name, module))
    called = [
        (module, partial(_begin, calls, tracker, name, id(module) in accepted)) for name, module in modules.values()
    ]
    ended = [(module, partial(_end, calls, tracker, name, backward)) for name, module in modules.values()]
    with _checked(model, model_calls, calls, tracker, called, ended):
        yield


@undone
def _checked(
    undo: Undo,
    model: nn.Module,
    model_calls: ModelCalls,
    calls: OpenCalls,
    tracker: OperationTracker,
    called: list[tuple[nn.Module, Any]],
    ended: list[tuple[nn.Module, Any]],
) -> None:
    undo.enter(eagerly(model.modules(), "checked"))
    undo.enter(attached(called=called, ended=ended, every_thread=True, calls=model_calls))
    undo.enter(active(tracker))
    undo.push(calls.close_block)
    calls.open_block()


def _begin(
    calls: OpenCalls,
    tracker: OperationTracker,
    layer: str,
    accepted: bool,
    module: nn.Module,
    args: Any,
    kwargs: dict[str, Any] | None = None,
) -> None:
    """The pre-hook of a layer: its call begins."""
    with torch._C.DisableTorchFunction():
        tracker.hide_in(calls.begin(layer, module, accepted, (args, kwargs or {})), module)


def _end(
    calls: OpenCalls, tracker: OperationTracker, layer: str, backward: bool, module: nn.Module, args: Any, output: Any
) -> None:
    """The forward hook of a layer, also where it raises: its call ends, and what it returned is checked."""
    with torch._C.DisableTorchFunction():
        call = calls.end(layer)
        if call is None:
            return
        tracker.show_after(call)
        for path, tensor in containers.leaves(output):
            if not holds_fractions(tensor):
                continue
            value = calls.known.get(tensor)
            if value is None:
                value = Value(tensor, calls.operation(None, call, call.inputs))
            elif tensor.is_inference():  # it has no version, so it may have been written into by way of a view
                was_finite = value.is_finite
                value = Value(tensor, value.operation, value.source, value.name)
                if was_finite and not value.is_finite:
                    value.operation = calls.operation(None, call, call.inputs)
            calls.known.put(tensor, value)
            if backward and tensor.grad_fn is not None:
                if calls.sees_operations:
                    check_unseen_node(calls, tensor, value, call)
                else:
                    check_nodes(calls, tensor.grad_fn, call.first_node, calls.operation(None, call, call.inputs))
            if value.is_finite:
                value.found_finite()
            elif not call.accepted and not value.intended:
                raise_for_output(call, path, tensor, value)

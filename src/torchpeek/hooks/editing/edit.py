"""edit(): replace the inputs or outputs of layers, or the gradients that flow back through them, inside a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.errors import GradUnavailable, InputError, notify
from torchpeek.hooks import containers
from torchpeek.hooks.checked_model import checked_model
from torchpeek.hooks.editing.pass_calls import PassCalls
from torchpeek.hooks.gradient_tap import GradientTap, tap_gradient
from torchpeek.hooks.process import eagerly
from torchpeek.hooks.select import Selection, select, why_not_fired
from torchpeek.hooks.selected_layer import SelectedLayer
from torchpeek.hooks.temporary_hooks import attached
from torchpeek.interrupts import uninterrupted
from torchpeek.keywords import checked_keywords

Edits: TypeAlias = Mapping[Any, Callable[[Any], Any]]
"""Layer selection -> a function of the current value that returns the value to use instead."""


@checked_keywords
@contextmanager
def edit(
    model: nn.Module, *, outputs: Edits | None = None, inputs: Edits | None = None, gradients: Edits | None = None
) -> Iterator[None]:
    """Run `model` with changed activations or gradients inside the block; afterwards it is as before.

    Each argument is a dict from layer selections to functions. What a function returns is used instead of its argument,
    and must be in the same type of container. `tp.edits` has ready-made functions: zero, scale, patch, at.

    Nested blocks change inputs and outputs in the order in which they were opened, so a recording that is opened inside
    an edit sees the changed values. Gradients flow the other way, and must flow back inside the block.

    A selection that ends with a number in brackets edits that call of each pass of `model` alone: "act[0]" is the
    first. A Notice says so if the model ran but an edited layer, or call, did not.

    Args:
        model: The model.
        outputs: The functions get what the layer returned.
        inputs: The functions get the positional input of the layer, a tuple if there are several, or a dict if all
            inputs are given by keyword.
        gradients: The functions get a copy of the gradient with respect to the output, for each tensor of the output.

    Yields:
        None.

    Raises:
        LayerNotFound: When a selection matches no layer.
        InputError: When an argument is not such a dict, a call is counted from the end, or a function returns None or
            another type of container.
        GradUnavailable: When gradients are edited, but no gradient can flow back through the layer. Also when one call
            is edited of a layer in a checkpointed part, where calls cannot be counted.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> with tp.edit(model, outputs={"0": lambda output: -output}):
        ...     model(torch.tensor([-1.0, 2.0]))
        tensor([1., 0.])
    """
    checked_model(model)
    _check(outputs, inputs, gradients)
    fired: set[str] = set()  # the layers and calls that ran
    calls = PassCalls()
    gradient_taps: list[GradientTap] = []
    of_outputs, of_inputs, of_gradients = (_by_layer(model, edits) for edits in (outputs, inputs, gradients))
    every_layer = [layer for layer, _ in (*of_outputs, *of_inputs, *of_gradients)]

    def hooks(edits: _EditsByLayer, hook: Callable[..., Any]) -> list[_Hook]:
        return [(layer.module, calls.at(layer, partial(hook, layer.name, change, fired))) for layer, change in edits]

    called = hooks(of_inputs, _change_inputs)
    returned = hooks(of_outputs, _change_output) + hooks(of_gradients, partial(_change_gradient, gradient_taps))
    returned.append((model, calls.complete_pass))
    ended: list[_Hook] = []
    if any(layer.call is not None for layer in every_layer):  # only then are the calls of a pass counted
        called.insert(0, (model, calls.begin_pass))
        ended.append((model, calls.end_pass))
    try:
        with (
            eagerly(model.modules(), _notify_compiled),
            attached(returned, called=called, ended=ended, every_thread=True),
        ):
            yield
    finally:
        with uninterrupted():
            for tap in gradient_taps:
                tap.remove()
    for layer in every_layer:
        if calls.completed and layer.name not in fired:
            notify(f"an edit did nothing: {why_not_fired(model, layer, calls.most(layer))}")


def _notify_compiled() -> None:
    notify("the model is compiled, and compiled code ignores hooks; it runs eagerly while it is edited")


_Hook: TypeAlias = tuple[nn.Module, Callable[..., Any]]
_EditsByLayer: TypeAlias = list[tuple[SelectedLayer, Callable[[Any], Any]]]


def _by_layer(model: nn.Module, edits: Edits | None) -> _EditsByLayer:
    rows = [
        (layer, change)
        for selection, change in (edits or {}).items()
        for layer in select(model, _as_selection(selection)).values()
    ]
    for layer, _ in rows:
        if layer.counts_from_end:
            raise InputError(
                f"{layer.name!r} is counted from the end, and while a pass runs nobody knows which call is the last. "
                f"Count from the start: {layer.path + '[0]'!r} is the first; torchpeek layers shows how many there are"
            )
    return rows


def _as_selection(key: Any) -> Selection:
    return list(key) if isinstance(key, tuple) else key  # a list cannot be the key of a dict


def _change_inputs(
    name: str,
    change: Callable[[Any], Any],
    fired: set[str],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    fired.add(name)
    kwargs = kwargs or {}
    if kwargs and not args:
        return args, _changed(name, change, kwargs)
    if len(args) == 1:
        return (_changed(name, change, args[0]),), kwargs
    return _changed(name, change, args), kwargs


def _change_output(
    name: str, change: Callable[[Any], Any], fired: set[str], module: nn.Module, args: Any, output: Any
) -> Any:
    fired.add(name)
    return _changed(name, change, output)


def _change_gradient(
    gradient_taps: list[GradientTap],
    name: str,
    change: Callable[[Any], Any],
    fired: set[str],
    module: nn.Module,
    args: Any,
    output: Any,
) -> Any:
    fired.add(name)
    if not torch.is_grad_enabled():
        raise GradUnavailable(
            f"layer {name!r} ran under torch.no_grad() or inference_mode(), so no gradient can flow back through it; "
            "run the model with gradients enabled"
        )
    tap_count = 0

    def tapped(path: str, tensor: Tensor) -> Tensor:
        nonlocal tap_count
        if not tensor.requires_grad:
            return tensor
        tap_count += 1

        def hook(gradient: Tensor) -> Tensor:
            result: Tensor = _changed(name, change, gradient.clone())
            return result

        tap, view = tap_gradient(tensor, hook, hook_base=True)
        gradient_taps.append(tap)
        return view

    tapped_output = containers.mapped(output, tapped, once_each=True)
    if not tap_count:
        raise GradUnavailable(
            f"no output of layer {name!r} needs a gradient, because the model is frozen up to this layer; call "
            "requires_grad_() on its input"
        )
    return tapped_output


def _changed(name: str, change: Callable[[Any], Any], original: Any) -> Any:
    try:
        changed = change(original)
    except Exception as error:
        error.add_note(f"in the edit of layer {name!r}")
        raise
    if changed is None:
        raise InputError(
            f"the edit of layer {name!r} returned None; return the value to use, also if it was changed in place"
        )
    if not containers.same_container(changed, original):
        raise InputError(
            f"the edit of layer {name!r} got a {type(original).__name__} and returned a {type(changed).__name__}; "
            "return the same type of container, with as many members: tp.edits.at(path, ...) changes one of them"
        )
    return containers.as_container(changed, original)


def _check(*arguments: Edits | None) -> None:
    for edits in arguments:
        if edits is not None and not (isinstance(edits, Mapping) and all(map(callable, edits.values()))):
            raise InputError(f"edit takes a dict from a layer selection to a function; got {edits!r}")

"""edit(): what a layer is given, what it returns and what flows back through it, changed for the while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchpeek.errors import GradUnavailable, InputError, notify
from torchpeek.hooks import containers
from torchpeek.hooks.gradient_tap import GradientTap, tap_gradient
from torchpeek.hooks.process import eagerly
from torchpeek.hooks.select import Selection, select, why_not_fired
from torchpeek.hooks.temporary_hooks import attached
from torchpeek.interrupts import uninterrupted

Edits: TypeAlias = Mapping[Any, Callable[[Any], Any]]
"""Layer selection -> function of what is there, whose result is used instead."""


@contextmanager
def edit(
    model: nn.Module, *, outputs: Edits | None = None, inputs: Edits | None = None, gradients: Edits | None = None
) -> Iterator[None]:
    """Inside the block, run `model` with these changes; nothing of them stays.

    The functions of `outputs` are given what the layer returned; those of `inputs` its one positional argument, a tuple
    of them where there are several, or a dict where all are given by name; those of `gradients` the gradient with
    respect to the layer's output, a tensor each, which they may write into. What a function returns is used instead, in
    the same kind of container. tp.edits has ready-made ones: zero, scale, patch, at.

    Of several blocks, inputs and outputs meet the one that was opened first, first: a recording that is opened inside
    sees what the edit made. Gradients flow the other way, and meet it last: they have to flow back inside the block.

    Raises LayerNotFound; an exception of a function's own comes through with the layer's name added to it. A Notice
    says so where the model ran, but the layer was not called.
    """
    _check(outputs, inputs, gradients)
    fired: set[str] = set()  # of the layers, and "" for the model

    def hooks(edits: Edits | None, hook: Callable[..., Any]) -> list[tuple[nn.Module, Callable[..., Any]]]:
        return [(module, partial(hook, name, change, fired)) for name, module, change in _resolved(model, edits)]

    taps: list[GradientTap] = []
    before = hooks(inputs, _change_inputs)
    after = hooks(outputs, _change_output) + hooks(gradients, partial(_change_gradient, taps))
    after.append((model, lambda module, args, output: fired.add("")))
    try:
        with eagerly(model.modules(), _say_eager), attached(after, called=before, every_thread=True):
            yield
    finally:
        with uninterrupted():
            for tap in taps:
                tap.remove()
    for name, module, _ in (each for edits in (outputs, inputs, gradients) for each in _resolved(model, edits)):
        if "" in fired and name not in fired:
            notify(f"an edit did nothing: {why_not_fired(model, name, module)}")


def _say_eager() -> None:
    notify("the model is compiled, and so ignores hooks; it runs eagerly while it is edited")


def _resolved(model: nn.Module, edits: Edits | None) -> list[tuple[str, nn.Module, Callable[[Any], Any]]]:
    return [
        (name, module, change)
        for selection, change in (edits or {}).items()
        for name, module in select(model, _as_selection(selection)).items()
    ]


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
        return args, _applied(name, change, kwargs)
    if len(args) == 1:
        return (_applied(name, change, args[0]),), kwargs
    return _applied(name, change, args), kwargs


def _change_output(
    name: str, change: Callable[[Any], Any], fired: set[str], module: nn.Module, args: Any, output: Any
) -> Any:
    fired.add(name)
    return _applied(name, change, output)


def _change_gradient(
    taps: list[GradientTap],
    name: str,
    change: Callable[[Any], Any],
    fired: set[str],
    module: nn.Module,
    args: Any,
    output: Any,
) -> Any:
    fired.add(name)
    if not torch.is_grad_enabled():
        raise GradUnavailable(f"layer {name!r} ran under torch.no_grad(), so no gradient will flow back through it")
    tap_count = 0

    def tapped(path: str, tensor: Tensor) -> Tensor:
        nonlocal tap_count
        if not tensor.requires_grad:
            return tensor
        tap_count += 1

        def hook(gradient: Tensor) -> Tensor:
            result: Tensor = _applied(name, change, gradient.clone())
            return result

        tap, view = tap_gradient(tensor, hook, hook_base=True)
        taps.append(tap)
        return view

    changed = containers.mapped(output, tapped)
    if not tap_count:
        raise GradUnavailable(f"nothing that layer {name!r} returned needs a gradient: the model is frozen up to there")
    return changed


def _applied(name: str, change: Callable[[Any], Any], original: Any) -> Any:
    try:
        changed = change(original)
    except Exception as error:
        error.add_note(f"in the edit of layer {name!r}")
        raise
    if changed is None:
        raise InputError(
            f"the edit of layer {name!r} returned None; return what is to be used, also if changed in place"
        )
    if not containers.same_container(changed, original):
        raise InputError(
            f"the edit of layer {name!r} was given a {type(original).__name__} and returned a "
            f"{type(changed).__name__}; return the same kind "
            "of container, with as many members: tp.edits.at(path, ...) changes one of them"
        )
    return containers.as_container(changed, original)


def _check(*edits: Edits | None) -> None:
    for each in edits:
        if each is not None and not (isinstance(each, Mapping) and all(map(callable, each.values()))):
            raise InputError(f"an edit is a dict from a layer selection to a function; got {each!r}")

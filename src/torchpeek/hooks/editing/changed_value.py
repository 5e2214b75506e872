"""Call a function of the user for the value to use instead, and check what it returns."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor

from torchpeek.errors import InputError, listed_names, type_shown
from torchpeek.hooks import containers
from torchpeek.hooks.frames import frames_from, variable
from torchpeek.tensor_formats import is_jagged, shape_sizes, shape_text


def changed_value(layer: str, change: Callable[[Any], Any], original: Any, hint: str = "") -> Any:
    """What the edit of a layer makes of a value: of the same type if that is a tensor or a container.

    Args:
        layer: The name of the layer, for error texts.
        change: The function.
        original: The value.
        hint: The end of the error text if the function returns another type.

    Raises:
        InputError: When the function returns something else, or calls the layer that it edits.
    """
    try:
        changed = change(original)
    except Exception as error:
        _explain(error, f"layer {layer!r}", change)
        raise
    if type(changed) is Tensor and type(original) is Tensor:  # the common case, fast
        return changed
    return _checked(layer, changed, original, hint)


Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the keyword inputs of a layer."""


def inputs_changer(layer: str, change: Callable[..., Any]) -> Callable[[tuple[Any, ...], dict[str, Any]], Inputs]:
    """A function that makes the new inputs of a layer from its inputs, with a function of the user.

    The function of the user gets the positional input, a tuple if there is not exactly one, or the dict of the keyword
    inputs if there are no others. If it needs two arguments, it gets both, and returns both.
    """
    return partial(_changed_inputs_and_keywords if _needs_two(change) else _changed_inputs, layer, change)


def _changed_inputs(layer: str, change: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    if len(args) == 1:
        return (changed_value(layer, change, args[0], _KEYWORDS_HINT if kwargs else ""),), kwargs
    if args or not kwargs:
        return changed_value(layer, change, args, _KEYWORDS_HINT if kwargs else ""), kwargs
    return args, changed_value(layer, change, kwargs)


_KEYWORDS_HINT = (
    ". A function that needs two arguments, f(args, kwargs), also gets the keyword inputs, and returns both"
)


def _changed_inputs_and_keywords(
    layer: str, change: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Inputs:
    positional = args[0] if len(args) == 1 else args
    try:
        pair = change(positional, dict(kwargs))
    except Exception as error:
        _explain(error, f"layer {layer!r}", change)
        raise
    if not (isinstance(pair, tuple) and len(pair) == 2 and _is_keywords(pair[1])):
        raise InputError(
            f"the edit of layer {layer!r} takes the arguments (args, kwargs) and returned {_described(pair)}; allowed: "
            "the pair (args, kwargs) of the new positional input and the dict of the new keyword inputs"
        )
    changed = _checked(layer, pair[0], positional)
    return (changed,) if len(args) == 1 else changed, dict(pair[1])


def _needs_two(change: Callable[..., Any]) -> bool:
    """Whether the function has two positional parameters without defaults."""
    try:
        parameters = inspect.signature(change).parameters.values()
    except (TypeError, ValueError):  # some functions that are not written in Python
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is each.empty for each in parameters) == 2


def changed_gradient(name: str, change: Callable[[Tensor], Any], gradient: Tensor) -> Tensor:
    """What the edit of a gradient makes of a copy of it: a tensor of the same shape, dtype and device.

    Args:
        name: What the gradient is of, for error texts.
        change: The function.
        gradient: The gradient.

    Raises:
        InputError: When the function returns something else.
    """
    if gradient.is_nested and not is_jagged(gradient):
        raise InputError(
            f"the gradient of {name} is a nested tensor of {shape_text(gradient)} in the strided layout, which torch "
            "cannot replace; allowed: dense ones, and nested ones of layout=torch.jagged"
        )
    try:
        changed = change(gradient.clone())
    except Exception as error:
        _explain(error, f"the gradient of {name}", change)
        raise
    if not isinstance(changed, Tensor):
        raise InputError(
            f"the edit of the gradient of {name} returned {_described(changed)}; return the gradient to use, also if "
            "it was changed in place"
        )
    for property_name, got, needed in (
        ("shape", shape_sizes(changed), shape_sizes(gradient)),
        ("dtype", changed.dtype, gradient.dtype),
        ("device", changed.device, gradient.device),
    ):
        if got != needed:
            raise InputError(
                f"the edit of the gradient of {name} returned a tensor of {property_name} {got}; allowed: {needed}, as "
                "the gradient has"
            )
    return changed


def tensor_paths(value: Any) -> list[str]:
    """The paths of the tensors in a container, as `tp.edits.at` takes them."""
    return [path for path, _ in containers.leaves(value)]


def _explain(error: Exception, name: str, change: Callable[..., Any]) -> None:
    """Add to an error of the function which edit it is. Raises InputError where the function called its own layer."""
    if isinstance(error, RecursionError):
        callers = frames_from(sys._getframe(2))
        if any(frame.f_globals is globals() and variable(frame, "change") is change for frame in callers):
            raise InputError(
                f"the edit of {name} calls that layer, so it would never end. Next: compute what it needs before the "
                "block, or with copy.deepcopy(model)"
            ) from None
    note = f"in the edit of {name}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _checked(layer: str, changed: Any, original: Any, hint: str = "") -> Any:
    if changed is None and original is not None:
        raise InputError(
            f"the edit of layer {layer!r} returned None; return the value to use, also if it was changed in place"
        )
    if isinstance(original, Tensor) and not isinstance(changed, Tensor):
        raise InputError(
            f"the edit of layer {layer!r} got {type_shown(original)} and returned {_described(changed)}; allowed: "
            f"a tensor{hint}"
        )
    if not containers.same_container(changed, original):
        raise InputError(
            f"the edit of layer {layer!r} got {_described(original)} and returned {_described(changed)}; return the "
            f"same type of container, with as many members{_how_to_change_one(original)}{hint}"
        )
    return containers.as_container(changed, original)


def _described(value: Any) -> str:
    """A value, for an error text: its type, and where the tensors in it are."""
    if isinstance(value, Tensor):
        return f"{type_shown(value)} of shape {shape_text(value)}"
    paths = tensor_paths(value)
    return type_shown(value) + (f" with tensors at {listed_names(paths)}" if paths else "")


def _how_to_change_one(value: Any) -> str:
    paths = tensor_paths(value)
    return f": tp.edits.at({paths[0]!r}, ...) changes one of them" if paths else ""


def _is_keywords(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)

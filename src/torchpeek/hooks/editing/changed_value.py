"""Call a function of the user for the value to use instead, and check what it returns."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from torchpeek.errors import InputError, listed_names
from torchpeek.hooks import containers


def changed_value(layer: str, change: Callable[[Any], Any], original: Any) -> Any:
    """What the edit of a layer makes of a value: of the same type if that is a tensor or a container.

    Raises:
        InputError: When the function returns something else, or calls the layer that it edits.
    """
    changed = _called(f"layer {layer!r}", change, original)
    return _checked(layer, changed, original)


def changed_inputs(
    layer: str, change: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the edit of a layer makes of its inputs.

    A function of one argument gets the positional input, a tuple if there are several, or the dict of the keyword
    inputs if there are no others. A function that needs two arguments gets the positional input and that dict, and
    returns both.

    Raises:
        InputError: When the function returns something else, or calls the layer that it edits.
    """
    positional = args[0] if len(args) == 1 else args
    if takes_keywords(change):
        pair = _called(f"layer {layer!r}", change, positional, dict(kwargs))
        if not (isinstance(pair, tuple) and len(pair) == 2 and _is_keywords(pair[1])):
            raise InputError(
                f"the edit of layer {layer!r} takes the arguments (args, kwargs) and returned {_described(pair)}; "
                "allowed: the pair (args, kwargs) of the new positional input and the dict of the new keyword inputs"
            )
        changed, kwargs = _checked(layer, pair[0], positional), dict(pair[1])
    elif args or not kwargs:
        changed = changed_value(layer, change, positional)
    else:
        return args, changed_value(layer, change, kwargs)
    return (changed,) if len(args) == 1 else changed, kwargs


def changed_gradient(name: str, change: Callable[[Tensor], Any], gradient: Tensor) -> Tensor:
    """What the edit of a gradient makes of a copy of it: a tensor of the same shape, dtype and device.

    Args:
        name: What the gradient is of, for error texts.
        change: The function.
        gradient: The gradient.

    Raises:
        InputError: When the function returns something else.
    """
    changed = _called(f"the gradient of {name}", change, gradient.clone())
    if not isinstance(changed, Tensor):
        raise InputError(
            f"the edit of the gradient of {name} returned {_described(changed)}; return the gradient to use, also if "
            "it was changed in place"
        )
    for property_name in ("shape", "dtype", "device"):
        got, needed = getattr(changed, property_name), getattr(gradient, property_name)
        if got != needed:
            raise InputError(
                f"the edit of the gradient of {name} returned a tensor of {property_name} {_plain(got)}; allowed: "
                f"{_plain(needed)}, as the gradient has"
            )
    return changed


def takes_keywords(change: Callable[..., Any]) -> bool:
    """Whether a function for inputs needs two positional arguments: it gets the keyword inputs as the second."""
    try:
        parameters = inspect.signature(change).parameters.values()
    except (TypeError, ValueError):  # some functions that are not written in Python
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is each.empty for each in parameters) == 2


def tensor_paths(value: Any) -> list[str]:
    """The paths of the tensors in a container, as `tp.edits.at` takes them."""
    return [path for path, _ in containers.leaves(value)]


def _called(name: str, change: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return change(*arguments)
    except RecursionError:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not (frame.f_code is _called.__code__ and frame.f_locals["change"] is change):
            frame = frame.f_back
        if frame is None:
            raise
        raise InputError(
            f"the edit of {name} calls that layer, so it would never end. Next: compute what it needs before the "
            "block, or with copy.deepcopy(model)"
        ) from None
    except Exception as error:
        note = f"in the edit of {name}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def _checked(layer: str, changed: Any, original: Any) -> Any:
    if changed is None and original is not None:
        raise InputError(
            f"the edit of layer {layer!r} returned None; return the value to use, also if it was changed in place"
        )
    if isinstance(original, Tensor) and not isinstance(changed, Tensor):
        raise InputError(
            f"the edit of layer {layer!r} got a {type(original).__name__} and returned {_described(changed)}; allowed: "
            "a tensor. A function for inputs that needs two arguments, f(args, kwargs), also gets the keyword inputs"
        )
    if not containers.same_container(changed, original):
        raise InputError(
            f"the edit of layer {layer!r} got {_described(original)} and returned {_described(changed)}; return the "
            f"same type of container, with the same members{_how_to_change_one(original)}"
        )
    return containers.as_container(changed, original)


def _described(value: Any) -> str:
    """A value, for an error text: its type, and where the tensors in it are."""
    if isinstance(value, Tensor):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    paths = tensor_paths(value)
    return f"a {type(value).__name__}" + (f" with tensors at {listed_names(paths)}" if paths else "")


def _how_to_change_one(value: Any) -> str:
    paths = tensor_paths(value)
    return f": tp.edits.at({paths[0]!r}, ...) changes one of them" if paths else ""


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, torch.Size) else value


def _is_keywords(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)

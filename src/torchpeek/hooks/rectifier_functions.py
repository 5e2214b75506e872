"""Observe rectifiers that modules call as functions, such as `F.relu(x)` or `x.clamp(min=0)`: no hook sees them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchpeek.hooks.function_modes import active
from torchpeek.hooks.temporary_hooks import attached, takes_hooks
from torchpeek.undo import Undo, undone

OnRectifier: TypeAlias = Callable[[str, str, Tensor], None]
"""Called as `on_rectifier(module, function, result)`, with the names of the module that runs and of the function."""


def _argument(place: int, name: str, default: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _always(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return True


def _is_zero(place: int, name: str, default: Any = None) -> Callable[[tuple[Any, ...], dict[str, Any]], bool]:
    """Whether the argument is the number zero."""

    def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return _is_all_zero(_argument(place, name, default, args, kwargs))

    return check


def _has_zeros(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether one of two tensors is zero everywhere."""
    both = [*args, *kwargs.values()]
    return len(both) == 2 and all(isinstance(each, Tensor) for each in both) and any(map(_is_all_zero, both))


def _is_all_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        try:
            return value.numel() > 0 and not bool(value.any())
        except RuntimeError:  # tensors without readable values, as inside vmap
            return False
    return isinstance(value, (int, float)) and value == 0


# Functions whose result may be exactly zero over a range of inputs, with their names and when that holds.
_RECTIFIERS: dict[Any, tuple[str, Callable[[tuple[Any, ...], dict[str, Any]], bool]]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), ("relu", _always)),
    F.relu6: ("relu6", _always),
    F.hardswish: ("hardswish", _always),
    F.hardsigmoid: ("hardsigmoid", _always),
    **dict.fromkeys((F.hardshrink, torch.hardshrink, Tensor.hardshrink), ("hardshrink", _always)),
    F.softshrink: ("softshrink", _always),
    **dict.fromkeys((F.threshold, torch.threshold, torch.threshold_), ("threshold", _is_zero(2, "value"))),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), ("hardtanh", _is_zero(1, "min_val", -1.0))),
    **dict.fromkeys(
        (torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_, torch.clip, torch.clip_, Tensor.clip, Tensor.clip_),
        ("clamp", _is_zero(1, "min")),
    ),
    **dict.fromkeys(
        (torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_), ("clamp", _is_zero(1, "min"))
    ),
    **dict.fromkeys((torch.maximum, Tensor.maximum, torch.max, Tensor.max, torch.fmax), ("maximum", _has_zeros)),
}


@undone
def rectifiers_observed(undo: Undo, model: nn.Module, on_rectifier: OnRectifier) -> None:
    """Call `on_rectifier` after each rectifier that a module of the model calls as a function, in this thread.

    Args:
        undo: What ends this.
        model: The model.
        on_rectifier: Called with the name of the innermost module that runs, the name of the function and its result.
    """
    running: list[str] = []

    def begin(name: str, *hook_arguments: Any) -> None:
        running.append(name)

    def end(*hook_arguments: Any) -> None:
        if running:
            running.pop()

    modules = [(name, module) for name, module in model.named_modules() if takes_hooks(module)]
    called = [(module, partial(begin, name)) for name, module in modules]
    undo.enter(attached(called=called, ended=[(module, end) for _, module in modules]))
    undo.enter(active(_RectifierMode(running, on_rectifier)))


class _RectifierMode(TorchFunctionMode):
    def __init__(self, running: list[str], on_rectifier: OnRectifier) -> None:
        super().__init__()
        self._running = running
        self._on_rectifier = on_rectifier

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        rectifier = _RECTIFIERS.get(func)
        if rectifier is not None and self._running and isinstance(result, Tensor) and result.is_floating_point():
            name, applies = rectifier
            if applies(args, kwargs):
                self._on_rectifier(self._running[-1], name, result)
        return result

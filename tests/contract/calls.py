"""A right call of each public function, method and class: the one in the example of its docstring."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

import torchpeek as tp
from run_examples import names_for_runs


@dataclass(frozen=True)
class PublicCall:
    """A call that works: of a function with its arguments by name. `rest` are the arguments of *args."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    rest: tuple[Any, ...] = ()

    def __call__(self, **changed: Any) -> Any:
        parameters = inspect.signature(self.function).parameters.values()
        arguments = self.arguments | changed
        by_position = [
            each.name
            for each in parameters
            if each.kind is each.POSITIONAL_ONLY or (self.rest and each.kind is each.POSITIONAL_OR_KEYWORD)
        ]
        return self.function(
            *(arguments.pop(name) for name in by_position if name in arguments), *self.rest, **arguments
        )


class _Recorded:
    """Stands for torchpeek, or a module of it, in an example, and keeps the first call of one function."""

    def __init__(self, module: ModuleType, path: list[str], calls: list[PublicCall]) -> None:
        self._module, self._path, self._calls = module, path, calls

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if not self._path or name != self._path[0]:
            return value
        if isinstance(value, ModuleType):
            return _Recorded(value, self._path[1:], self._calls)
        return recording(value, self._calls)


def recording(function: Callable[..., Any], calls: list[PublicCall]) -> Callable[..., Any]:
    """The function, which keeps its calls."""

    def called(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(function).bind(*args, **kwargs)
        arguments, rest = {}, ()
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                rest = value
            elif kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= value
            else:
                arguments[name] = value
        calls.append(PublicCall(function, arguments, rest))
        return function(*args, **kwargs)

    return called


def example_call(name: str, value: Any, folder: Path) -> PublicCall | None:
    """The first call of this public name in the example of its docstring; None where the example does not call it."""
    path = name.split(".")
    calls: list[PublicCall] = []
    module: Any = tp
    owner = None
    for part in path[:-1]:
        module = getattr(module, part)
        owner = module if isinstance(module, type) else None
    names: dict[str, Any] = {"torch": torch, "nn": nn, "tp": tp, "np": np, "folder": folder}
    if str(getattr(value, "__module__", "")).startswith("torchpeek.runs."):
        names |= names_for_runs(folder)
    definition = None
    if owner is not None:
        definition = vars(owner)[path[-1]]
        function = getattr(definition, "__func__", definition)
        wrapped: Any = recording(function, calls)
        setattr(
            owner,
            path[-1],
            type(definition)(wrapped) if isinstance(definition, (classmethod, staticmethod)) else wrapped,
        )
    else:
        names["tp"] = _Recorded(tp, path, calls)
    source = "".join(each.source for each in doctest.DocTestParser().get_examples(inspect.getdoc(value) or ""))
    try:
        exec(compile(source, name, "exec"), names)
    finally:
        if owner is not None:
            setattr(owner, path[-1], definition)
    return calls[0] if calls else None

"""Say which arguments the `forward` of a model takes, where a call has others."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import nn

from torchpeek.engine.model_call import ModelCall
from torchpeek.errors import closest, listed_names


def without_forward(model: nn.Module) -> str | None:
    """Why a model cannot be called that has no `forward`, such as an nn.ModuleList; None where it has one."""
    if type(model).forward is not nn.Module.forward or "forward" in vars(model):
        return None
    members = listed_names(model._modules, most=3)
    next_step = f"give one of its members ({members}), or" if members else "give"
    return (
        f"model is of type {type(model).__name__}, which has no forward; allowed: a module that can be called. Next: "
        f"{next_step} a module whose forward computes the scores"
    )


def wrong_arguments(model: nn.Module, call: ModelCall) -> str | None:
    """What is wrong with the arguments by the signature of the model's `forward`; None where they fit."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None
    args, kwargs = call.args_and_kwargs()
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        names = list(signature.parameters)
        wrong = str(error)
    else:
        return None
    required = [
        name
        for name, each in signature.parameters.items()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    any_name = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
    unknown = [name for name in kwargs if name not in names and not any_name]
    if unknown:
        wrong = f"it has no argument {unknown[0]!r}{closest(unknown[0], names)}"
    takes = f"{type(model).__name__}.forward({', '.join(names)})"
    passed = f"{len(args)} positional" + (f" and {', '.join(map(repr, kwargs))}" if kwargs else "")
    instead = _arguments_to_give(signature, required, only_unknown=bool(kwargs) and not args and [*kwargs] == unknown)
    return f"{takes} was called with {passed}: {wrong}. Next: {instead}"


def _arguments_to_give(signature: inspect.Signature, required: Sequence[str], *, only_unknown: bool) -> str:
    """What to write in place of arguments that do not fit."""
    positional = [name for name in required if signature.parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    named = [f"{name!r}: {name}" for name in required if name not in positional]
    args = f"({', '.join(positional)}{',' if len(positional) == 1 else ''})"
    arguments = f"tp.Arguments({args}, {{{', '.join(named)}}})" if named else f"tp.Arguments({args})"
    if len(required) == 1 and positional and only_unknown:
        [name] = required
        return (
            f"the keys of a dict are names of arguments, {{{name!r}: {name}}}; if {name!r} is itself a dict, "
            "tp.Arguments((inputs,))"
        )
    return arguments if len(required) > 1 or named else "give the arguments that forward takes"


def call_with(model: nn.Module, count: int) -> str | None:
    """The tp.Arguments for `count` positional arguments; None where the model's `forward` does not take so many."""
    try:
        signature = inspect.signature(model.forward)
        names = list(signature.bind(*range(count)).arguments)
    except (TypeError, ValueError):
        return None
    several = any(each.kind is each.VAR_POSITIONAL for each in signature.parameters.values())
    return None if several else f"tp.Arguments(({', '.join(names)}))"

"""Which layers are meant: by name, glob, regular expression, type, predicate or module."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import TypeAlias, Union

import torch
from torch import nn

from torchpeek.errors import InputError, LayerNotFound, closest

Selection: TypeAlias = Union[
    str,
    "re.Pattern[str]",
    type[nn.Module],
    nn.Module,
    Callable[[str, nn.Module], bool],
    Iterable["Selection"],
]


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """As `named_modules(remove_duplicate=False)`, in half the time."""
    matches: dict[str, nn.Module] = {}

    def walk(name: str, module: nn.Module) -> None:
        matches[name] = module
        prefix = f"{name}." if name else ""
        for child, member in module._modules.items():
            if member is not None:
                walk(prefix + child, member)

    walk("", model)
    return matches


def select(
    model: nn.Module,
    selection: Selection,
    *,
    exclude: Selection | None = None,
    named: dict[str, nn.Module] | None = None,
) -> dict[str, nn.Module]:
    """The layers of `model` that `selection` names, in the order of `named_modules`, each once.

    A string is an exact name, or else a glob whose `*` also crosses dots. A compiled regular expression is searched
    for in the name. A type selects its instances, a predicate is called as `predicate(name, module)`, a module
    selects itself, and a list of these selects what any of them does. A module registered under several names goes by
    the first, unless another is asked for exactly. `named` are the model's `named_layers`, if they are known already.

    Raises LayerNotFound, with the closest names, for any part that matches nothing.
    """
    named = named_layers(model) if named is None else named
    names = _matching(model, named, selection)
    if exclude is not None:
        excluded = {id(named[name]) for name in _matching(model, named, exclude)}
        names = {name for name in names if id(named[name]) not in excluded}
        if not names:
            raise LayerNotFound(f"every layer that {selection!r} selects in {type(model).__name__} is excluded again")
    selected = {name: module for name, module in named.items() if name in names}
    for name, module in selected.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(f"layer {name!r} is scripted or traced, and takes no hooks; use what it was made from")
    if len(set(map(id, selected.values()))) == len(selected):
        return selected
    first = {id(module): name for name, module in reversed(selected.items())}
    return {name: module for name, module in selected.items() if first[id(module)] == name}


def _matching(model: nn.Module, named: dict[str, nn.Module], selection: Selection) -> set[str]:
    match selection:
        case str() if selection in named:
            return {selection}
        case str():
            matches = {name for name in named if name and fnmatchcase(name, selection)}
        case re.Pattern():
            matches = {name for name in named if name and selection.search(name)}
        case nn.Module():
            # One name is enough: the others are the same module.
            matches = {name for name, module in named.items() if module is selection}
            matches = {next(name for name in named if name in matches)} if matches else matches
        case type():
            matches = {name for name, module in named.items() if name and isinstance(module, selection)}
        case _ if callable(selection):
            matches = {name for name, module in named.items() if name and selection(name, module)}
        case Iterable():
            parts = list(selection)
            if not parts:
                raise InputError("the layer selection is an empty list; name at least one layer")
            matches = {part for part in parts if isinstance(part, str) and part in named}
            rest = (part for part in parts if not (isinstance(part, str) and part in matches))
            return matches.union(*(_matching(model, named, part) for part in rest))
        case _:
            raise InputError(
                "a layer selection is a name, glob, regular expression, type, predicate or module, or a list of "
                f"these; got {type(selection).__name__}"
            )
    if not matches:
        raise LayerNotFound(_not_found(model, named, selection))
    return matches


def _not_found(model: nn.Module, named: dict[str, nn.Module], selection: object) -> str:
    names = [name for name in named if name]
    shown = repr(selection.pattern) if isinstance(selection, re.Pattern) else repr(selection)
    if isinstance(selection, type):
        shown = f"of type {selection.__name__}"
    elif isinstance(selection, nn.Module):
        shown = f"that is this {type(selection).__name__} (is it from another copy of the model?)"
    suggestion = closest(selection, names) if isinstance(selection, str) else ""
    return (
        f"no layer {shown} in {type(model).__name__}{suggestion}. It has {len(names)} layers; torchpeek layers, or "
        "tp.layers(model), lists them."
    )


def why_not_fired(model: nn.Module, name: str, module: nn.Module) -> str:
    """Why a layer, which was not called in a pass, was not."""
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        reason = f"it is a {type(module).__name__}, a container that is never called; choose one of its members"
    elif getattr(parent, "fused_attn", False) and not any(True for _ in module.parameters()):
        reason = "its parent computes attention in one fused call, past its parts; set its fused_attn to False, if so"
    elif isinstance(parent, nn.MultiheadAttention):
        reason = "its parent, a MultiheadAttention, uses its weights directly; choose the parent"
    else:
        reason = (
            "forward goes another way, or uses its weights or its .forward directly, or what ran was not this model "
            "but its torch.compile; choose the layer around it, or the compiled model"
        )
    return f"layer {name!r} ({type(module).__name__}) was not called in the pass: {reason}"


def is_sharded(module: nn.Module) -> bool:
    """Whether its parameters are spread over several processes by FSDP."""
    return any(base.__name__ in ("FullyShardedDataParallel", "FSDPModule") for base in type(module).__mro__)

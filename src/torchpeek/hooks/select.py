"""Select layers of a model by name, glob, regular expression, type, predicate or module."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import TypeAlias, Union

import torch
from torch import nn

from torchpeek.errors import InputError, LayerNotFound, closest, listed_names, notify
from torchpeek.hooks.temporary_hooks import takes_hooks

Selection: TypeAlias = Union[
    str,
    "re.Pattern[str]",
    type[nn.Module],
    nn.Module,
    Callable[[str, nn.Module], bool],
    Iterable["Selection"],
]


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of `model` by name, as `named_modules(remove_duplicate=False)` gives them, in half the time."""
    named: dict[str, nn.Module] = {}

    def walk(name: str, module: nn.Module) -> None:
        named[name] = module
        prefix = f"{name}." if name else ""
        for child, member in module._modules.items():
            if member is not None:
                walk(prefix + child, member)

    walk("", model)
    return named


def select(
    model: nn.Module,
    selection: Selection,
    *,
    exclude: Selection | None = None,
    named: dict[str, nn.Module] | None = None,
) -> dict[str, nn.Module]:
    """Select layers of a model.

    Args:
        model: The model.
        selection: A string is an exact name, or else a glob whose `*` crosses dots. A compiled regular expression is
            searched for in the names. A type selects its instances. A predicate is called as
            `predicate(name, module)`. A module selects itself. A list of these selects what any of its members
            selects.
        exclude: A selection of layers to leave out.
        named: The result of `named_layers(model)`, if the caller has it already.

    Returns:
        The layers by name, in the order of `named_modules`, each module once. A module with several names has the
        first of those that are selected.

    Raises:
        LayerNotFound: When a part of the selection matches no layer. The message has the closest names.
        InputError: When the selection has another type or is an empty list. Also when it names a scripted layer, or
            selects no others.
    """
    named = named_layers(model) if named is None else named
    names = _matching(model, named, selection)
    if exclude is not None:
        excluded = {id(named[name]) for name in _matching(model, named, exclude)}
        names = {name for name in names if id(named[name]) not in excluded}
        if not names:
            raise LayerNotFound(
                f"every layer of {type(model).__name__} that {selection!r} selects is excluded by {exclude!r}"
            )
    selected = {name: module for name, module in named.items() if name in names}
    if scripted := [name for name, module in selected.items() if not takes_hooks(module)]:
        _leave_out(selected, scripted, selection)
    if len(set(map(id, selected.values()))) == len(selected):
        return selected
    first = {id(module): name for name, module in reversed(selected.items())}
    return {name: module for name, module in selected.items() if first[id(module)] == name}


def _leave_out(selected: dict[str, nn.Module], scripted: list[str], selection: Selection) -> None:
    """Remove the scripted layers from those that are selected. Raises InputError where the user means one of them."""
    parts = list(selection) if isinstance(selection, (list, tuple, set, frozenset)) else [selection]
    meant = [name for name in scripted if any(part == name or part is selected[name] for part in parts)]
    if meant or len(scripted) == len(selected):
        raise InputError(
            f"layer {(meant or scripted)[0]!r} is scripted or traced, so it takes no hooks; use the module it was made "
            "from, or a layer around or beside it"
        )
    notify(f"scripted or traced layers take no hooks and are left out: {listed_names(scripted)}")
    for name in scripted:
        del selected[name]


def _matching(model: nn.Module, named: dict[str, nn.Module], selection: Selection) -> set[str]:
    match selection:
        case str() if selection in named:
            return {selection}
        case str():
            matches = {name for name in named if name and fnmatchcase(name, selection)}
        case re.Pattern():
            matches = {name for name in named if name and selection.search(name)}
        case nn.Module():
            # One name is enough: all names lead to the same module.
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
                "a layer selection is a name, glob, regular expression, type, predicate or module, or a list of these; "
                f" got {type(selection).__name__}"
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
    """The likely reason why a layer was not called in a forward pass."""
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        reason = f"it is a {type(module).__name__}, a container that is never called; choose one of its members"
    elif getattr(parent, "fused_attn", False) and not any(True for _ in module.parameters()):
        reason = "its parent may compute attention in one fused call, without its parts; set its fused_attn to False"
    elif isinstance(parent, nn.MultiheadAttention):
        reason = "its parent, a MultiheadAttention, uses its weights directly; choose the parent"
    elif isinstance(model, torch.fx.GraphModule) and all(
        node.target != name for node in model.graph.nodes if node.op == "call_module"
    ):
        reason = (
            "the model is a graph that computes without calling this layer, as program.module() of torch.export gives "
            "it; give torch.export.unflatten(program), or the module that was exported"
        )
    else:
        reason = (
            "forward takes a path without it, or uses its weights or its .forward directly, or the model that ran was "
            "another one, the result of torch.compile; choose the layer around it, or the compiled model"
        )
    return f"layer {name!r} ({type(module).__name__}) was not called in the forward pass: {reason}"

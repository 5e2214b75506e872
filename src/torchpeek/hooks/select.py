"""Select layers of a model, or single calls of them, by name, glob, regular expression, type, predicate or module."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import translate
from typing import TypeAlias, Union

import torch
from torch import Tensor, nn

from torchpeek.errors import AmbiguousCall, InputError, LayerNotFound, closest, listed_names, notify, type_shown
from torchpeek.hooks.selected_layer import NO_SETS, SelectedLayer, call_name, no_such_call, split_call
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
    _add_layers(named, "", model)
    return named


def _add_layers(named: dict[str, nn.Module], name: str, module: nn.Module) -> None:
    # A function of its own: a nested one would refer to itself, and keep the model alive until Python collects cycles.
    named[name] = module
    prefix = f"{name}." if name else ""
    for child, member in module._modules.items():
        if member is not None:
            _add_layers(named, prefix + child, member)


def select_modules(
    model: nn.Module,
    selection: Selection,
    *,
    exclude: Selection | None = None,
    named: dict[str, nn.Module] | None = None,
) -> dict[str, nn.Module]:
    """Select layers of a model, for what a layer has apart from its calls, such as its parameters.

    Args:
        model: The model.
        selection: As for `select`, without calls.
        exclude: A selection of layers to leave out.
        named: The result of `named_layers(model)`, if the caller has it already.

    Returns:
        The layers by name, in the order of `named_modules`, each module once. A module with several names has the
        first of those that are selected.

    Raises:
        LayerNotFound: When a part of the selection matches no layer. The message has the closest names.
        InputError: When the selection has another type, is an empty list, or selects a call or a scripted layer.
    """
    selected = select(model, selection, exclude=exclude, named=named)
    if of_calls := [name for name, layer in selected.items() if layer.call is not None]:
        raise InputError(
            f"{listed_names(of_calls)} selects a single call, but here a layer counts with all its calls; name the "
            f"layer alone, {selected[of_calls[0]].path!r}"
        )
    return {name: layer.module for name, layer in selected.items()}


def select(
    model: nn.Module,
    selection: Selection,
    *,
    exclude: Selection | None = None,
    named: dict[str, nn.Module] | None = None,
) -> dict[str, SelectedLayer]:
    """Select layers of a model, or single calls of them.

    Args:
        model: The model.
        selection: A string is an exact name, or else a glob whose `*` crosses dots and whose `?` is one character. A
            number in brackets at the end of either selects one call: "act[0]" is the first in a pass, "act[-1]" the
            last. A compiled regular expression is searched for in the names. A type selects its instances. A predicate
            is called as `predicate(name, module)`. A module selects itself. A list of these selects what any of its
            members selects; so does a slice of an nn.ModuleList or nn.Sequential.
        exclude: A selection of layers to leave out, with all their calls.
        named: The result of `named_layers(model)`, if the caller has it already.

    Returns:
        The layers by name, in the order of `named_modules`, then of the calls as they were selected; each call of a
        module once. A module with several names has the first of those that are selected.

    Raises:
        LayerNotFound: When a part of the selection matches no layer. The message has the closest names.
        InputError: When the selection has another type or is an empty list. Also when it names a scripted layer, or
            selects no others.
    """
    named = named_layers(model) if named is None else named
    pairs = _matching(model, named, selection)  # (name, call), without duplicates
    if exclude is not None:
        without = select_modules(model, exclude, named=named).values()
        excluded = set(map(id, without))
        pairs = {(name, call): None for name, call in pairs if id(named[name]) not in excluded}
        if not pairs:
            raise LayerNotFound(
                f"every layer of {type(model).__name__} that {selection!r} selects is excluded by {exclude!r}"
            )
    calls_by_name: dict[str, list[int | None]] = {}
    for name, call in pairs:
        calls_by_name.setdefault(name, []).append(call)
    selected: dict[str, SelectedLayer] = {}
    found: set[tuple[int, int | None]] = set()
    for name, module in named.items():
        for call in calls_by_name.get(name, ()):
            if (id(module), call) not in found:
                found.add((id(module), call))
                selected[call_name(name, call)] = SelectedLayer(name, module, call)
    if scripted := [name for name, layer in selected.items() if not takes_hooks(layer.module)]:
        _leave_out(selected, scripted, selection)
    return selected


def _leave_out(selected: dict[str, SelectedLayer], scripted: list[str], selection: Selection) -> None:
    """Remove the scripted layers from those that are selected. Raises InputError where the user means one of them."""
    parts = list(selection) if isinstance(selection, (list, tuple, set, frozenset)) else [selection]
    parts += [member for part in parts for member in _listed({}, part)]
    meant = [name for name in scripted if any(part == name or part is selected[name].module for part in parts)]
    if meant or len(scripted) == len(selected):
        raise InputError(
            f"layer {(meant or scripted)[0]!r} is scripted or traced, so it takes no hooks; use the module it was made "
            "from, or a layer around or beside it"
        )
    notify(f"scripted or traced layers take no hooks and are left out: {listed_names(scripted)}")
    for name in scripted:
        del selected[name]


def layer_at(model: nn.Module, name: str) -> SelectedLayer:
    """The one layer or call of this name.

    Raises:
        LayerNotFound: When there is none.
        AmbiguousCall: When the name is a glob that selects several.
    """
    path, text = name, None
    module = _module_at(model, path)
    if module is None:
        path, text = split_call(name)
        module = _module_at(model, path) if path and re.fullmatch(_NUMBER, text or "") else None
    if module is not None and takes_hooks(module):  # without a walk through the model, which takes time
        return SelectedLayer(path, module, None if text is None else int(text))
    selected = select(model, name)
    if len(selected) > 1:
        raise AmbiguousCall(f"{name!r} selects {len(selected)} layers ({listed_names(selected)}); name one")
    return next(iter(selected.values()))


def has_layer(model: nn.Module, name: str) -> bool:
    """Whether the model has the layer of this name, which may end with a call."""
    return any(_module_at(model, path) is not None for path in (name, split_call(name)[0]))


def _module_at(model: nn.Module, name: str) -> nn.Module | None:
    """The module of exactly this name; None where there is none."""
    module: nn.Module | None = model
    for part in name.split(".") if name else ():
        module = None if module is None else module._modules.get(part)
    return module


_NUMBER = r"-?\d+"  # of a call


_Pairs: TypeAlias = dict[tuple[str, int | None], None]
"""(name, call) of what is selected, in order."""


def _matching(model: nn.Module, named: dict[str, nn.Module], selection: Selection) -> _Pairs:
    match selection:
        case str():
            return _matching_name(model, named, selection)
        case re.Pattern():
            matches = [name for name in named if name and selection.search(name)]
        case nn.Module() if members := _listed(named, selection):
            return _matching(model, named, members)
        case nn.Module():
            # One name is enough: all names lead to the same module.
            matches = [name for name, module in named.items() if module is selection][:1]
        case type():
            matches = [name for name, module in named.items() if name and isinstance(module, selection)]
        case _ if callable(selection):
            matches = [name for name, module in named.items() if name and selection(name, module)]
        case Iterable() if not isinstance(selection, Tensor):
            parts = list(selection)
            if not parts:
                raise InputError("the layer selection is an empty list; name at least one layer")
            pairs: _Pairs = {}
            try:
                for part in parts:
                    pairs |= _matching(model, named, part)
            except RecursionError:
                raise InputError("the layer selection is a list in a list, too many times; give one list") from None
            return pairs
        case _:
            raise InputError(
                "a layer selection is a name, glob, regular expression, type, predicate or module, or a list of these; "
                f"got {type(selection).__name__}"
            )
    if not matches:
        raise LayerNotFound(_not_found(model, named, selection))
    return dict.fromkeys((name, None) for name in matches)


def _listed(named: dict[str, nn.Module], selection: Selection) -> list[nn.Module]:
    """The members of a container that is no layer, such as a slice of an nn.ModuleList, which is a new one."""
    if not isinstance(selection, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
        return []
    return [] if any(module is selection for module in named.values()) else list(selection.children())


def _matching_name(model: nn.Module, named: dict[str, nn.Module], selection: str) -> _Pairs:
    """An exact name wins over a call, and both over a glob."""
    if selection in named:
        return {(selection, None): None}
    layer, text = split_call(selection)
    call = None
    if text is not None:
        if re.fullmatch(_NUMBER, text) is None:
            raise LayerNotFound(
                f"no layer {selection!r} in {type(model).__name__}: brackets at the end of a name choose a call, such "
                f"as {layer + '[0]'!r} or {layer + '[-1]'!r}; got [{text}]. {NO_SETS}"
            )
        call = int(text)
    if layer and layer in named:
        return {(layer, call): None}
    matching = re.compile(translate(layer.replace("[", "[[]"))).match  # a bracket stands for itself
    matches = [name for name in named if name and matching(name)]
    if not matches:
        hint = "" if call is None else f" The [{text}] at the end of {selection!r} is a call."
        hint += f" {NO_SETS}" if "[" in selection else ""
        raise LayerNotFound(_not_found(model, named, layer) + hint)
    return dict.fromkeys((name, call) for name in matches)


def _not_found(model: nn.Module, named: dict[str, nn.Module], selection: object) -> str:
    names = [name for name in named if name]
    shown = repr(selection.pattern) if isinstance(selection, re.Pattern) else repr(selection)
    if isinstance(selection, type):
        shown = f"of type {selection.__name__}"
    elif isinstance(selection, nn.Module):
        empty = isinstance(selection, (nn.ModuleList, nn.Sequential, nn.ModuleDict)) and not len(selection)
        shown = f"that is this {type(selection).__name__} "
        shown += "(it has no members)" if empty else "(is it from another copy of the model?)"
    suggestion = closest(selection, names) if isinstance(selection, str) else ""
    return (
        f"no layer {shown} in {type(model).__name__}{suggestion}. It has {len(names)} layers; torchpeek layers, or "
        "tp.layers(model), lists them."
    )


def _is_fused(parent: nn.Module, module: nn.Module) -> bool:
    return bool(getattr(parent, "fused_attn", False)) and not any(True for _ in module.parameters())


def _is_read_by_attention(parent: nn.Module, module: nn.Module) -> bool:
    return isinstance(parent, nn.MultiheadAttention)


# Whether a parent is known to compute without calling the module, and what to say then.
_REASONS_OF_PARENTS: tuple[tuple[Callable[[nn.Module, nn.Module], bool], str], ...] = (
    # the attention of timm
    (_is_fused, "its parent may compute attention in one fused call, without its parts; set its fused_attn to False"),
    (_is_read_by_attention, "its parent, a MultiheadAttention, uses its weights directly; choose the parent"),
)


def why_not_fired(model: nn.Module, layer: SelectedLayer, calls: int = 0, reason: str | None = None) -> str:
    """The likely reason why a layer, or a call of it, did not take place.

    Args:
        model: The model.
        layer: The layer or call.
        calls: How often the pass called the layer.
        reason: The reason, if nothing about the layer itself is one. By default `forward` is.
    """
    if calls:
        return no_such_call(layer, calls)
    name, module = layer.path, layer.module
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        reason = f"it is {type_shown(module)}, a container that is never called; choose one of its members"
    elif because_of_parent := next((text for is_so, text in _REASONS_OF_PARENTS if is_so(parent, module)), None):
        reason = because_of_parent
    elif isinstance(model, torch.fx.GraphModule) and all(
        node.target != name for node in model.graph.nodes if node.op == "call_module"
    ):
        reason = (
            "the model is a graph that computes without calling this layer, as program.module() of torch.export gives "
            "it; give torch.export.unflatten(program), or the module that was exported"
        )
    elif reason is None:
        reason = (
            "forward takes a path without it, or uses its weights or its .forward directly, or the model that ran was "
            "another one, the result of torch.compile; choose the layer around it, or the compiled model"
        )
    return f"layer {name!r} ({type(module).__name__}) was not called: {reason}"

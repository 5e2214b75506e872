"""Tensors inside of containers: found by path, or changed with the container kept."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from torchpeek.errors import InputError, closest


def leaves(value: Any, kind: type[Any] = Tensor, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and leaf of each leaf of that kind, in order: `"0.k"` is entry k of the first member.

    Opens tuples, lists, mappings and dataclasses, and so named tuples, torch's return types and ModelOutput. The path
    of a leaf without a container is empty.
    """
    if isinstance(value, kind):
        yield path, value
        return
    for key, member in _members(value):
        yield from leaves(member, kind, _joined(path, key))


def mapped(
    value: Any, change: Callable[[str, Any], Any], kind: type[Any] = Tensor, *, only: bool = False, path: str = ""
) -> Any:
    """The same container with `change(path, leaf)` for each leaf of that kind; the very same one if nothing changed.

    What is neither a leaf nor a container stays, or is None if `only` the leaves are wanted.
    """
    if isinstance(value, kind):
        return change(path, value)
    members = _members(value)
    if not members:
        return None if only and not _is_container(value) else value
    changed = [mapped(member, change, kind, only=only, path=_joined(path, key)) for key, member in members]
    if all(new is old for new, (_, old) in zip(changed, members, strict=True)):
        return value
    return _rebuilt(value, [key for key, _ in members], changed)


def at(value: Any, path: str) -> Any:
    """What is at `path`. Raises InputError that lists the paths there are."""
    here = value
    for key in path.split(".") if path else []:
        members = {str(name): member for name, member in _members(here)}
        if key not in members:
            paths = [name for name, _ in leaves(value)]
            raise InputError(f"nothing at {path!r}{closest(path, paths)}; there are tensors at {paths}")
        here = members[key]
    return here


def with_part(value: Any, path: str, part: Any) -> Any:
    """The same container with `part` at `path`."""
    if not path:
        return part
    key, _, rest = path.partition(".")
    members = _members(value)
    at(value, key)  # raises if there is none
    changed = [with_part(member, rest, part) if str(name) == key else member for name, member in members]
    return _rebuilt(value, [name for name, _ in members], changed)


def same_container(value: Any, given: Any) -> bool:
    """Whether one can take the other's place: both are no container, or have members of the same names."""
    if not _is_container(given):
        return not _is_container(value)
    return _is_container(value) and [key for key, _ in _members(value)] == [key for key, _ in _members(given)]


def as_container(value: Any, given: Any) -> Any:
    """The members of `value` in a container like `given`: a list for a tuple becomes one."""
    if type(value) is type(given) or not _is_container(given):
        return value
    return _rebuilt(given, [key for key, _ in _members(given)], [member for _, member in _members(value)])


def _joined(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _is_container(value: Any) -> bool:
    return isinstance(value, (Mapping, tuple, list)) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )


def _members(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def _rebuilt(value: Any, keys: list[Any], members: list[Any]) -> Any:
    if isinstance(value, tuple):
        # A named tuple, or a plain one, or what torch.max returns.
        return value._make(members) if hasattr(value, "_make") else type(value)(members)
    if isinstance(value, list):
        return type(value)(members)
    if isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        return dict(zip(keys, members, strict=True))
    # A copy, so that whatever else the container carries stays: a dict's order and default, other attributes.
    result = copy.copy(value)
    for key, member in zip(keys, members, strict=True):
        if isinstance(value, Mapping):
            result[key] = member
        else:
            object.__setattr__(result, key, member)
    return result

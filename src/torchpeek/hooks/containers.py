"""Tensors inside of containers: found by path, or changed with the container kept."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

from torch import Tensor

from torchpeek.errors import InputError, closest


def leaves(value: Any, leaf_type: type[Any] = Tensor, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and leaf of each leaf of that type, in order: `"0.k"` is entry k of the first member.

    Opens tuples, lists, mappings and dataclasses, and so named tuples, torch's return types and ModelOutput. The path
    of a leaf without a container is empty.
    """
    if isinstance(value, leaf_type):
        yield path, value
        return
    for key, member in _members(value):
        yield from leaves(member, leaf_type, _joined(path, key))


def mapped(
    value: Any,
    change: Callable[[str, Any], Any],
    leaf_type: type[Any] = Tensor,
    *,
    leaves_only: bool = False,
    path: str = "",
) -> Any:
    """The same container with `change(path, leaf)` for each leaf of that type; the very same one if nothing changed.

    What is neither a leaf nor a container stays, or is None if `only` the leaves are wanted.
    """
    if isinstance(value, leaf_type):
        return change(path, value)
    members = _members(value)
    if not members:
        return None if leaves_only and not _is_container(value) else value
    changed = [
        mapped(member, change, leaf_type, leaves_only=leaves_only, path=_joined(path, key)) for key, member in members
    ]
    if all(new is old for new, (_, old) in zip(changed, members, strict=True)):
        return value
    return _rebuilt(value, [key for key, _ in members], changed)


def at(value: Any, path: str) -> Any:
    """What is at `path`. Raises InputError that lists the paths there are."""
    here, rest = value, path
    while rest:
        key, here, rest = _step(here, rest)
        if key is None:
            paths = [name for name, _ in leaves(value)]
            raise InputError(f"nothing at {path!r}{closest(path, paths)}; there are tensors at {paths}")
    return here


def with_part(value: Any, path: str, part: Any) -> Any:
    """The same container with `part` at `path`."""
    if not path:
        return part
    at(value, path)  # raises if there is none
    key, member, rest = _step(value, path)
    changed = [with_part(member, rest, part) if name == key else other for name, other in _members(value)]
    return _rebuilt(value, [name for name, _ in _members(value)], changed)


def _step(value: Any, path: str) -> tuple[Any, Any, str]:
    """The key that the path begins with, the longest of them as keys may have dots, its member, and the rest."""
    candidates = [
        (key, member)
        for key, member in _members(value)
        if path == str(key) or (path.startswith(f"{key}.") and _members(member))
    ]
    if not candidates:
        return None, None, ""
    key, member = max(candidates, key=lambda pair: len(str(pair[0])))
    return key, member, path[len(str(key)) + 1 :]


def same_container(value: Any, original: Any) -> bool:
    """Whether one can take the other's place: both are no container, or have members of the same names."""
    if not _is_container(original):
        return not _is_container(value)
    return _is_container(value) and {key for key, _ in _members(value)} == {key for key, _ in _members(original)}


def as_container(value: Any, original: Any) -> Any:
    """The members of `value` in a container like `original`: a list for a tuple becomes one."""
    if type(value) is type(original) or not _is_container(original):
        return value
    members = dict(_members(value))
    keys = [key for key, _ in _members(original)]
    return _rebuilt(original, keys, [members[key] for key in keys])


def _joined(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _is_container(value: Any) -> bool:
    return isinstance(value, (*_MAPPINGS, tuple, list)) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )


# Those that can be made again with other members. A mapping that is a window on somebody's own dict cannot.
_MAPPINGS = (dict, UserDict, MappingProxyType)


def _members(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, _MAPPINGS):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    return []


def _rebuilt(value: Any, keys: list[Any], members: list[Any]) -> Any:
    if isinstance(value, tuple):
        if hasattr(value, "n_sequence_fields"):  # what torch.max returns
            return type(value)(members)
        rebuilt = tuple.__new__(type(value), members)  # also of one whose own __new__ wants something else
        rebuilt.__dict__.update(value.__dict__) if hasattr(value, "__dict__") else None
        return rebuilt
    if isinstance(value, MappingProxyType):
        return MappingProxyType(dict(zip(keys, members, strict=True)))
    # A copy, so that whatever else the container carries stays: a dict's order and default, other attributes.
    result = copy.copy(value)
    if isinstance(value, list):
        result[:] = members
        return result
    for key, member in zip(keys, members, strict=True):
        if isinstance(value, _MAPPINGS):
            result[key] = member
        else:
            object.__setattr__(result, key, member)
    return result

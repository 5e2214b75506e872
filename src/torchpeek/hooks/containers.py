"""Read and replace tensors inside containers: tuples, lists, mappings and dataclasses, nested as deep as you like."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from torchpeek.errors import InputError, closest


def leaves(value: Any, leaf_type: type[Any] = Tensor, path: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the leaves of a container, in order, each with its path.

    Containers are tuples, lists, mappings and dataclasses. This includes named tuples, torch's return types and the
    ModelOutput of transformers.

    Args:
        value: A container, or a leaf.
        leaf_type: The type of the leaves.
        path: The path of `value`, put before the paths of its members.

    Yields:
        Path and leaf. `"0.k"` is the path of entry k of the first member; a leaf without a container has path `""`.
    """
    if isinstance(value, leaf_type):
        yield path, value
        return
    for key, member in _members(value):
        yield from leaves(member, leaf_type, _joined(path, key))


def spellings(value: Any, leaf_type: type[Any] = Tensor) -> dict[str, tuple[str, ...]]:
    """Path -> all spellings of that path, itself first, for each leaf of a container.

    The path names a member of a named tuple by its position and a member of a dataclass by its name. The other spelling
    is its name in the named tuple, or its position in the dataclass: `{"0": ("0", "logits"), "1": ("1", "features")}`.
    """
    if isinstance(value, leaf_type):
        return {"": ("",)}
    found: dict[str, tuple[str, ...]] = {}
    members = _members(value)
    for (key, member), other in zip(members, _other_keys(value, len(members)), strict=True):
        for path, endings in spellings(member, leaf_type).items():
            keys = [key] if other is None else [key, other]
            found[_joined(str(key), path) if path else str(key)] = tuple(
                _joined(str(each), ending) if ending else str(each) for each in keys for ending in endings
            )
    return found


def _other_keys(value: Any, count: int) -> list[Any]:
    """For each member the name that a named tuple has for it, or its position in a dataclass; None where neither is."""
    if isinstance(value, (tuple, list)):
        # torch's return types have the names of their members in `__match_args__` only.
        names: tuple[str, ...] = getattr(value, "_fields", ()) or getattr(value, "__match_args__", ())
        return list(names) if len(names) == count else [None] * count
    return list(range(count)) if dataclasses.is_dataclass(value) else [None] * count


def mapped(
    value: Any,
    change: Callable[[str, Any], Any],
    leaf_type: type[Any] = Tensor,
    *,
    leaves_only: bool = False,
    path: str = "",
) -> Any:
    """Replace each leaf by `change(path, leaf)`.

    Args:
        value: A container, or a leaf.
        change: Returns what takes the place of a leaf.
        leaf_type: The type of the leaves.
        leaves_only: Put None in the place of everything that is neither a leaf nor a container; else it stays.
        path: The path of `value`, put before the paths of its members.

    Returns:
        A container of the same type with the new members, or `value` itself if nothing changed.
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
    """The member of the container at `path`. Raises InputError, with a list of the paths, if there is none."""
    here, rest = value, path
    while rest:
        key, here, rest = _step(here, rest)
        if key is None:
            paths = [name for name, _ in leaves(value)]
            raise InputError(f"there is nothing at path {path!r}{closest(path, paths)}; there are tensors at {paths}")
    return here


def with_part(value: Any, path: str, part: Any) -> Any:
    """A copy of the container with `part` at `path`. Raises InputError if there is nothing at that path."""
    if not path:
        return part
    at(value, path)  # raises if there is nothing there
    key, member, rest = _step(value, path)
    changed = [with_part(member, rest, part) if name == key else other for name, other in _members(value)]
    return _rebuilt(value, [name for name, _ in _members(value)], changed)


def _step(value: Any, path: str) -> tuple[Any, Any, str]:
    """Split off the first key of the path: the key, its member, and the rest of the path.

    A key may contain dots, so the longest key with which the path begins is taken.
    """
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
    """Whether `value` can take the place of `original`: neither is a container, or both have the same keys."""
    if not _is_container(original):
        return not _is_container(value)
    return _is_container(value) and {key for key, _ in _members(value)} == {key for key, _ in _members(original)}


def as_container(value: Any, original: Any) -> Any:
    """Put the members of `value` into a container of the type of `original`, for example a list into a tuple."""
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


# Mappings that can be rebuilt with other members. A mapping that is a view of another object's dict cannot.
_MAPPINGS = (dict, UserDict, MappingProxyType)


def _members(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, PackedSequence):  # its other tensors say how the data is packed, and are no values
        return [(0, value.data)]
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if isinstance(value, _MAPPINGS):
        return list(value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    return []


def _rebuilt(value: Any, keys: list[Any], members: list[Any]) -> Any:
    if type(value) is tuple:  # the arguments of every call, so this case is fast
        return tuple(members)
    if isinstance(value, PackedSequence):
        return value._replace(data=members[0])
    if isinstance(value, tuple):
        if hasattr(value, "n_sequence_fields"):  # a return type of torch, as that of torch.max
            return type(value)(members)
        rebuilt = tuple.__new__(type(value), members)  # a subclass may have a `__new__` with other parameters
        rebuilt.__dict__.update(value.__dict__) if hasattr(value, "__dict__") else None
        return rebuilt
    if isinstance(value, MappingProxyType):
        return MappingProxyType(dict(zip(keys, members, strict=True)))
    # A copy keeps everything else about the container: the default of a defaultdict, additional attributes.
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

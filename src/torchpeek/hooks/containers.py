"""Read and replace tensors inside containers, nested as deep as you like.

Containers are tuples, lists, mappings, sets, dataclasses, futures that are done, and objects of plain Python classes,
whose attributes are the members. `known_containers.py` has the table of all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from torchpeek.errors import InputError, closest
from torchpeek.hooks.container_types import (
    FREQUENT_TYPES,
    WITHOUT_TENSORS,
    Attribute,
    container_type,
    copied,
    fill,
    members_of,
    rebuilt,
)
from torchpeek.hooks.known_containers import ContainerType
from torchpeek.system_errors import is_from_outside


def leaves(value: Any, leaf_type: type[Any] = Tensor, path: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the leaves of a container, in order, each with its path.

    Args:
        value: A container, or a leaf.
        leaf_type: The type of the leaves.
        path: The path of `value`, put before the paths of its members.

    Yields:
        Path and leaf. `"0.k"` is the path of entry k of the first member; a leaf without a container has path `""`.
    """
    yield from _leaves(value, leaf_type, path, ())


def _leaves(value: Any, leaf_type: type[Any], path: str, enclosing: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, leaf_type):
        yield path, value
    elif id(value) not in enclosing and (members := _members(value)):  # a container may contain itself
        for key, member in members:
            yield from _leaves(member, leaf_type, _joined(path, key), (*enclosing, id(value)))


def spellings(value: Any, leaf_type: type[Any] = Tensor) -> dict[str, tuple[str, ...]]:
    """Path -> all spellings of that path, itself first, for each leaf of a container.

    The path names a member of a named tuple by its position and a member of a dataclass by its name. The other spelling
    is its name in the named tuple, or its position in the dataclass: `{"0": ("0", "logits"), "1": ("1", "features")}`.
    """
    return _spellings(value, leaf_type, ())


def _spellings(value: Any, leaf_type: type[Any], enclosing: tuple[int, ...]) -> dict[str, tuple[str, ...]]:
    if isinstance(value, leaf_type):
        return {"": ("",)}
    if id(value) in enclosing:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    members = _members(value)
    for (key, member), other in zip(members, _other_keys(value, len(members)), strict=True):
        for path, endings in _spellings(member, leaf_type, (*enclosing, id(value))).items():
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
    fields = len(dataclasses.fields(value)) if dataclasses.is_dataclass(value) else 0
    return [number if number < fields else None for number in range(count)]


def mapped(
    value: Any,
    change: Callable[[str, Any], Any],
    leaf_type: type[Any] = Tensor,
    *,
    leaves_only: bool = False,
    once_each: bool = False,
    in_place: list[Any] | None = None,
    fresh: bool = False,
    others: Callable[[str, Any], Any] | None = None,
    path: str = "",
) -> Any:
    """Replace each leaf by `change(path, leaf)`.

    Args:
        value: A container, or a leaf.
        change: Returns what takes the place of a leaf.
        leaf_type: The type of the leaves.
        leaves_only: Put None in the place of everything that is neither a leaf nor a container; else it stays. The
            other attributes of an object stay in any case.
        once_each: Call `change` once for each leaf that stands in several places, with the first of its paths.
        in_place: A list. Mutable containers are changed in place then, so that their owners see what is done to them
            later, and those that were changed are appended to the list. `restore` undoes it.
        fresh: Copy every mutable container, also one in which nothing changes, because its owner may change it later.
        others: Called with each path and value that is neither a leaf nor a container, except for numbers, texts and
            the like; returns what takes its place.
        path: The path of `value`, put before the paths of its members.

    Returns:
        A container of the same type with the new members, or `value` itself if nothing changed. A container that stands
        in several places is replaced by the same new one everywhere, also if it contains itself.

    Raises:
        InputError: When a container has a leaf to replace, and another one of its class cannot be made.
    """
    if isinstance(value, leaf_type):
        return change(path, value)
    mapping = _Mapping(change, leaf_type, once_each, in_place, fresh, others)
    result = mapping.of(value, path, leaves_only)
    return result if mapping.changed else value


class _Mapping:
    """One call of `mapped`: what has taken the place of each container, and of each leaf."""

    __slots__ = (
        "_change",
        "_fresh",
        "_in_place",
        "_leaf_type",
        "_once_each",
        "_open",
        "_others",
        "_results",
        "changed",
    )

    def __init__(
        self,
        change: Callable[[str, Any], Any],
        leaf_type: type[Any],
        once_each: bool,
        in_place: list[Any] | None,
        fresh: bool,
        others: Callable[[str, Any], Any] | None,
    ) -> None:
        self._change = change
        self._leaf_type = leaf_type
        self._once_each = once_each
        self._in_place = in_place
        self._fresh = fresh
        self._others = others
        # id -> the original, which keeps its id from being used again, and what takes its place.
        self._results: dict[int, tuple[Any, Any]] = {}
        self._open: dict[int, Any] = {}  # id -> the copy of a container whose members are being mapped, once needed
        self.changed = False

    def of(self, value: Any, path: str, leaves_only: bool) -> Any:
        """What takes the place of `value`."""
        if isinstance(value, self._leaf_type):
            return self._of_leaf(value, path)
        container = container_type(value)
        if container is None:
            return self._of_other(value, path, leaves_only)
        if id(value) in self._results:
            return self._results[id(value)][1]
        if id(value) in self._open:  # it contains itself
            return self._copy_of_open(value, container)
        if container.built is None:
            self._open[id(value)] = None
        members = members_of(value, container)
        results = [
            self.of(member, _joined(path, key), leaves_only and type(key) is not Attribute) for key, member in members
        ]
        copy = self._open.pop(id(value), None)
        if copy is None and all(new is old for new, (_, old) in zip(results, members, strict=True)):
            result = self._fresh_copy(value, container) if self._fresh and container.built is None else value
        else:
            result = self._with_members(value, copy, container, [key for key, _ in members], results)
        self._results[id(value)] = value, result
        return result

    def _of_other(self, value: Any, path: str, leaves_only: bool) -> Any:
        result = value
        if leaves_only:
            result = None
        elif self._others is not None and type(value) not in WITHOUT_TENSORS:
            result = self._others(path, value)
        self.changed |= result is not value
        return result

    def _fresh_copy(self, value: Any, container: ContainerType) -> Any:
        try:
            result = copied(value, container)
        except Exception as error:  # nothing in it has to be replaced, so it may stay
            if is_from_outside(error):
                raise
            return value
        self.changed = True
        return result

    def _of_leaf(self, leaf: Any, path: str) -> Any:
        if self._once_each and id(leaf) in self._results:
            return self._results[id(leaf)][1]
        result = self._change(path, leaf)
        self.changed |= result is not leaf
        if self._once_each:
            self._results[id(leaf)] = leaf, result
        return result

    def _copy_of_open(self, value: Any, container: ContainerType) -> Any:
        if self._in_place is not None and container.in_place:
            return value
        if self._open[id(value)] is None:
            self._open[id(value)] = copied(value, container)
        return self._open[id(value)]

    def _with_members(
        self, value: Any, copy: Any, container: ContainerType, keys: list[Any], members: list[Any]
    ) -> Any:
        try:
            if self._in_place is not None and container.built is None and container.in_place:
                fill(value, container, keys, members)
                self._in_place.append(value)
                return value
            if copy is None:
                return rebuilt(value, container, keys, members)
            fill(copy, container, keys, members)
            return copy
        except Exception as error:
            # A tuple, list or dict of Python's own can always be made; what is raised there is another thread's.
            if is_from_outside(error) or type(value) in FREQUENT_TYPES:
                raise
            if next(_leaves(value, self._leaf_type, "", ()), None) is None:
                return None  # only `leaves_only` replaces something in a container without leaves
            raise InputError(
                f"a {type(value).__module__}.{type(value).__qualname__} has tensors as members, and another one with "
                f"other members cannot be made: {error}. Next: use a tuple, dict or dataclass, or leave this layer out"
            ) from error


def restore(changed: list[Any], original: Callable[[Any], Any]) -> None:
    """Undo what `mapped` has done in place: put `original(member)` in the place of each member of these containers."""
    for value in changed:
        container = container_type(value)
        assert container is not None
        members = members_of(value, container)
        results = [original(member) for _, member in members]
        if any(new is not old for new, (_, old) in zip(results, members, strict=True)):
            fill(value, container, [key for key, _ in members], results)


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
    """Whether `value` can take the place of `original`: neither is a container, or both have the same keys.

    An object with attributes alone counts as no container here.
    """
    if not _has_content(original):
        return not _has_content(value)
    return _has_content(value) and {key for key, _ in _content(value)} == {key for key, _ in _content(original)}


def as_container(value: Any, original: Any) -> Any:
    """Put the members of `value` into a container of the type of `original`, for example a list into a tuple."""
    if type(value) is type(original) or not _has_content(original):
        return value
    members = dict(_content(value))
    pairs = [(key, members.get(key, member)) for key, member in _members(original)]
    return _rebuilt(original, [key for key, _ in pairs], [member for _, member in pairs])


def _joined(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _members(value: Any) -> list[tuple[Any, Any]]:
    container = container_type(value)
    return [] if container is None else members_of(value, container)


def _has_content(value: Any) -> bool:
    container = container_type(value)
    return container is not None and not container.is_object


def _content(value: Any) -> list[tuple[Any, Any]]:
    return [(key, member) for key, member in _members(value) if type(key) is not Attribute]


def _rebuilt(value: Any, keys: list[Any], members: list[Any]) -> Any:
    container = container_type(value)
    assert container is not None
    return rebuilt(value, container, keys, members)

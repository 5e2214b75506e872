"""Which values are containers, and the members of each: those of its content first, then its attributes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gc
import sys
from collections import deque
from collections.abc import Sequence
from enum import Enum
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from torchpeek.hooks.attributes import HEAP_TYPE, attributes_of, copy_attributes, write_attributes
from torchpeek.hooks.known_containers import (
    CONTAINER_TYPES,
    DATACLASS,
    FROZEN_DATACLASS,
    FUTURE,
    OBJECT,
    TORCH_FUTURE,
    ContainerType,
    Members,
)


class Attribute(str):
    """The key of a member that is an attribute of its container."""

    __slots__ = ()


def container_type(value: Any) -> ContainerType | None:
    """The type of a container; None for everything else."""
    cls = type(value)
    if cls in FREQUENT_TYPES:
        return FREQUENT_TYPES[cls]
    if cls not in _types_of_classes:
        _types_of_classes[cls] = _type_of_class(cls)
    container = _types_of_classes[cls]
    if (container is FUTURE or container is TORCH_FUTURE) and not container.content(value):
        return None  # it has no result yet
    return container


def _type_of_class(cls: type[Any]) -> ContainerType | None:
    if issubclass(cls, (*_NO_CONTAINERS, torch.Size)):
        return None
    for base, container in CONTAINER_TYPES.items():
        if issubclass(cls, base):
            return container
    if dataclasses.is_dataclass(cls):
        # Every dataclass has it, but typeshed does not say so.
        return FROZEN_DATACLASS if cls.__dataclass_params__.frozen else DATACLASS  # type: ignore[attr-defined]
    return OBJECT if _is_plain(cls) else None


def holds_tensors(value: Any) -> bool:
    """Whether a value that is no container refers to tensors: a generator, a closure, a future that is not done."""
    if isinstance(value, (torch.futures.Future, concurrent.futures.Future)):
        return True
    found: list[Any] = [value]
    if isinstance(value, FunctionType):  # by its globals it refers to the whole program
        found = [value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__]
    checked: set[int] = set()
    for _ in range(4):
        found = [
            each
            for each in gc.get_referents(*found)
            if id(each) not in checked and not isinstance(each, (type, ModuleType, FunctionType))
        ]
        if any(isinstance(each, Tensor) for each in found):
            return True
        checked.update(map(id, found))
        if len(checked) > 1000:  # an object as large as that is no output, but a part of the program
            break
    return False


def members_of(value: Any, container: ContainerType) -> Members:
    """The members of a container, the content first, then the attributes."""
    members = container.content(value)
    if type(value) in FREQUENT_TYPES:
        return members
    content = {id(member) for _, member in members}
    for name, member in attributes_of(value):
        # A ModelOutput has each entry as an attribute, too. An attribute without tensors stays as it is.
        if id(member) not in content and name not in container.hidden and type(member) not in WITHOUT_TENSORS:
            members.append((Attribute(name), member))
    return members


def rebuilt(value: Any, container: ContainerType, keys: Sequence[Any], members: Sequence[Any]) -> Any:
    """A container like `value` with these members."""
    if container.built is None:
        result = copied(value, container)
        fill(result, container, keys, members)
        return result
    count = sum(type(key) is not Attribute for key in keys)
    result = container.built(value, members[:count])
    if type(value) not in FREQUENT_TYPES:
        copy_attributes(value, result)
        _replace_attributes(result, container, [member for _, member in container.content(value)], keys, members)
    return result


def copied(value: Any, container: ContainerType) -> Any:
    """A copy of a mutable container, with the same members."""
    result = container.copied(value)
    if type(value) not in FREQUENT_TYPES:
        copy_attributes(value, result)
    return result


def fill(value: Any, container: ContainerType, keys: Sequence[Any], members: Sequence[Any]) -> None:
    """Put other members into a mutable container, in the place of those of these keys, which are all that it has."""
    count = sum(type(key) is not Attribute for key in keys)
    if type(value) in FREQUENT_TYPES:
        container.fill(value, keys, members)
        return
    content = [member for _, member in container.content(value)]
    container.fill(value, keys[:count], members[:count])
    _replace_attributes(value, container, content, keys, members)


def _replace_attributes(
    value: Any, container: ContainerType, content: Sequence[Any], keys: Sequence[Any], members: Sequence[Any]
) -> None:
    new = {id(old): member for old, member in zip(content, members, strict=False) if old is not member}
    mirrors = [(name, new[id(member)]) for name, member in attributes_of(value) if id(member) in new]
    changed = [(name, member) for name, member in mirrors if name not in container.hidden]
    changed += list(zip(keys[len(content) :], members[len(content) :], strict=True))
    write_attributes(value, [name for name, _ in changed], [member for _, member in changed])


_STANDARD_LIBRARY = frozenset(sys.stdlib_module_names)
# They have a state of their own, which is no part of what a layer returns.
_NO_CONTAINERS = (Tensor, nn.Module, torch.optim.Optimizer, Enum, BaseException, type)


def _is_plain(cls: type[Any]) -> bool:
    """Whether the state of an object of this class is in its attributes, so that a copy with others behaves alike."""
    return (
        all(
            base is object or (base.__flags__ & HEAP_TYPE and not isinstance(vars(base).get("__new__"), _C_FUNCTION))
            for base in cls.__mro__
        )
        and cls.__module__.partition(".")[0] not in _STANDARD_LIBRARY
        and not hasattr(cls, "__del__")  # a copy would release twice what the object holds
    )


_C_FUNCTION = type(len)

WITHOUT_TENSORS: frozenset[type[Any]] = frozenset(
    {type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device, slice, range, type}
)
"""Types of numbers, texts and the like."""
# The frequent types, whose objects have no attributes. None: no container.
FREQUENT_TYPES: dict[type[Any], ContainerType | None] = {
    **{base: CONTAINER_TYPES[base] for base in (tuple, list, dict, set, frozenset, deque)},
    **dict.fromkeys((Tensor, nn.Parameter, FunctionType, *WITHOUT_TENSORS)),
}
# Weak, so that a class of a function's own dies with it.
_types_of_classes: WeakKeyDictionary[type[Any], ContainerType | None] = WeakKeyDictionary()

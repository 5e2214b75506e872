"""The known types of containers: how the members of each are read, and how one is made with other members.

A container has content, such as the entries of a dict, and attributes. An object of a plain Python class has attributes
only. A mutable container is copied and then filled; an immutable one is built from its members.
"""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
from argparse import Namespace
from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch.nn.utils.rnn import PackedSequence

from torchpeek.hooks.attributes import write_attributes

Members: TypeAlias = list[tuple[Any, Any]]
"""The key of each member, and the member."""


def _new_object(value: Any) -> Any:
    return object.__new__(type(value))


def _fill_nothing(value: Any, keys: Sequence[Any], members: Sequence[Any]) -> None:
    """Of an object, which has no content."""


@dataclasses.dataclass(frozen=True, slots=True)
class ContainerType:
    """How to read and make containers of one type.

    Args:
        content: The members of a container without its attributes.
        copied: A copy of a mutable container; the attributes are copied later.
        fill: Called as `fill(container, keys, members)`; replaces the content of a mutable container.
        built: Called as `built(container, members)`; an immutable container of the same type with these members.
            None for a mutable container.
        hidden: The names of attributes that are no members, because they hold the content.
        is_object: Whether there is no content, only attributes.
        in_place: Whether a mutable container may be filled while its owner uses it.
    """

    content: Callable[[Any], Members]
    copied: Callable[[Any], Any] = _new_object
    fill: Callable[[Any, Sequence[Any], Sequence[Any]], None] = _fill_nothing
    built: Callable[[Any, Sequence[Any]], Any] | None = None
    hidden: frozenset[str] = frozenset()
    is_object: bool = False
    in_place: bool = True


def _positions(value: Any) -> Members:
    return list(enumerate(value))


def _items(value: Any) -> Members:
    return list(value.items())


# What is stored, also where a subclass computes what it shows.


def _tuple_content(value: tuple[Any, ...]) -> Members:
    return list(enumerate(tuple.__iter__(value)))


def _list_content(value: list[Any]) -> Members:
    return list(enumerate(list.__iter__(value)))


def _dict_content(value: dict[Any, Any]) -> Members:
    return list(dict.items(value))


def _ordered_dict_content(value: OrderedDict[Any, Any]) -> Members:
    return [(key, dict.__getitem__(value, key)) for key in OrderedDict.__iter__(value)]


def _data_content(value: Any) -> Members:
    data = value.data
    return list(data.items()) if isinstance(data, Mapping) else list(enumerate(data))


def _nothing(value: Any) -> Members:
    return []


def _fields(value: Any) -> Members:
    names = [field.name for field in dataclasses.fields(value)]
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]


def _built_tuple(value: Any, members: Sequence[Any]) -> Any:
    if type(value) is tuple:
        return tuple(members)
    if hasattr(value, "n_sequence_fields"):  # a return type of torch, as that of torch.max
        return type(value)(members)
    return tuple.__new__(type(value), members)  # a subclass may have a `__new__` with other parameters


# The methods of the built-in classes, because a subclass may forbid or change them.


def _copied_list(value: list[Any]) -> list[Any]:
    result: list[Any] = list.__new__(type(value))
    list.extend(result, list.__iter__(value))
    return result


def _fill_list(value: list[Any], keys: Sequence[int], members: Sequence[Any]) -> None:
    for key, member in zip(keys, members, strict=True):
        list.__setitem__(value, key, member)


def _copied_deque(value: deque[Any]) -> deque[Any]:
    result: deque[Any] = deque.__new__(type(value))
    deque.__init__(result, deque.__iter__(value), value.maxlen)
    return result


def _fill_deque(value: deque[Any], keys: Sequence[int], members: Sequence[Any]) -> None:
    for key, member in zip(keys, members, strict=True):
        deque.__setitem__(value, key, member)


def _copied_dict(value: dict[Any, Any]) -> dict[Any, Any]:
    result: dict[Any, Any] = dict.__new__(type(value))
    dict.update(result, dict.items(value))
    return result


def _copied_defaultdict(value: defaultdict[Any, Any]) -> defaultdict[Any, Any]:
    result: defaultdict[Any, Any] = defaultdict.__new__(type(value))
    defaultdict.__init__(result, value.default_factory)
    dict.update(result, dict.items(value))
    return result


def _fill_dict(value: dict[Any, Any], keys: Sequence[Any], members: Sequence[Any]) -> None:
    for key, member in zip(keys, members, strict=True):
        dict.__setitem__(value, key, member)


def _copied_ordered_dict(value: OrderedDict[Any, Any]) -> OrderedDict[Any, Any]:
    result: OrderedDict[Any, Any] = OrderedDict.__new__(type(value))
    content = _ordered_dict_content(value)
    _fill_ordered_dict(result, [key for key, _ in content], [member for _, member in content])
    return result


def _fill_ordered_dict(value: OrderedDict[Any, Any], keys: Sequence[Any], members: Sequence[Any]) -> None:
    for key, member in zip(keys, members, strict=True):
        OrderedDict.__setitem__(value, key, member)


def _copied_set(value: set[Any]) -> set[Any]:
    result: set[Any] = set.__new__(type(value))
    set.update(result, set.__iter__(value))
    return result


def _fill_set(value: set[Any], keys: Sequence[int], members: Sequence[Any]) -> None:
    set.clear(value)
    set.update(value, members)


def _built_frozenset(value: frozenset[Any], members: Sequence[Any]) -> frozenset[Any]:
    return frozenset.__new__(type(value), members)


def _copied_with_data(value: Any) -> Any:
    """Of a UserDict or UserList, which have their content in `data`."""
    result = object.__new__(type(value))
    vars(result)["data"] = value.data.copy()
    return result


def _fill_data(value: Any, keys: Sequence[Any], members: Sequence[Any]) -> None:
    for key, member in zip(keys, members, strict=True):
        value.data[key] = member


def _chain_map_content(value: ChainMap[Any, Any]) -> Members:
    """Each entry by its key; one that an earlier map hides by the number of its map and its key."""
    members: Members = []
    keys: set[Any] = set()
    for number, entries in enumerate(value.maps):
        members += [(f"maps.{number}.{key}" if key in keys else key, member) for key, member in entries.items()]
        keys.update(entries)
    return members


def _copied_chain_map(value: ChainMap[Any, Any]) -> ChainMap[Any, Any]:
    result: ChainMap[Any, Any] = object.__new__(type(value))
    result.maps = [copy.copy(entries) for entries in value.maps]
    return result


def _fill_chain_map(value: ChainMap[Any, Any], keys: Sequence[Any], members: Sequence[Any]) -> None:
    places = [(entries, key) for entries in value.maps for key in entries]
    for (entries, key), member in zip(places, members, strict=True):
        entries[key] = member


def _built_proxy(value: MappingProxyType[Any, Any], members: Sequence[Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(dict(zip(value, members, strict=True)))


def _built_values(mapping: type[dict[Any, Any]], value: Any, members: Sequence[Any]) -> Any:
    """What `values()` of a mapping of this type returns, of a mapping of its own."""
    return mapping(enumerate(members)).values()


def _built_items(mapping: type[dict[Any, Any]], value: Any, members: Sequence[Any]) -> Any:
    """What `items()` of a mapping of this type returns, of a mapping of its own."""
    return mapping(members).items()


def _torch_future_content(value: torch.futures.Future[Any]) -> Members:
    try:
        return [("result", value.value())] if value.done() else []
    except Exception:  # the error of the task, which its owner will read
        return []


def _built_torch_future(value: torch.futures.Future[Any], members: Sequence[Any]) -> torch.futures.Future[Any]:
    result: torch.futures.Future[Any] = torch.futures.Future()
    result.set_result(members[0])
    return result


def _future_content(value: concurrent.futures.Future[Any]) -> Members:
    has_result = value.done() and not value.cancelled() and value.exception() is None
    return [("result", value.result())] if has_result else []


def _built_future(value: concurrent.futures.Future[Any], members: Sequence[Any]) -> concurrent.futures.Future[Any]:
    result: concurrent.futures.Future[Any] = concurrent.futures.Future()
    result.set_result(members[0])
    return result


_DATA = frozenset({"data"})
_FUTURE_STATE = frozenset({"_condition", "_state", "_result", "_exception", "_waiters", "_done_callbacks"})
TORCH_FUTURE = ContainerType(_torch_future_content, built=_built_torch_future)
FUTURE = ContainerType(_future_content, built=_built_future, hidden=_FUTURE_STATE)
OBJECT = ContainerType(_nothing, is_object=True)
DATACLASS = ContainerType(_fields, fill=write_attributes)
FROZEN_DATACLASS = ContainerType(_fields, fill=write_attributes, in_place=False)

# The first that fits is taken, so that a class comes before its bases.
CONTAINER_TYPES: dict[type[Any], ContainerType] = {
    # Its other tensors say how the data is packed, and are no values.
    PackedSequence: ContainerType(lambda value: [(0, value.data)], built=lambda value, m: value._replace(data=m[0])),
    tuple: ContainerType(_tuple_content, built=_built_tuple),
    list: ContainerType(_list_content, _copied_list, _fill_list),
    OrderedDict: ContainerType(_ordered_dict_content, _copied_ordered_dict, _fill_ordered_dict),
    defaultdict: ContainerType(_dict_content, _copied_defaultdict, _fill_dict),
    dict: ContainerType(_dict_content, _copied_dict, _fill_dict),
    deque: ContainerType(_positions, _copied_deque, _fill_deque),
    UserDict: ContainerType(_data_content, _copied_with_data, _fill_data, hidden=_DATA),
    UserList: ContainerType(_data_content, _copied_with_data, _fill_data, hidden=_DATA),
    ChainMap: ContainerType(_chain_map_content, _copied_chain_map, _fill_chain_map, hidden=frozenset({"maps"})),
    MappingProxyType: ContainerType(_items, built=_built_proxy),
    set: ContainerType(_positions, _copied_set, _fill_set, in_place=False),
    frozenset: ContainerType(_positions, built=_built_frozenset),
    type(OrderedDict().values()): ContainerType(_positions, built=partial(_built_values, OrderedDict)),
    type(OrderedDict().items()): ContainerType(_positions, built=partial(_built_items, OrderedDict)),
    type({}.values()): ContainerType(_positions, built=partial(_built_values, dict)),
    type({}.items()): ContainerType(_positions, built=partial(_built_items, dict)),
    SimpleNamespace: ContainerType(_nothing, lambda value: SimpleNamespace.__new__(type(value)), is_object=True),
    Namespace: OBJECT,
    torch.futures.Future: TORCH_FUTURE,
    concurrent.futures.Future: FUTURE,
}

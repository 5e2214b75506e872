"""What the attributes of modules hold: containers, tensors, arrays and objects of the user's, saved before a pass."""

from __future__ import annotations

import sys
from array import array
from collections import ChainMap, OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from operator import is_
from random import Random, SystemRandom
from types import MemberDescriptorType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchpeek.tensor_formats import value_bytes

# Their subclasses are saved, too. One that another is a subclass of comes after it.
_CONTAINERS: tuple[type[Any], ...] = (OrderedDict, dict, list, set, deque, bytearray, array)
_OF_NUMBERS = (bytearray, array)  # they refer to no objects
_OF_PYTHON = frozenset({ChainMap, SimpleNamespace, UserDict, UserList})  # those of the standard library that are state
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "torchpeek"}
_MOST_MEMBERS = 10_000  # of all containers together: a replay buffer of millions would take seconds
_MOST_BYTES = 2**24  # of a tensor or an array in a container or an object: it may be a whole data set
_DEPTH = 4

# The types of most attributes. Modules that have no others are done with quickly.
PLAIN = frozenset({int, float, str, bool, type(None), complex, bytes, torch.dtype, torch.device})


class SavedAttributes:
    """What is in the attributes of modules, as far as a forward pass may write into it.

    A list, dict, set, deque, bytearray or array gets its members back, and so do the containers that it holds. A NumPy
    array gets its values back, and a generator of torch, NumPy or Python its state. An object of a class of the user's,
    such as a dataclass, gets its attributes back. Not saved are

    - what is more than four levels deep, or comes after 10 000 members,
    - tensors and arrays of more than 16 MiB in containers and objects, and data sets,
    - objects that hold a module, because they are owners of the model, such as a trainer.
    """

    __slots__ = ("_arrays", "_containers", "_generators", "_known", "_members", "_slots", "modules", "tensors")

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        """The tensors found. Their values are saved by the caller."""
        self.modules: list[nn.Module] = []
        """The modules found, such as those in a plain list."""
        self._containers: list[tuple[Any, Any]] = []
        self._slots: list[tuple[Any, dict[MemberDescriptorType, Any]]] = []
        self._arrays: list[tuple[Any, Any]] = []
        self._generators: list[Callable[[], object]] = []
        self._known: set[int] = set()
        self._members = 0

    def add(self, value: object, depth: int = 0) -> None:
        """Save what a value holds."""
        kind = type(value)
        if kind in PLAIN or id(value) in self._known:
            return
        if isinstance(value, Tensor):
            if depth == 0 or value_bytes(value) <= _MOST_BYTES:
                self._known.add(id(value))
                self.tensors.append(value)
        elif isinstance(value, nn.Module):
            self._known.add(id(value))
            self.modules.append(value)
        elif isinstance(value, np.ndarray):
            # One that is read-only changes only with the array that it is a view of.
            if value.nbytes <= _MOST_BYTES and value.dtype != object and value.flags.writeable:
                self._known.add(id(value))
                self._arrays.append((value, value.copy()))
        elif (restore := _generator_restorer(value)) is not None:
            self._known.add(id(value))
            self._generators.append(restore)
        elif issubclass(kind, _CONTAINERS):
            self._add_container(value, depth)
            if kind not in _CONTAINERS and _is_state(value):
                self._add_attributes(value, depth)
        elif kind is tuple or isinstance(value, tuple):
            self._add_all(value, depth)
        elif _is_state(value):
            self._known.add(id(value))
            self._add_attributes(value, depth)

    def add_container(self, container: Any) -> None:
        """Save the members of a container, and not what these hold."""
        self._containers.append((container, _members_of(container)))

    def _add_attributes(self, value: object, depth: int) -> None:
        """Save the attributes of an object, in its dict and in its slots."""
        if type(value).__dictoffset__:
            self._add_container(object.__getattribute__(value, "__dict__"), depth)
        if slots := _slots_of(value):
            self._slots.append((value, slots))
            self._add_all(slots.values(), depth)

    def _add_container(self, container: Any, depth: int) -> None:
        size = _container_type(container).__len__(container)
        if id(container) in self._known or self._members + size > _MOST_MEMBERS:
            return
        self._known.add(id(container))
        self._members += size
        self.add_container(container)
        if not isinstance(container, _OF_NUMBERS):
            members = self._containers[-1][1]
            self._add_all(members.values() if isinstance(members, dict) else members, depth)

    def _add_all(self, members: Any, depth: int) -> None:
        if depth < _DEPTH and not PLAIN.issuperset(map(type, members)):
            for member in members:
                self.add(member, depth + 1)

    def steps(self) -> Iterator[Callable[[], object]]:
        """The steps that restore everything but the values of tensors. Each may be called again."""
        for container, members in self._containers:
            yield partial(restore_members, container, members)
        for value, slots in self._slots:
            yield partial(_restore_slots, value, slots)
        for array_, values in self._arrays:
            yield partial(_restore_array, array_, values)
        yield from self._generators


def _generator_restorer(value: object) -> Callable[[], object] | None:
    """What gives a generator of random numbers the state that it has now; None for another object."""
    if isinstance(value, torch.Generator):
        return partial(_restore_generator, value, value.get_state())
    if isinstance(value, Random) and not isinstance(value, SystemRandom):
        return partial(value.setstate, value.getstate())
    if type(value).__module__.startswith("numpy.random."):
        generator: Any = getattr(value, "bit_generator", value)
        if hasattr(generator, "set_state"):  # RandomState
            return partial(generator.set_state, generator.get_state())
        if hasattr(generator, "state"):
            return partial(setattr, generator, "state", generator.state)
    return None


def _restore_generator(generator: torch.Generator, state: Tensor) -> None:
    if not torch.equal(generator.get_state(), state):
        generator.set_state(state)


def _restore_array(saved: Any, values: Any) -> None:
    if not saved.flags.writeable:
        saved.flags.writeable = True  # as it was found; for memory of torch, NumPy refuses this even where it is True
    if saved.size != values.size:
        saved.resize(values.shape, refcheck=False)
    elif saved.shape != values.shape:
        saved.shape = values.shape
    if saved.tobytes() != values.tobytes():
        saved[...] = values


def _slots_of(value: object) -> dict[MemberDescriptorType, Any]:
    """The slots of an object that have a value, and the values."""
    slots = [each for cls in type(value).__mro__ for each in vars(cls).values() if type(each) is MemberDescriptorType]
    found = {}
    for slot in slots:
        with suppress(AttributeError):  # it has no value
            found[slot] = slot.__get__(value)
    return found


def _restore_slots(value: object, saved: dict[MemberDescriptorType, Any]) -> None:
    for slot, current in _slots_of(value).items():
        if slot not in saved:
            slot.__delete__(value)
        elif current is not saved[slot]:
            slot.__set__(value, saved[slot])
    for slot in saved.keys() - _slots_of(value).keys():
        slot.__set__(value, saved[slot])


def _is_state(value: object) -> bool:
    """Whether an object is of a class of the user's, and no owner of modules."""
    kind = type(value)
    if str(kind.__module__).partition(".")[0] in _LIBRARIES and kind not in _OF_PYTHON:
        return False
    if issubclass(kind, (type, torch.utils.data.Dataset)):
        return False
    slots = _slots_of(value)
    if not kind.__dictoffset__:
        return bool(slots) and not _holds_module(slots)
    attributes = object.__getattribute__(value, "__dict__")  # not getattr, which may run code of the user's
    return type(attributes) is dict and not _holds_module(attributes) and not _holds_module(slots)


def _holds_module(attributes: dict[Any, Any]) -> bool:
    return any(isinstance(each, nn.Module) for each in attributes.values())


def _members_of(container: Any) -> Any:
    """A copy of a container's members. It is made without the methods of a subclass, which may be the user's."""
    base = _container_type(container)
    if issubclass(base, dict):
        return dict(base.items(container))
    if base in _OF_NUMBERS:
        return base.__getitem__(container, slice(None))
    return (set if base is set else list)(base.__iter__(container))


def _container_type(container: Any) -> Any:
    """The type in `_CONTAINERS` that a container has."""
    kind = type(container)
    return kind if kind in _CONTAINERS else next(each for each in _CONTAINERS if issubclass(kind, each))


def restore_members(container: Any, saved: Any) -> None:
    """Give a container the saved members again."""
    if same_members(container, saved):
        return
    base = _container_type(container)
    if base in _OF_NUMBERS:
        # Not cleared first, which is not possible while somebody has a view of its memory.
        base.__setitem__(container, slice(None), saved)
        return
    base.clear(container)
    if issubclass(base, dict):
        for key, value in saved.items():
            base.__setitem__(container, key, value)
    else:
        (base.update if base is set else base.extend)(container, saved)


def same_members(container: Any, saved: Any) -> bool:
    """Whether a container has the saved members: the same objects in the same order."""
    base = _container_type(container)
    if base.__len__(container) != len(saved):
        return False
    if issubclass(base, dict):
        return all(map(is_, base.__iter__(container), saved)) and all(map(is_, base.values(container), saved.values()))
    if base is set:
        return bool(base.__le__(container, saved))
    if base in _OF_NUMBERS:
        return bytes(memoryview(container)) == bytes(memoryview(saved))
    return all(map(is_, base.__iter__(container), saved))

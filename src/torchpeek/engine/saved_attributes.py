"""What the attributes of modules hold: containers, tensors, arrays and objects of the user's, saved before a pass."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from operator import is_
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchpeek.tensor_formats import value_bytes

_CONTAINERS = frozenset({list, dict, set, OrderedDict, defaultdict, Counter, deque, bytearray})
_OF_PYTHON = frozenset({SimpleNamespace, UserDict, UserList})  # the objects of the standard library that are state
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "torchpeek"}
_MOST_MEMBERS = 10_000  # of all containers together: a replay buffer of millions would take seconds
_MOST_BYTES = 2**24  # of a tensor or an array in a container or an object: it may be a whole data set
_DEPTH = 4

# The types of most attributes. Modules that have no others are done with quickly.
PLAIN = frozenset({int, float, str, bool, type(None), complex, bytes, torch.dtype, torch.device})


class SavedAttributes:
    """What is in the attributes of modules, as far as a forward pass may write into it.

    A list, dict, set, deque or bytearray gets its members back, and so do the containers that it holds. A numpy array
    gets its values back, and a torch.Generator its state. An object of a class of the user's, such as a dataclass, gets
    its attributes back. Not saved are

    - what is more than four levels deep, or comes after 10 000 members,
    - tensors and arrays of more than 16 MiB in containers and objects, and data sets,
    - objects that hold a module, because they are owners of the model, such as a trainer.
    """

    __slots__ = ("_arrays", "_containers", "_generators", "_known", "_members", "modules", "tensors")

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        """The tensors found. Their values are saved by the caller."""
        self.modules: list[nn.Module] = []
        """The modules found, such as those in a plain list."""
        self._containers: list[tuple[Any, Any]] = []
        self._arrays: list[tuple[Any, Any]] = []
        self._generators: list[tuple[Any, Any]] = []
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
            if value.nbytes <= _MOST_BYTES and value.dtype != object:
                self._known.add(id(value))
                self._arrays.append((value, value.copy()))
        elif isinstance(value, torch.Generator):
            self._known.add(id(value))
            self._generators.append((value, value.get_state()))
        elif kind in _CONTAINERS:
            self._add_container(value, depth)
        elif kind is tuple or isinstance(value, tuple):
            self._add_all(value, depth)
        elif _is_state(value):
            self._known.add(id(value))
            self._add_container(object.__getattribute__(value, "__dict__"), depth)

    def add_container(self, container: Any) -> None:
        """Save the members of a container, and not what these hold."""
        self._containers.append((container, container.copy()))

    def _add_container(self, container: Any, depth: int) -> None:
        if id(container) in self._known or self._members + len(container) > _MOST_MEMBERS:
            return
        self._known.add(id(container))
        self._members += len(container)
        self.add_container(container)
        if type(container) is not bytearray:
            self._add_all(container.values() if isinstance(container, dict) else container, depth)

    def _add_all(self, members: Any, depth: int) -> None:
        if depth < _DEPTH and not PLAIN.issuperset(map(type, members)):
            for member in members:
                self.add(member, depth + 1)

    def restore(self) -> None:
        """Restore everything but the values of tensors. May be called again."""
        for container, members in self._containers:
            restore_members(container, members)
        for array, values in self._arrays:
            if array.shape == values.shape and array.tobytes() != values.tobytes():
                array[...] = values
        for generator, state in self._generators:
            if not torch.equal(generator.get_state(), state):
                generator.set_state(state)


def _is_state(value: object) -> bool:
    """Whether an object is of a class of the user's, and no owner of modules."""
    kind = type(value)
    if str(kind.__module__).partition(".")[0] in _LIBRARIES and kind not in _OF_PYTHON:
        return False
    if not kind.__dictoffset__ or issubclass(kind, (type, torch.utils.data.Dataset)):
        return False
    attributes = object.__getattribute__(value, "__dict__")  # not getattr, which may run code of the user's
    return type(attributes) is dict and not any(isinstance(each, nn.Module) for each in attributes.values())


def restore_members(container: Any, saved: Any) -> None:
    """Give a container the saved members again."""
    if not same_members(container, saved):
        container.clear()
        add: Any = container.extend if isinstance(container, (list, deque, bytearray)) else container.update
        add(saved)


def same_members(container: Any, saved: Any) -> bool:
    """Whether a container has the saved members: the same objects in the same order."""
    if len(container) != len(saved):
        return False
    if isinstance(container, dict):
        return all(map(is_, container, saved)) and all(map(is_, container.values(), saved.values()))
    if isinstance(container, set):
        return bool(container <= saved)
    if isinstance(container, bytearray):
        return bool(container == saved)
    return all(map(is_, container, saved))

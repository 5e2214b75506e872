"""Read, write and copy the attributes of objects, also those in slots, without running code of their class."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import MemberDescriptorType
from typing import Any
from weakref import WeakKeyDictionary

HEAP_TYPE = 1 << 9  # the flag of a class that was made when the program ran, as all classes of Python code are

# (position in the bases, name) of each slot. Weak, so that a class of a function's own dies with it.
_slots_of_classes: WeakKeyDictionary[type[Any], tuple[tuple[int, str], ...]] = WeakKeyDictionary()


def attributes_of(value: Any) -> list[tuple[str, Any]]:
    """The attributes that are set, by name."""
    found: dict[str, Any] = {}
    for slot in _slots(type(value)):
        with suppress(AttributeError):  # of a slot that is not set
            found[slot.__name__] = slot.__get__(value)
    own = own_dict(value)
    if own is not None and own is not value:
        found.update(own)
    return list(found.items())


def write_attributes(value: Any, names: Sequence[str], members: Sequence[Any]) -> None:
    """Set attributes, also those of a frozen dataclass."""
    own, slots = own_dict(value), {slot.__name__: slot for slot in _slots(type(value))}
    for name, member in zip(names, members, strict=True):
        if name in slots:
            slots[name].__set__(value, member)
        elif own is not None:
            own[str(name)] = member


def copy_attributes(value: Any, result: Any) -> None:
    """Give `result`, of the same class, the attributes of `value` that it lacks."""
    for slot in _slots(type(value)):
        with suppress(AttributeError):  # of a slot that is not set
            slot.__set__(result, slot.__get__(value))
    own, new = own_dict(value), own_dict(result)
    if own is value:  # a dict whose entries are its attributes
        result.__dict__ = result
    elif own is not None and new is not None:
        new.update({name: member for name, member in own.items() if name not in new})


def own_dict(value: Any) -> dict[str, Any] | None:
    """The `__dict__` of an object; None if it has none."""
    try:
        own: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return own


def _slots(cls: type[Any]) -> list[MemberDescriptorType]:
    """The slots that Python classes declare."""
    if cls not in _slots_of_classes:
        _slots_of_classes[cls] = tuple(
            (number, name)
            for number, base in enumerate(cls.__mro__)
            if base.__flags__ & HEAP_TYPE
            for name, slot in vars(base).items()
            if isinstance(slot, MemberDescriptorType)
        )
    return [vars(cls.__mro__[number])[name] for number, name in _slots_of_classes[cls]]

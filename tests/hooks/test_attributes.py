"""The attributes of objects of each sort: in a dict, in slots, in both, and of frozen dataclasses."""

from __future__ import annotations

import gc
import weakref
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import pytest

from torchpeek.hooks.attributes import attributes_of, copy_attributes, own_dict, write_attributes


class InDict:
    def __init__(self) -> None:
        self.one, self.two = 1, 2


class InSlots:
    __slots__ = ("one", "two", "unset")

    def __init__(self) -> None:
        self.one, self.two = 1, 2


class InBoth(InSlots):
    def __init__(self) -> None:
        super().__init__()
        self.three = 3


class SlotAgain(InSlots):
    __slots__ = ("one",)  # hides the slot of its base


@dataclass(frozen=True)
class Frozen:
    one: int = 1
    two: int = 2


@dataclass(frozen=True, slots=True)
class FrozenSlots:
    one: int = 1
    two: int = 2


class Forbids:
    """Runs code where an attribute is read or written."""

    def __init__(self) -> None:
        vars(self).update(one=1, two=2)

    def __getattribute__(self, name: str) -> Any:
        if name in ("one", "two"):
            raise AssertionError("read")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AssertionError("written")


class Mirrored(dict):  # type: ignore[type-arg]
    """A dict whose entries are its attributes."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(entries)
        self.__dict__ = self


TYPES = [InDict, InSlots, InBoth, Frozen, FrozenSlots, Forbids, lambda: Namespace(one=1, two=2)]


@pytest.mark.parametrize("make", TYPES)
def test_read_written_and_copied(make: Any) -> None:
    value = make()
    found = dict(attributes_of(value))
    assert (found["one"], found["two"]) == (1, 2)
    assert "unset" not in found
    write_attributes(value, ["two"], [20])
    assert dict(attributes_of(value)) == found | {"two": 20}
    twin = object.__new__(type(value))
    copy_attributes(value, twin)
    assert dict(attributes_of(twin)) == found | {"two": 20}


def test_attributes_that_the_copy_has_stay() -> None:
    value, twin = InDict(), InDict()
    twin.one = 10
    copy_attributes(value, twin)
    assert dict(attributes_of(twin)) == {"one": 10, "two": 2}


def test_both_slots_of_a_name() -> None:
    value = SlotAgain()
    assert dict(attributes_of(value)) == {"one": 1, "two": 2}


def test_a_dict_whose_entries_are_attributes() -> None:
    value = Mirrored(one=1)
    assert attributes_of(value) == []  # the entries are its content
    twin = Mirrored()
    copy_attributes(value, twin)
    twin["two"] = 2
    assert twin.two == 2  # type: ignore[attr-defined]
    assert own_dict(twin) is twin


def test_objects_without_a_dict() -> None:
    assert own_dict(InSlots()) is None
    assert own_dict(1) is None
    assert attributes_of(1) == attributes_of((1, 2)) == attributes_of(None) == []


def test_a_class_of_a_function_dies_with_it() -> None:
    def make() -> weakref.ref[type[Any]]:
        class Local:
            __slots__ = ("one",)

        attributes_of(Local())
        return weakref.ref(Local)

    alive = make()
    gc.collect()
    assert alive() is None

"""What attributes hold is as found after a pass that writes into it: containers of all types, objects, generators."""

from __future__ import annotations

import random
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp


class Slots:
    __slots__ = ("first", "second")

    def __init__(self) -> None:
        self.first: Any = [1]


@dataclass(slots=True)
class SlotsData:
    count: int = 0
    values: Tensor = field(default_factory=lambda: torch.zeros(2))


class OwnList(list[int]):
    """Its methods must not be called: they may be anything."""

    def __iter__(self) -> Any:
        raise AssertionError

    __len__ = clear = extend = __iter__


class OwnOrderedDict(OrderedDict[str, int]):
    def __setitem__(self, key: str, value: int) -> None:
        raise AssertionError


class Empty:
    pass


def own_ordered_dict() -> OwnOrderedDict:
    made = OwnOrderedDict()
    for key in "ab":
        OrderedDict.__setitem__(made, key, 1)
    return made


def bytes_with_view() -> dict[str, Any]:
    data = bytearray(3)
    return {"data": data, "view": memoryview(data)}


def array_with_read_only_view() -> dict[str, Any]:
    values = np.zeros(3)
    view = values.view()
    view.flags.writeable = False
    return {"view": view, "values": values}


def resize(held: Any) -> None:
    held.resize(6, refcheck=False)


def lock(held: Any) -> None:
    held.flags.writeable = True
    held[0] = 1
    held.flags.writeable = False


def set_slots(held: Any) -> None:
    held.second = 3
    held.first.append(2)


def set_attribute(held: Any) -> None:
    held.new = 1


def add_first(held: Any) -> None:
    held[0] += 1


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], object], Callable[[Any], Any]]] = {
    "bytearray with a view": (bytes_with_view, lambda held: add_first(held["data"]), lambda held: bytes(held["data"])),
    "array of numbers": (lambda: array("d", [1.0]), lambda held: held.append(2), list),
    "array with a read-only view": (
        array_with_read_only_view,
        lambda held: held["values"].__iadd__(1),
        lambda held: held["view"].tolist(),
    ),
    "array that gets read-only": (lambda: np.zeros(2), lock, lambda held: (held.tolist(), held.flags.writeable)),
    "array of another size": (lambda: np.zeros(4), resize, lambda held: held.tolist()),
    "slots": (Slots, set_slots, lambda held: (list(held.first), hasattr(held, "second"))),
    "dataclass with slots": (
        SlotsData,
        lambda held: (setattr(held, "count", held.count + 1), held.values.add_(1)),
        lambda held: (held.count, held.values.tolist(), held.values._version),
    ),
    "object without attributes": (Empty, set_attribute, lambda held: dict(held.__dict__)),
    "own list": (
        lambda: OwnList([1]),
        lambda held: (held.append(2), set_attribute(held)),
        lambda held: (list.copy(held), dict(held.__dict__)),
    ),
    "own ordered dict": (own_ordered_dict, lambda held: held.move_to_end("a"), list),
    "ordered dict": (lambda: OrderedDict(a=1, b=2), lambda held: held.move_to_end("a"), list),
    "defaultdict": (lambda: defaultdict(int), lambda held: held["a"], dict),
    "counter": (lambda: Counter("a"), lambda held: held.update("ab"), dict),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda held: held.append(3), list),
    "set": (lambda: {1}, lambda held: held.add(2), sorted),
    "random.Random": (lambda: random.Random(0), lambda held: held.random(), lambda held: held.getstate()),
    "NumPy generator": (
        lambda: np.random.default_rng(0),
        lambda held: held.random(),
        lambda held: str(held.bit_generator.state),
    ),
    "NumPy's old generator": (
        lambda: np.random.RandomState(0),
        lambda held: held.rand(),
        lambda held: str(held.get_state()[1].tolist()),
    ),
    "torch.Generator": (
        torch.Generator,
        lambda held: torch.rand(1, generator=held),
        lambda held: held.get_state().tolist(),
    ),
}


class Model(nn.Module):
    def __init__(self, held: Any, change: Callable[[Any], object]) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.held = held
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        self.change(self.held)
        self.late = 1
        self.head.weight.requires_grad_(False)
        scores: Tensor = self.head(self.conv(x).relu().mean((2, 3)))
        return scores


@pytest.mark.parametrize("name", CASES)
def test_what_an_attribute_holds_is_as_found(name: str) -> None:
    make, change, read = CASES[name]
    torch.manual_seed(0)
    model = Model(make(), change)
    before = read(model.held)
    change(model.held)
    assert read(model.held) != before  # the test itself
    model.held = make()
    tp.explain(model, torch.randn(1, 3, 8, 8), layer="conv", target=1)
    assert read(model.held) == before
    assert "late" not in vars(model)
    assert model.head.weight.requires_grad
    assert all(module.training for module in model.modules())


def test_what_cannot_be_restored_leaves_nothing_else_as_it_is() -> None:
    class Stubborn(random.Random):
        def setstate(self, state: Any) -> None:
            raise ValueError("no")

    model = Model(Stubborn(0), lambda held: None)
    model.conv.register_buffer("calls", torch.zeros(1))
    with pytest.raises(ValueError, match="no"):
        tp.explain(model, torch.randn(1, 3, 8, 8), layer="conv", target=1)
    assert "late" not in vars(model)
    assert model.head.weight.requires_grad
    assert all(module.training and not module._forward_hooks for module in model.modules())

"""Every type of container that a layer may return: opened, made again in its type, stored without a graph."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import enum
import gc
import sys
import types
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
)

import torchpeek as tp
from torchpeek.hooks import containers


class Plain:
    def __init__(self, a: Tensor) -> None:
        self.a, self.size = a, a.shape


class Slots:
    __slots__ = ("__hidden", "a", "unset")

    def __init__(self, a: Tensor) -> None:
        self.a, self.__hidden = a, a + 1


class ForbidsWriting(dict):
    def __setitem__(self, key, value):
        raise TypeError("read only")


class ForbidsLater(OrderedDict):
    def __setitem__(self, key, value):
        if getattr(self, "closed", False):
            raise TypeError("read only")
        super().__setitem__(key, value)


class Two(tuple):
    def __new__(cls, a, b):
        return tuple.__new__(cls, (a, b))


class OwnDeque(deque):
    def __init__(self, members, *, label: str) -> None:
        super().__init__(members, 5)
        self.label = label


class OwnDefault(defaultdict):
    def __init__(self, a) -> None:
        super().__init__(list)
        dict.__setitem__(self, "a", a)


class Attributes(dict):
    def __init__(self, **members) -> None:
        super().__init__(**members)
        self.__dict__ = self


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots:
    a: Tensor
    count: int = 2


@dataclasses.dataclass
class WithExtra:
    a: Tensor

    def __post_init__(self) -> None:
        self.extra = self.a * 2


class ImageList:  # as in torchvision
    def __init__(self, tensors: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensors, self.image_sizes = tensors, image_sizes


def closed_ordered(a: Tensor) -> ForbidsLater:
    made = ForbidsLater(a=a)
    made.closed = True
    return made


def torch_future(a: Tensor) -> Any:
    made: Any = torch.futures.Future()
    made.set_result((a, 1))
    return made


def python_future(a: Tensor) -> Any:
    made: Any = concurrent.futures.Future()
    made.set_result({"a": a})
    return made


def list_with_mask(a: Tensor) -> UserList:
    made = UserList([a])
    made.mask = a * 3
    return made


def object_in_itself(a: Tensor) -> Plain:
    made = Plain(a)
    made.me, made.children = made, [{"parent": made}]
    return made


def list_in_itself(a: Tensor) -> list:
    made: list = [a]
    made.append(made)
    return made


# what is returned, made of `a = 2 * x`; and the paths of its tensors
CASES: dict[str, tuple[Any, list[str]]] = {
    "object": (Plain, ["a"]),
    "slots": (Slots, ["_Slots__hidden", "a"]),
    "image list": (lambda a: ImageList(a, [(2, 2)]), ["tensors"]),
    "normal": (lambda a: Normal(a, a.exp()), ["loc", "scale"]),
    "independent": (lambda a: Independent(Normal(a, a.exp()), 1), ["base_dist.loc", "base_dist.scale"]),
    "categorical": (lambda a: Categorical(logits=a), ["logits", "_param"]),
    "mixture": (
        lambda a: MixtureSameFamily(Categorical(logits=a), Normal(a, a.exp())),
        [f"_mixture_distribution.{name}" for name in ("logits", "_param")]
        + [f"_component_distribution.{name}" for name in ("loc", "scale")],
    ),
    "transformed": (
        lambda a: TransformedDistribution(Normal(a, a.exp()), [AffineTransform(a, 2 * a)]),
        ["transforms.0.loc", "transforms.0.scale", "base_dist.loc", "base_dist.scale"],
    ),
    "user list": (lambda a: UserList([a, "text"]), ["0"]),
    "user list with an attribute": (list_with_mask, ["0", "mask"]),
    "user dict": (lambda a: UserDict(a=a), ["a"]),
    "deque": (lambda a: deque([a], maxlen=3), ["0"]),
    "own deque": (lambda a: OwnDeque([a], label="l"), ["0"]),
    "namespace": (lambda a: types.SimpleNamespace(a=a, b=1), ["a"]),
    "parsed arguments": (lambda a: argparse.Namespace(a=a), ["a"]),
    "set": (lambda a: {a}, ["0"]),
    "frozenset": (lambda a: frozenset([a]), ["0"]),
    "chain map": (lambda a: ChainMap({"a": a}, {"a": a * 3, "b": a * 4}), ["a", "maps.1.a", "b"]),
    "values": (lambda a: {"k": a}.values(), ["0"]),
    "items": (lambda a: {"k": a}.items(), ["0.1"]),
    "values of an ordered dict": (lambda a: OrderedDict(k=a).values(), ["0"]),
    "items of an ordered dict": (lambda a: OrderedDict(k=a).items(), ["0.1"]),
    "counter": (lambda a: Counter({"a": a}), ["a"]),
    "own defaultdict": (OwnDefault, ["a"]),
    "dict that forbids writing": (lambda a: ForbidsWriting(a=a), ["a"]),
    "ordered dict that forbids writing": (closed_ordered, ["a"]),
    "attribute dict": (lambda a: Attributes(a=a), ["a"]),
    "own tuple": (lambda a: Two(a, 7), ["0"]),
    "frozen dataclass with slots": (FrozenSlots, ["a"]),
    "dataclass with an attribute": (WithExtra, ["a", "extra"]),
    "torch's future": (torch_future, ["result.0"]),
    "Python's future": (python_future, ["result.a"]),
    "object in itself": (object_in_itself, ["a"]),
    "list in itself": (list_in_itself, ["0"]),
    "size": (lambda a: (a, a.shape, [a.shape]), ["0"]),
}


class Gives(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x * 2)


def has_graph(value: Any, checked: set[int], depth: int = 8) -> bool:
    """Whether a tensor with a graph can be reached from `value`, by whatever reference."""
    if id(value) in checked or isinstance(value, (type, types.ModuleType, types.FunctionType, nn.Module)):
        return False
    checked.add(id(value))
    if isinstance(value, Tensor):
        return value.requires_grad
    return depth > 0 and any(has_graph(each, checked, depth - 1) for each in gc.get_referents(value))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_is_opened_recorded_and_handed_on_in_its_type(name: str, frozen: bool) -> None:
    make, paths = CASES[name]
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=not frozen)
    model = nn.Sequential(Gives(make))
    plain = dict(containers.leaves(Gives(make)(x.detach())))
    with tp.record(model, "0", inputs=True, gradients=True) as tape:
        given = model(x)
        handed_on = dict(containers.leaves(given))
        sum(k * tensor.sum() for k, tensor in enumerate(handed_on.values(), 1)).backward()
    call = tape["0"][0]
    assert call.paths == paths == list(handed_on)
    assert type(call.output) is type(call.grad_output) is type(given) is type(make(x))
    assert not has_graph(call.output, set())
    distinct = {id(tensor): 0 for tensor in handed_on.values()}
    for k, tensor in enumerate(handed_on.values(), 1):
        distinct[id(tensor)] += k
    for path in paths:
        assert torch.equal(handed_on[path], plain[path])
        assert torch.equal(call.at(path).output, plain[path])
        # One tensor at two paths has one gradient, as plain autograd has it.
        expected = torch.full((3,), float(distinct[id(handed_on[path])]), dtype=torch.float64)
        torch.testing.assert_close(call.at(path).grad_output, expected)


class TestWhatStays:
    def recorded(self, value: Any, **options: Any) -> tuple[Any, Any]:
        model = nn.Sequential(Gives(lambda a: value))
        with tp.record(model, "0", gradients=True, **options) as tape:
            given = model(torch.ones(2, requires_grad=True))
        return given, tape["0"]

    @pytest.mark.parametrize(
        "value",
        [
            *(
                torch.Size([2, 3]),
                [torch.Size([2])],
                ForbidsWriting(a=1),
                Two(1, 2),
                FrozenSlots(None),
                deque([1]),
                Plain,
            ),
            *(types.SimpleNamespace(a=1), {1, 2}, UserList([1]), list_in_itself(1)),
        ],
    )
    def test_without_a_tensor_the_same_object_is_handed_on(self, value: Any) -> None:
        given, _ = self.recorded(value)
        assert given is value

    def test_a_tuple_that_cannot_be_made_again_and_a_dict_that_computes_what_it_shows(self) -> None:
        class Doubles(dict):
            def __getitem__(self, key):
                return dict.__getitem__(self, key) * 2

            def items(self):
                return [(key, self[key]) for key in self]

        model = nn.Sequential(Gives(lambda a: (a, sys.version_info, Doubles(a=a + 1))))
        with tp.record(model, "0", inputs=True, gradients=True) as tape:
            a, version, doubles = model(torch.ones(2, requires_grad=True))
            (a + doubles["a"]).sum().backward()
        assert version is sys.version_info is tape["0"].output[1]
        assert tape["0"].grad_output[1] is None
        assert dict.__getitem__(tape["0"].grad_output[2], "a").tolist() == [2, 2]

    def test_a_model_that_fills_a_container_later_does_not_fill_the_recording(self) -> None:
        class Collects(nn.Module):
            def forward(self, x, store):
                store["x"] = x * 2
                return x

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.collects = Collects()

            def forward(self, x):
                return self.collects(x, {})

        model = Net()
        with tp.record(model, "collects", inputs=True, gradients=True) as tape:
            model(torch.ones(2, requires_grad=True))
        assert tape["collects"].input[1] == tape["collects"].grad_input[1] == {}

    @pytest.mark.parametrize("make", [lambda a: (t for t in [a]), lambda a: iter([a]), lambda a: map(abs, [a])])
    def test_an_iterator_is_refused_by_name_and_not_consumed(self, make: Any) -> None:
        model = nn.Sequential(Gives(lambda a: (a, make(a))))
        refusal = r"output\.1 of layer '0' is a (generator|list_iterator|map)"
        with pytest.warns(tp.Notice, match=refusal), tp.record(model, "0", gradients=True) as tape:
            _, iterator = model(torch.ones(2, requires_grad=True))
        assert tape["0"].output[1] is None
        assert next(iterator).tolist() == [2, 2]

    def test_a_closure_keeps_no_graph_alive(self) -> None:
        model = nn.Sequential(Gives(lambda a: (a, lambda: a)))
        notice = r"output\.1 of layer '0' is a function"
        with pytest.warns(tp.Notice, match=notice), tp.record(model, "0", gradients=True) as tape:
            model(torch.ones(2, requires_grad=True))[1]().sum().backward()
        assert tape["0"].output[1] is None
        assert self.recorded(abs_of)[1].output is abs_of  # it refers to no tensor

    def test_an_attribute_that_is_a_closure_keeps_no_graph_alive(self) -> None:
        class Lazy:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor, self.compute = tensor, lambda: tensor

        model = nn.Sequential(Gives(Lazy))
        with pytest.warns(tp.Notice, match="is a function"), tp.record(model, "*", gradients=True) as tape:
            model(torch.ones(2, requires_grad=True)).tensor.sum().backward()
        assert tape["0"].output.compute is tape["0"].grad_output.compute is None
        assert tape["0"].output.tensor.grad_fn is None
        assert tape["0"].grad_output.tensor.tolist() == [1, 1]

    def test_a_future_that_is_not_done(self) -> None:
        with pytest.warns(tp.Notice, match="is a Future"):
            given, calls = self.recorded(torch.futures.Future())
        assert not given.done()
        assert calls.output is None

    def test_what_is_no_container(self) -> None:
        class Colour(enum.Enum):
            RED = 1

        for value in (Colour.RED, "text", print, ValueError("a"), torch.float32):
            given, calls = self.recorded(value)
            assert given is calls.output is value


def abs_of(x: Any) -> Any:
    return abs(x)

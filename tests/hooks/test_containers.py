"""Containers that layers return: each type is opened, its tensors named by path, and it is rebuilt in its type."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import InputError
from torchpeek.hooks import containers

Pair = namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass
class Output:
    logits: Tensor
    extra: tuple[Tensor, int]


@dataclasses.dataclass(frozen=True)
class Frozen:
    logits: Tensor


@dataclasses.dataclass
class ModelOutput(OrderedDict):  # as transformers has it: an ordered dict whose fields are its items
    logits: Tensor | None = None
    hidden: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                super().__setitem__(field.name, getattr(self, field.name))

    def __setitem__(self, key, value) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Returns(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return {
            "tensor": lambda: x * 2,
            "tuple": lambda: (x * 2, None),
            "list": lambda: [x * 2, [x * 3]],
            "dict": lambda: {"a": x * 2, "more": [x * 3, "text"]},
            "default": lambda: defaultdict(list, a=x * 2),
            "named": lambda: Pair(x * 2, 7),
            "struct": lambda: torch.max(x * 2, dim=0),
            "dataclass": lambda: Output(x * 2, (x * 3, 7)),
            "frozen": lambda: Frozen(x * 2),
            "model output": lambda: ModelOutput(logits=x * 2, hidden=(x * 3, x * 4)),
            "read only": lambda: MappingProxyType({"a": x * 2}),
            "nothing": lambda: None,
        }[self.kind]()


PATHS = {
    "tensor": [""],
    "tuple": ["0"],
    "list": ["0", "1.0"],
    "dict": ["a", "more.0"],
    "default": ["a"],
    "named": ["0"],
    "struct": ["0", "1"],
    "dataclass": ["logits", "extra.0"],
    "frozen": ["logits"],
    "model output": ["logits", "hidden.0", "hidden.1"],
    "read only": ["a"],
    "nothing": [],
}


@pytest.mark.parametrize("kind", PATHS)
class TestEveryContainer:
    def test_is_recorded_in_kind_and_by_path(self, kind: str) -> None:
        model, x = nn.Sequential(Returns(kind)), torch.ones(3)
        with tp.record(model, "0") as tape:
            given = model(x)
        call = tape["0"]
        assert call.paths == PATHS[kind]
        assert type(call.output) is type(given)
        if kind == "struct":
            assert (call.at("0").output.item(), call.at("1").output.item()) == (2, 0)
            return
        for number, path in enumerate(PATHS[kind]):
            assert call.at(path).output.tolist() == [2.0 + number] * 3

    def test_gradients_arrive_by_path(self, kind: str) -> None:
        model, x = nn.Sequential(Returns(kind)), torch.ones(3, requires_grad=True)
        with tp.record(model, "0", gradients=True) as tape:
            given = model(x)
            if not PATHS[kind]:
                return
            first = containers.at(given, PATHS[kind][0])
            (first * 5).sum().backward()
        assert (tape["0"].at(PATHS[kind][0]).grad_output == 5).all()
        for path in PATHS[kind][1:]:
            assert tape["0"].at(path).grad_output is None

    def test_an_edit_of_one_part_keeps_the_rest_and_the_kind(self, kind: str) -> None:
        if not PATHS[kind]:
            return
        path = PATHS[kind][0]
        model, x = nn.Sequential(Returns(kind)), torch.ones(3)
        plain = model(x)
        with tp.edit(model, outputs={"0": tp.edits.at(path, tp.edits.scale(10))}):
            given = model(x)
        assert type(given) is type(plain)
        changed = dict(containers.leaves(given))
        for each, before in containers.leaves(plain):
            assert torch.equal(changed[each], before * 10 if each == path else before)

    def test_an_edit_of_gradients(self, kind: str) -> None:
        if not PATHS[kind]:
            return
        model, x = nn.Sequential(Returns(kind)), torch.ones(3, requires_grad=True)
        with tp.edit(model, gradients={"0": lambda gradient: gradient * 100}):
            given = model(x)
            assert type(given) is type(Returns(kind)(x))
            containers.at(given, PATHS[kind][0]).sum().backward()
        assert x.grad.sum() == (200 if kind == "struct" else 600)


def test_a_path_that_is_not_there() -> None:
    model = nn.Sequential(Returns("dict"))
    with tp.record(model, "0") as tape:
        model(torch.ones(3))
    with pytest.raises(InputError, match=r"nothing at path 'more\.1\.x'.*tensors at \['a', 'more\.0'\]"):
        _ = tape["0"].at("more.1.x").output


def test_a_list_for_a_tuple_becomes_one() -> None:
    model = nn.Sequential(Returns("named"))
    with tp.edit(model, outputs={"0": lambda out: [out[0] * 3, out[1]]}):
        given = model(torch.ones(1))
    assert isinstance(given, Pair)
    assert given.first.item() == 6
    with pytest.raises(InputError, match="as many members"), tp.edit(model, outputs={"0": lambda out: out[0]}):
        model(torch.ones(1))


class Tagged(list):
    def __init__(self, members, *, tag: str) -> None:
        super().__init__(members)
        self.tag = tag


class Labelled(tuple):
    def __new__(cls, members, label: str):
        made = super().__new__(cls, members)
        made.label = label
        return made


class Window(Mapping):
    """On somebody else's dict."""

    def __init__(self, own: dict) -> None:
        self.own = own

    def __getitem__(self, key):
        return self.own[key]

    def __iter__(self):
        return iter(self.own)

    def __len__(self) -> int:
        return len(self.own)


class TestUserContainers:
    def recorded(self, value):
        class Gives(nn.Module):
            def forward(self, x):
                return value(x)

        model = nn.Sequential(Gives())
        with tp.record(model, "0") as tape:
            given = model(torch.ones(1))
        return given, tape["0"]

    def test_lists_and_tuples_keep_what_else_they_carry(self) -> None:
        given, call = self.recorded(lambda x: Tagged([x * 2], tag="t"))
        assert (call.output.tag, call.at("0").output.item(), given.tag) == ("t", 2, "t")
        _, call = self.recorded(lambda x: Labelled([x * 2, None], "l"))
        assert (call.output.label, call.output[0].item()) == ("l", 2)

    def test_a_window_on_another_dict_is_opened_and_the_other_dict_left_alone(self) -> None:
        own: dict[str, Tensor] = {}

        def gives(x):
            own["a"] = x * 2
            return Window(own)

        given, call = self.recorded(gives)
        assert given["a"] is own["a"]
        assert call.paths == ["own.a"]
        assert call.output["a"].item() == 2
        assert call.output.own is not own

    def test_keys_with_dots(self) -> None:
        _, call = self.recorded(lambda x: {"layer4.relu": x * 2, "layer4": {"x": x * 3}})
        assert call.at("layer4.relu").output.item() == 2
        assert call.at("layer4.x").output.item() == 3

    def test_a_dataclass_with_a_field_that_is_not_set(self) -> None:
        @dataclasses.dataclass
        class Late:
            a: Tensor
            b: Tensor = dataclasses.field(init=False)

        _, call = self.recorded(lambda x: Late(x * 2))
        assert call.at("a").output.item() == 2

    def test_a_dict_in_another_order(self) -> None:
        class Gives(nn.Module):
            def forward(self, x):
                return {"a": x, "b": x * 2}

        model = nn.Sequential(Gives())
        with tp.edit(model, outputs={"0": lambda out: {"b": out["b"] * 10, "a": out["a"]}}):
            given = model(torch.ones(1))
        assert {key: value.item() for key, value in given.items()} == {"a": 1, "b": 20}


@pytest.mark.parametrize("value", [(torch.ones(1),), [torch.ones(1)], {"a": torch.ones(1)}])
def test_what_another_thread_raises_while_a_container_is_made_goes_through(
    value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Arrived(Exception):
        pass

    def struck(*args: object) -> None:
        raise Arrived

    monkeypatch.setattr(containers, "rebuilt", struck)
    with pytest.raises(Arrived):
        containers.mapped(value, lambda path, tensor: 2 * tensor)

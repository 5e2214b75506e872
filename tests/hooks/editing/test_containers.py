"""edit() of containers: error texts name paths that exist. Also functions that call the model."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import InputError, type_shown


@dataclasses.dataclass
class Out:
    logits: Tensor
    features: Any = None


Pair = namedtuple("Pair", ["logits", "features"])

ONE, TWO = torch.ones(2), torch.full((2,), 2.0)

# name -> (container, the paths of its tensors)
CONTAINERS: dict[str, tuple[Any, list[str]]] = {
    "dataclass": (Out(ONE, TWO), ["logits", "features"]),
    "dataclass with one tensor": (Out(ONE), ["logits"]),
    "nested dataclass": (Out(ONE, Out(TWO)), ["logits", "features.logits"]),
    "named tuple": (Pair(ONE, TWO), ["0", "1"]),
    "tuple": ((ONE, TWO), ["0", "1"]),
    "list": ([ONE, [TWO]], ["0", "1.0"]),
    "dict": ({"logits": ONE, "boxes": {"left": TWO}}, ["logits", "boxes.left"]),
    "ordered dict": (OrderedDict(logits=ONE, features=TWO), ["logits", "features"]),
    "torch.max": (torch.max(torch.eye(2), 0), ["0", "1"]),
}


class Returns(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.part, self.value = nn.Module(), value
        self.part.forward = lambda: value

    def forward(self) -> Any:
        return self.part()


def run_edited(value: Any, change: Any) -> Any:
    model = Returns(value)
    with tp.edit(model, outputs={"part": change}):
        return model()


@pytest.mark.parametrize("name", CONTAINERS)
class TestPaths:
    def test_a_change_of_a_tensor_names_them(self, name: str) -> None:
        value, paths = CONTAINERS[name]
        for change in (tp.edits.zero(), tp.edits.scale(2.0), tp.edits.patch(torch.zeros(2))):
            with pytest.raises(InputError) as caught:
                run_edited(value, change)
            message = str(caught.value)
            assert f"got {type_shown(value)}; its tensors are at {', '.join(map(repr, paths))}" in message
            self.follow(message, value)

    def test_another_type_names_one(self, name: str) -> None:
        value, paths = CONTAINERS[name]
        with pytest.raises(InputError) as caught:
            run_edited(value, lambda output: ONE)
        message = str(caught.value)
        assert f"got {type_shown(value)} with tensors at {', '.join(map(repr, paths))}" in message
        assert f"tp.edits.at({paths[0]!r}, ...) changes one of them" in message
        self.follow(message, value)

    def test_a_patch_from_a_call_names_them(self, name: str) -> None:
        value = CONTAINERS[name][0]
        with tp.record(model := Returns(value), "part") as tape:
            model()
        call = tape["part"][0]
        with pytest.raises(InputError, match="and a patch is one tensor; its tensors are at") as caught:
            tp.edits.patch(call)
        step = re.search(r"Next: (.*)$", str(caught.value))
        assert step is not None
        assert repr(run_edited(value, eval(step[1], {"tp": tp, "call": call}))) == repr(value)

    @staticmethod
    def follow(message: str, value: Any) -> None:
        """The step that the message names works."""
        path = re.search(r"tp\.edits\.at\('([^']*)', \.\.\.\)", message)
        assert path is not None
        changed = run_edited(value, tp.edits.at(path[1], tp.edits.zero()))
        assert type(changed) is type(value)
        found = dict(tp.hooks.containers.leaves(changed))
        assert not found.pop(path[1]).any()
        assert all(each.any() for each in found.values())


class TestOtherValues:
    def test_an_object_without_a_path_to_a_tensor(self) -> None:
        with pytest.raises(InputError, match=r"got a str; no path leads to a tensor in it\. Next: write"):
            run_edited("text", tp.edits.zero())
        assert run_edited("text", str.upper) == "TEXT"

    def test_none_stays_none(self) -> None:
        assert run_edited(None, lambda output: output) is None


class TestCallsOfTheModel:
    def test_a_function_that_calls_its_own_layer(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        with (
            pytest.raises(InputError, match=r"the edit of layer '1' calls that layer, so it would never end") as caught,
            tp.edit(model, outputs={"1": lambda output: model(ONE)}),
        ):
            model(ONE)
        assert len(caught.value.__notes__) == 1
        assert not any(module._forward_hooks for module in model.modules())

    def test_a_function_that_calls_another_layer_or_a_copy(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        clean, other = model(ONE), copy.deepcopy(model)
        with tp.edit(model, outputs={"1": lambda output: output + model[0](ONE)}):
            torch.testing.assert_close(model(ONE), clean + model[0](ONE))
        with tp.edit(model, outputs={"1": lambda output: output + other(ONE)}):
            torch.testing.assert_close(model(ONE), 2 * clean)

    def test_a_recursion_of_the_users_own_stays_what_it_is(self) -> None:
        def endless(output: Tensor) -> Tensor:
            return endless(output)

        with pytest.raises(RecursionError) as caught:
            run_edited(ONE, endless)
        assert caught.value.__notes__ == ["in the edit of layer 'part'"]

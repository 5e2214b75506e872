"""What must be opened with `with` warns when it is thrown away unopened."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchpeek as tp
from torchpeek.errors import LayerNotFound, Notice
from torchpeek.hooks.with_block import WithBlock, opened_by_with

MODEL = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
W = torch.ones(2, requires_grad=True)

UNOPENED: dict[str, Callable[[], Any]] = {
    "tp.record": lambda: tp.record(MODEL, "0"),
    "tp.edit": lambda: tp.edit(MODEL, outputs={"0": abs}),
    "tp.record_gradients": lambda: tp.record_gradients(w=W),
}


def warned(action: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    assert all(each.category is Notice and each.filename == __file__ for each in caught)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("name", UNOPENED)
class TestThrownAway:
    def test_it_names_the_function_and_the_next_step(self, name: str) -> None:
        (message,) = warned(UNOPENED[name])
        assert f"the result of {name} was thrown away before it was opened" in message
        assert f"Next: with {name}(" in message

    def test_nothing_is_said_where_it_was_opened(self, name: str) -> None:
        def opened() -> None:
            with UNOPENED[name]():
                MODEL(torch.ones(2))

        assert warned(opened) == []

    def test_nothing_is_said_where_it_was_displayed(self, name: str) -> None:
        assert warned(lambda: repr(UNOPENED[name]())) == []

    def test_nothing_is_said_where_the_block_raised(self, name: str) -> None:
        def raising() -> None:
            with pytest.raises(ZeroDivisionError), UNOPENED[name]():
                raise ZeroDivisionError

        assert warned(raising) == []


class TestWithBlock:
    def test_nothing_is_said_where_it_could_not_be_made_or_opened(self) -> None:
        def failing() -> None:
            with pytest.raises(LayerNotFound):
                tp.record(MODEL, "nothing")
            with pytest.raises(LayerNotFound), tp.edit(MODEL, outputs={"nothing": abs}):
                pass

        assert warned(failing) == []

    def test_nothing_is_said_while_the_interpreter_exits(self) -> None:
        code = "import torch, torchpeek as tp\ntape = tp.record(torch.nn.Sequential(torch.nn.ReLU()), '0')"
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr == ""

    def test_it_opens_several_times_also_nested(self) -> None:
        block = tp.edit(MODEL, outputs={"1": lambda output: output + 1})
        x = torch.ones(2)
        plain = MODEL(x)
        with block:
            torch.testing.assert_close(MODEL(x), plain + 1)
            with block:
                torch.testing.assert_close(MODEL(x), plain + 2)
        with block:
            torch.testing.assert_close(MODEL(x), plain + 1)
        torch.testing.assert_close(MODEL(x), plain)

    def test_it_decorates_a_function(self) -> None:
        def decorated() -> None:
            @tp.edit(MODEL, outputs={"1": lambda output: output + 1})
            def run(x: torch.Tensor) -> Any:
                return MODEL(x)

            torch.testing.assert_close(run(torch.ones(2)), MODEL(torch.ones(2)) + 1)
            torch.testing.assert_close(run(torch.ones(2)), MODEL(torch.ones(2)) + 1)

        assert warned(decorated) == []

    def test_it_shows_whether_it_is_open(self) -> None:
        block = tp.edit(MODEL, outputs={"1": abs})
        assert repr(block) == "<tp.edit(model, ...), not open; with tp.edit(model, ...): opens it>"
        with block:
            assert ", open;" in repr(block)
            MODEL(torch.ones(2))

    def test_a_block_swallows_what_its_function_swallows(self) -> None:
        @opened_by_with("with swallowing():")
        def swallowing() -> Any:
            with contextlib.suppress(ZeroDivisionError):
                yield

        block: WithBlock[Any] = swallowing()
        with block:
            raise ZeroDivisionError

    def test_a_copy_of_a_recording_that_was_opened_says_nothing(self) -> None:
        with tp.record(MODEL, "0") as tape:
            MODEL(torch.ones(2))
        assert warned(lambda: copy.copy(tape)) == []

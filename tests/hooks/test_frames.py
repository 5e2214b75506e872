"""What runs is read from the stack, and what was read there does not stay alive."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.hooks.frames import first_argument, frames_from, method_is_running, running_module, variable


class Owner:
    def run(self, read: Callable[[], Any]) -> Any:
        return read()

    def run_in_closure(self, read: Callable[[], Any]) -> Any:
        return (lambda: (read(), self)[0])()

    def run_generator(self, read: Callable[[], Any]) -> Iterator[Any]:
        yield read()


def wrapper(*args: Any) -> Any:
    """Names an object `self` without being its method, as the wrapper of `Optimizer.step` does."""
    self, read = args
    return read() if self is not None else None


class Called(nn.Module):
    def __init__(self, read: Callable[[], Any]) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: Tensor) -> Any:
        return self.read()


class TestFramesFrom:
    def test_the_innermost_comes_first_and_the_program_last(self) -> None:
        def inner() -> list[str]:
            return [frame.f_code.co_name for frame in frames_from(sys._getframe())]

        names = inner()
        assert names[0] == "inner"
        assert names[1] == "test_the_innermost_comes_first_and_the_program_last"
        assert names.index("inner") < names.index("pytest_pyfunc_call")

    def test_nothing_comes_from_no_frame(self) -> None:
        assert list(frames_from(None)) == []


class TestMethodIsRunning:
    def test_it_says_so_in_each_way_to_run_one(self) -> None:
        owner = Owner()

        def read() -> bool:
            return method_is_running(owner)

        assert owner.run(read)
        assert owner.run_in_closure(read)
        assert next(owner.run_generator(read))
        assert wrapper(owner, read)
        assert Owner().run(lambda: owner.run(read))

    def test_it_does_not_for_others(self) -> None:
        owner, equal = [1], [1]
        assert not method_is_running(owner)
        assert not wrapper(equal, lambda: method_is_running(owner))
        generator = Owner().run_generator(lambda: None)
        next(generator)
        assert not method_is_running(generator.gi_frame.f_locals["self"])  # it waits, and does not run


class TestRunningModule:
    def test_it_is_the_module_whose_method_runs(self) -> None:
        def read() -> list[nn.Module]:
            modules = map(running_module, frames_from(sys._getframe()))
            return [module for module in modules if module is not None]

        module = Called(read)
        assert set(map(id, module(torch.ones(1)))) == {id(module)}
        assert Owner().run(read) == []  # an object that is no module


class TestVariable:
    def test_only_variables_of_functions_are_read(self) -> None:
        found: dict[str, Any] = {"sys": sys, "variable": variable}
        exec("x = 1\ny = variable(sys._getframe(), 'x')", found)  # the variables of a module are no copy
        assert (found["x"], found["y"]) == (1, None)

    def test_other_names_and_parameters(self) -> None:
        def function(first: int, second: int) -> tuple[Any, ...]:
            frame = sys._getframe()
            return variable(frame, "second"), variable(frame, "third"), first_argument(frame)

        assert function(1, 2) == (2, None, 1)
        assert (lambda: first_argument(sys._getframe()))() is None

    def test_what_is_deleted_after_it_was_read_dies(self) -> None:
        def function() -> bool:
            tensor = torch.ones(1)
            alive = weakref.ref(tensor)
            assert variable(sys._getframe(), "tensor") is tensor
            del tensor
            return alive() is None

        assert function()

    def test_the_dict_of_a_function_that_calls_locals_stays_whole(self) -> None:
        def function(one: int) -> dict[str, Any]:
            own = locals()
            assert variable(sys._getframe(), "one") == 1
            return own

        assert function(1)["one"] == 1


class TestWhoReads:
    """A loop whose frame was read frees its loss as it does without torchpeek."""

    def test_watch(self) -> None:
        model = nn.Linear(2, 1)
        failing, optimizer = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))

        def closure() -> Tensor:
            raise ArithmeticError

        with tp.watch(model):
            with pytest.raises(ArithmeticError):
                failing.step(closure)
            loss = model(torch.ones(1, 2)).sum()
            loss.backward()
            optimizer.step()  # watch looks whether the other step still runs
            alive = weakref.ref(loss)
            del loss
            assert alive() is None

    def test_a_recording_of_a_part(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        with tp.record(model, "0"):
            x = torch.ones(1, 2)
            alive = weakref.ref(x)
            model[0](x)
            del x
            assert alive() is None

    def test_an_edit_inside_an_autograd_function(self) -> None:
        model = nn.Sequential(nn.ReLU())
        dead: list[bool] = []

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Any:
                before = x * 2
                alive = weakref.ref(before)
                after = model(before)
                del before
                dead.append(alive() is None)
                return after

        with tp.edit(model, outputs={"0": lambda output: output + 1}):
            assert Function.apply(torch.ones(1, requires_grad=True)).tolist() == [3]
        assert dead == [True]

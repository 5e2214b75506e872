"""around_steps: what is called before and after the steps of optimizers, and when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from torchpeek.hooks import around_steps


def optimizer(kind: type[Any] = SGD) -> Optimizer:
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    made: Optimizer = kind([weight], lr=0.5)
    return made


class TestAroundSteps:
    @pytest.mark.parametrize("kind", [SGD, Adam])
    def test_before_sees_the_old_weights_and_after_the_new_ones(self, kind: type[Any]) -> None:
        stepping = optimizer(kind)
        weight = stepping.param_groups[0]["params"][0]
        events: list[tuple[str, Optimizer, float]] = []
        with around_steps(
            lambda each, closure: events.append(("before", each, weight.item())),
            lambda each: events.append(("after", each, weight.item())),
        ):
            stepping.step()
        assert events == [("before", stepping, 1.0), ("after", stepping, weight.item())]
        assert weight.item() == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("args", "kwargs", "expected"),
        [((), {}, False), ((None,), {}, False), ((lambda: 1.0,), {}, True), ((), {"closure": lambda: 1.0}, True)],
    )
    def test_it_says_whether_there_is_a_closure(self, args: Any, kwargs: Any, expected: bool) -> None:
        found: list[bool] = []
        with around_steps(lambda each, closure: found.append(closure), lambda each: None):
            optimizer().step(*args, **kwargs)
        assert found == [expected]

    def test_nothing_is_called_outside_of_the_block(self) -> None:
        events: list[Optimizer] = []
        stepping = optimizer()
        block = around_steps(lambda each, closure: events.append(each), events.append)
        stepping.step()
        with block:
            pass
        stepping.step()
        assert events == []

    def test_a_step_that_raises_has_no_after(self) -> None:
        events: list[str] = []

        def closure() -> Tensor:
            raise ArithmeticError

        block = around_steps(lambda each, closure: events.append("before"), lambda each: events.append("after"))
        with block, pytest.raises(ArithmeticError):
            optimizer().step(closure)  # type: ignore[arg-type]
        assert events == ["before"]

    def test_the_hooks_come_off_after_an_exception(self) -> None:
        events: list[Optimizer] = []
        with pytest.raises(ArithmeticError), around_steps(lambda each, closure: events.append(each), events.append):
            raise ArithmeticError
        optimizer().step()
        assert events == []

    def test_blocks_may_be_nested(self) -> None:
        events: list[str] = []

        def named(name: str) -> Any:
            return around_steps(lambda each, closure: events.append(f"before {name}"), lambda each: events.append(name))

        with named("outer"):
            with named("inner"):
                optimizer().step()
            optimizer().step()
        assert events == ["before outer", "before inner", "outer", "inner", "before outer", "outer"]

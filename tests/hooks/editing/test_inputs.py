"""edit(inputs=): positional and keyword inputs, and what a function may return for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import InputError

X, BIAS = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])


class Add(nn.Module):
    """x + bias: what torch tests keyword hooks with. `scale` is a third input."""

    def forward(self, x: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return scale * x + (0 if bias is None else bias)


class Calls(nn.Module):
    """Calls `add` with inputs of its choice."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.add, self.args, self.kwargs = Add(), args, kwargs

    def forward(self) -> Any:
        return self.add(*self.args, **self.kwargs)


def edited(model: nn.Module, change: Callable[..., Any]) -> Any:
    with tp.edit(model, inputs={"add": change}):
        result = model()
    assert not model.add._forward_pre_hooks
    return result


BOTH, POSITIONAL, SEVERAL, KEYWORDS = Calls(X, bias=BIAS), Calls(X), Calls(X, BIAS), Calls(x=X, bias=BIAS)


class TestOneArgument:
    def test_one_positional_input(self) -> None:
        assert torch.equal(edited(POSITIONAL, lambda x: 3 * x), 3 * X)

    def test_one_positional_input_beside_keywords_which_stay(self) -> None:
        assert torch.equal(edited(BOTH, lambda x: 3 * x), 3 * X + BIAS)

    def test_several_positional_inputs(self) -> None:
        assert torch.equal(edited(SEVERAL, lambda args: (args[1], 2 * args[0])), BIAS + 2 * X)
        assert torch.equal(edited(SEVERAL, lambda args: [args[1], 2 * args[0]]), BIAS + 2 * X)

    def test_keywords_alone(self) -> None:
        assert torch.equal(edited(KEYWORDS, lambda kwargs: kwargs | {"bias": 2 * kwargs["bias"]}), X + 2 * BIAS)
        assert torch.equal(edited(KEYWORDS, tp.edits.at("bias", tp.edits.scale(2.0, axis=0))), X + 2 * BIAS)

    def test_parameters_with_defaults_are_not_filled(self) -> None:
        assert torch.equal(edited(BOTH, lambda x, factor=3: factor * x), 3 * X + BIAS)
        assert torch.equal(edited(BOTH, functools.partial(torch.mul, 3)), 3 * X + BIAS)
        assert torch.equal(edited(BOTH, torch.neg), BIAS - X)
        assert torch.equal(edited(BOTH, nn.Identity()), X + BIAS)


class TestTwoArguments:
    def test_torchs_own_case(self) -> None:
        """x + bias with the bias doubled in a pre-hook, as in test_module_hooks.py of torch."""
        change = lambda x, kwargs: (x, {"bias": 2 * kwargs["bias"]})  # noqa: E731
        assert torch.equal(edited(BOTH, change), X + 2 * BIAS)

    def test_both_are_changed_also_in_place_in_the_dict(self) -> None:
        def change(x: Tensor, kwargs: dict[str, Any]) -> Any:
            kwargs["bias"] = -kwargs["bias"]
            return 3 * x, kwargs

        assert torch.equal(edited(BOTH, change), 3 * X - BIAS)
        assert torch.equal(BOTH(), X + BIAS)

    def test_without_keywords(self) -> None:
        assert torch.equal(edited(POSITIONAL, lambda x, kwargs: (3 * x, kwargs)), 3 * X)
        assert torch.equal(edited(SEVERAL, lambda args, kwargs: (args[::-1], kwargs)), X + BIAS)

    def test_without_positional_inputs(self) -> None:
        change = lambda args, kwargs: (args, kwargs | {"x": 3 * kwargs["x"]})  # noqa: E731
        assert torch.equal(edited(KEYWORDS, change), 3 * X + BIAS)

    def test_a_keyword_is_added_or_left_out(self) -> None:
        assert torch.equal(edited(POSITIONAL, lambda x, kwargs: (x, {"bias": BIAS, "scale": 2.0})), 2 * X + BIAS)
        assert torch.equal(edited(BOTH, lambda x, kwargs: (x, {})), X)

    def test_beside_at(self) -> None:
        double = tp.edits.at("bias", tp.edits.scale(2.0, axis=0))
        assert torch.equal(edited(BOTH, lambda x, kwargs: (x, double(kwargs))), X + 2 * BIAS)

    def test_a_method_and_an_object(self) -> None:
        class Change:
            def __call__(self, x: Tensor, kwargs: dict[str, Any]) -> Any:
                return x, {"bias": 2 * kwargs["bias"]}

        assert torch.equal(edited(BOTH, Change()), X + 2 * BIAS)
        assert torch.equal(edited(BOTH, Change().__call__), X + 2 * BIAS)

    def test_the_gradient_flows_through_the_keyword(self) -> None:
        bias = BIAS.clone().requires_grad_()
        edited(Calls(X, bias=bias), lambda x, kwargs: (x, {"bias": kwargs["bias"] ** 2})).sum().backward()
        assert torch.equal(bias.grad, 2 * BIAS)


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "change", "message"),
        [
            (
                BOTH,
                lambda x, kwargs: x,
                r"takes the arguments \(args, kwargs\) and returned a Tensor of shape \(2,\)",
            ),
            (
                BOTH,
                lambda x, kwargs: kwargs,
                r"returned a dict with tensors at 'bias'; allowed: the pair",
            ),
            (BOTH, lambda x, kwargs: (x, x), r"returned a tuple with tensors at '0', '1'; allowed: the pair"),
            (BOTH, lambda x, kwargs: (x, {1: x}), "allowed: the pair"),
            (BOTH, lambda x, kwargs: None, "returned None; allowed: the pair"),
            (BOTH, lambda x, kwargs: ((x, x), kwargs), "got a Tensor and returned a tuple.*allowed: a tensor"),
            (
                SEVERAL,
                lambda args, kwargs: (args[0], kwargs),
                r"tuple with tensors at '0', '1' and returned a Tensor",
            ),
            (
                BOTH,
                lambda x: (x, {}),
                r"returned a tuple .*allowed: a tensor.*f\(args, kwargs\), also gets",
            ),
            (POSITIONAL, lambda x: {"x": x}, "got a Tensor and returned a dict with tensors at 'x'"),
            (POSITIONAL, lambda x: 3.0, "returned a float; allowed: a tensor"),
            (POSITIONAL, lambda x: (each for each in x), "returned a generator; allowed: a tensor"),
            (POSITIONAL, lambda x: None, "returned None"),
            (SEVERAL, lambda args: args[0], "as many members: tp.edits.at\\('0', ...\\) changes one of them"),
            (SEVERAL, lambda args: args[:1], "returned a tuple with tensors at '0'; return the same type"),
            (KEYWORDS, lambda kwargs: {"x": X}, r"'x', 'bias' and returned a dict with tensors at 'x'"),
        ],
    )
    def test_what_is_returned(self, model: nn.Module, change: Callable[..., Any], message: str) -> None:
        with pytest.raises(InputError, match=f"the edit of layer 'add' .*{message}"):
            edited(model, change)
        assert not model.add._forward_pre_hooks

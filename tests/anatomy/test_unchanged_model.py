"""The functions of anatomy leave the model unchanged, on every way out of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import messy, state_of
from torchpeek.engine import preserved


def watched(model: nn.Module, x: Tensor) -> None:
    """A step of an optimizer that changes nothing."""
    # The pass and the step are not torchpeek's: it does not restore the random state, and gives a Notice of the step.
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(), preserved(model), tp.watch(model):
        model(x)
        optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad] or [x], lr=0.0)
        optimizer.step()


def checked(model: nn.Module, x: Tensor) -> None:
    with torch.random.fork_rng(), preserved(model), tp.check_finite(model):
        model(x)


# Every function of this room, on a network in the middle of a training.
EVERY: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "layers": lambda model, x: tp.layers(model, x),
    "kernels": lambda model, x: tp.kernels(model),
    "activations": lambda model, x: tp.activations(model, x, ["bn", "head"]),
    "activations, stopped": lambda model, x: tp.activations(model, x, "conv"),
    "statistics": lambda model, x: tp.statistics(model, [x, x]),
    "statistics with gradients": lambda model, x: tp.statistics(model, [x], loss=lambda out: out.sum()),
    "gradient_flow": lambda model, x: tp.gradient_flow(model, x),
    "plan": lambda model, x: tp.plan(model, x),
    "watch": lambda model, x: watched(model, x),
    "check_finite": lambda model, x: checked(model, x),
}


class TestLeavesTheModelUnchanged:
    @pytest.mark.parametrize("name", EVERY)
    @pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()])
    def test_on_every_exit(self, name: str, error: BaseException | None) -> None:
        model, x = messy(), torch.randn(2, 3, 8, 8)
        model.fail_with = error
        before = state_of(model)
        # The rest of the model runs only to count the calls, and does not matter; Ctrl-C does.
        stopped = name == "activations, stopped" and isinstance(error, Exception)
        if error is None or stopped or name == "kernels":
            EVERY[name](model, x)
        else:
            with pytest.raises(type(error)):
                EVERY[name](model, x)
        assert state_of(model) == before

    @pytest.mark.parametrize("name", EVERY)
    def test_in_the_callers_inference_mode_or_frozen(self, name: str) -> None:
        model, x = messy(), torch.randn(2, 3, 8, 8)
        before = state_of(model)
        with torch.inference_mode():
            EVERY[name](model, x)
        assert state_of(model) == before
        if name not in ("gradient_flow", "watch"):  # of a frozen model there is nothing to see
            model.requires_grad_(False)
            EVERY[name](model, x)

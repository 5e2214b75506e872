"""record: values and gradients by hand, and a model that is left unchanged."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import signal
import threading
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchpeek as tp
from networks import Scale, TwoKernels, messy, state_of


class TestByHand:
    def test_output_and_input(self) -> None:
        model, x = TwoKernels(), torch.ones(1, 1, 4, 4)
        with tp.record(model, "conv", inputs=True) as tape:
            y = model(x)
        assert y.flatten().tolist() == [9, 18]
        assert tape["conv"].output.shape == (1, 2, 2, 2)
        assert tape["conv"].output[0, 0].unique().tolist() == [9]
        assert tape["conv"].output[0, 1].unique().tolist() == [18]
        assert torch.equal(tape["conv"].input, x)

    def test_gradients(self) -> None:
        model, x = TwoKernels(), torch.ones(1, 1, 4, 4)
        with tp.record(model, "conv", gradients=True) as tape:
            F.l1_loss(model(x), torch.zeros(1, 2, 1, 1)).backward()
        gradient = tape["conv"].grad_output
        assert [sorted(channel.flatten().tolist()) for channel in gradient[0]] == [[0, 0, 0, 0.5]] * 2
        assert model.conv.weight.grad.unique().tolist() == [0.5]
        assert model.conv.bias.grad.tolist() == [0.5, 0.5]
        assert tape["conv"].grad_input is None

    def test_the_gradient_of_an_input_is_this_layers_own_contribution(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.twice = Scale(2.0)

            def forward(self, x):
                return self.twice(x) + 10 * x

        x = torch.ones(2, requires_grad=True)
        model = Net()
        with tp.record(model, "twice", gradients=True) as tape:
            model(x).sum().backward()
        assert tape["twice"].grad_input.tolist() == [2, 2]
        assert x.grad.tolist() == [12, 12]


def test_autocast() -> None:
    """The output and its gradient are in the type that the layer computed in, the input in the one it was given."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4)
    with tp.record(model, ["0", "1"], inputs=True, gradients=True) as tape, torch.autocast("cpu", torch.bfloat16):
        model(x).float().sum().backward()
    assert tape["0"].input.dtype == torch.float32
    assert tape["0"].output.dtype == tape["0"].grad_output.dtype == torch.bfloat16
    assert tape["1"].input.dtype == torch.bfloat16


def test_keyword_arguments() -> None:
    class Add(nn.Module):
        def forward(self, a, *, b):
            return a + 2 * b

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add = Add()

        def forward(self, x):
            return self.add(x, b=x * 10)

    model, x = Net(), torch.ones(1, requires_grad=True)
    with tp.record(model, "add", inputs=True, gradients=True) as tape:
        model(x).backward()
    assert tape["add"].input.item() == 1
    assert tape["add"].kwargs["b"].item() == 10
    assert tape["add"].grad_input.item() == 1
    assert x.grad.item() == 21


class TestLeavesTheModelUnchanged:
    @pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()])
    def test_hook_for_hook(self, error: BaseException | None) -> None:
        model, x = messy(), torch.randn(2, 3, 8, 8)
        model.zero_grad()  # a deepcopy takes no gradients along
        hooks = state_of(model)["hooks"]
        twin = copy.deepcopy(model)
        model.fail_with = twin.fail_with = error
        try:
            with tp.record(model, "*", inputs=True, gradients=True), tp.edit(model, outputs={"drop": lambda out: out}):
                torch.manual_seed(5)
                model(x).sum().backward()
        except (RuntimeError, KeyboardInterrupt):
            assert error is not None
        assert state_of(model)["hooks"] == hooks
        try:
            torch.manual_seed(5)
            twin(x).sum().backward()
        except (RuntimeError, KeyboardInterrupt):
            pass
        # What the pass itself does, in train mode, it does with and without us: numbers and random state alike.
        mine, theirs = state_of(model), state_of(twin)
        for key in ("modes", "values", "random state", "grad mode"):
            assert mine[key] == theirs[key]
        for (name, ours), (_, other) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
            assert (ours.grad is None) == (other.grad is None), name
            assert ours.grad is None or torch.equal(ours.grad, other.grad), name
        for (name, ours), (_, other) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
            assert torch.equal(ours, other), name


# One that comes in the callback of a weak reference Python itself swallows, and pytest then warns of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_moment_leaves_no_hook_behind() -> None:
    """Also at the very first instruction of the block's end, and nobody else's handler is put out of force."""
    model, x = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2)
    before, handler = state_of(model)["hooks"], signal.getsignal(signal.SIGINT)

    def interrupt(after: float) -> None:
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGINT)

    caught = 0
    for delay in torch.rand(150).mul(0.01).tolist():
        thread = threading.Thread(target=interrupt, args=(0.003 + delay,))
        with contextlib.suppress(KeyboardInterrupt):
            try:
                thread.start()
                while thread.is_alive():
                    with tp.record(model, "*", inputs=True, gradients=True, parameters=True):
                        model(x).sum().backward()
                time.sleep(0.01)
            except KeyboardInterrupt:
                caught += 1
        thread.join()
        assert state_of(model)["hooks"] == before
        assert signal.getsignal(signal.SIGINT) is handler
        assert not any(parameter._backward_hooks for parameter in model.parameters())
    assert caught > 100


@pytest.mark.parametrize("options", [{}, {"gradients": True, "parameters": True}, {"inputs": True, "passes": "all"}])
def test_a_recording_that_is_opened_by_hand_closes_when_nothing_refers_to_it(options: dict[str, Any]) -> None:
    model = TwoKernels()
    before = state_of(model)
    tape = tp.record(model, "conv", **options)
    tape.__enter__()
    model(torch.ones(1, 1, 4, 4))
    assert model.conv._forward_hooks
    del tape
    gc.collect()
    assert not model.conv._forward_hooks
    assert not any(parameter._backward_hooks for parameter in model.parameters())
    assert state_of(model) == before

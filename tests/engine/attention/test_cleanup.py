"""Recording attention leaves torch and the model unchanged: after errors, interrupts, and with other threads."""

from __future__ import annotations

import contextlib
import copy
import signal
import threading

import pytest
import torch
from torch import nn

from networks.attention import WIDTH, Block, close, picture, recorded, vit
from torchpeek.engine.attention.gradients import attention_gradients
from torchpeek.engine.attention.recorder import AttentionRecorder
from torchpeek.interrupts import interruptible

pytestmark = pytest.mark.usefixtures("one_thread")


class TestCleanup:
    def state(self, model):
        return {
            "grad mode": torch.is_grad_enabled(),
            "modes": torch.overrides._get_current_function_mode_stack(),
            "hooks": [
                (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._forward_hooks_always_called))
                for m in model.modules()
            ],
            "training": [m.training for m in model.modules()],
            "grads": [(p.requires_grad, p.grad is None) for p in model.parameters()],
            "signal": signal.getsignal(signal.SIGINT),
        }

    def test_as_it_was(self) -> None:
        model, x = vit(), picture()
        before, weights = self.state(model), copy.deepcopy(model.state_dict())
        with torch.no_grad():
            expected = model(x)
        attention_gradients(*recorded(model, x))
        assert self.state(model) == before
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        with torch.no_grad():
            assert torch.equal(model(x), expected)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_after_an_error_inside(self, error) -> None:
        model, x = vit("multihead"), picture()
        before = self.state(model)

        def fail(*_):
            raise error("here")

        model.blocks[1].norm2.forward = fail
        with pytest.raises(error, match="here"), torch.device("cpu"), AttentionRecorder(True, model):
            model(x)
        assert self.state(model) == before

    def test_after_ctrl_c(self) -> None:
        model, x = vit(), picture()
        before = self.state(model)
        usual = model.blocks[1].norm2.forward

        def press(z):
            signal.raise_signal(signal.SIGINT)
            return usual(z)

        model.blocks[1].norm2.forward = press
        with pytest.raises(KeyboardInterrupt), AttentionRecorder(True, model), interruptible():
            model(x)
        assert self.state(model) == before

    @pytest.mark.parametrize("around", [lambda: torch.device("cpu"), contextlib.nullcontext])
    def test_after_an_interrupt_between_two_modes(self, around) -> None:
        """As an interrupt may come where torch itself has taken the mode off, and not put it back."""
        model, x = vit(), picture()
        before = self.state(model)

        def torn(z):
            torch._C._pop_torch_function_stack()
            raise KeyboardInterrupt

        model.blocks[1].norm2.forward = torn
        with around():
            own = torch.overrides._get_current_function_mode_stack()
            with pytest.raises(KeyboardInterrupt), AttentionRecorder(True, model):
                model(x)
            assert torch.overrides._get_current_function_mode_stack() == own
        assert self.state(model) == before

    def test_an_error_that_the_model_catches(self) -> None:
        class Stubborn(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bad, self.block = nn.Linear(3, 3), Block("fused")

            def forward(self, z):
                try:
                    self.bad(z)
                except RuntimeError:
                    z = self.block(z)
                return z[:, 0]

        _, [found] = recorded(Stubborn(), torch.randn(2, 6, WIDTH))
        assert (found.layer, found.block) == ("block.attn", "block")

    def test_two_threads_at_once_and_a_third_without(self) -> None:
        x, together = picture(), threading.Barrier(3)
        models = [vit(), vit("multihead"), vit()]
        models[1].load_state_dict(models[0].state_dict())
        found: dict[int, object] = {}

        def meet(*_):
            together.wait(10)

        for model in models:
            model.norm.register_forward_pre_hook(meet)
            model.blocks[1].norm1.register_forward_pre_hook(meet)

        def work(number):
            if number < 2:
                output, attentions = recorded(models[number], x)
                found[number] = [each.weights for each in attentions], attention_gradients(output, attentions)
            else:
                with torch.no_grad():
                    found[number] = models[number](x), torch.overrides._get_current_function_mode_stack()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for ours, theirs in zip(found[0], found[1], strict=True):
            for one, two in zip(ours, theirs, strict=True):
                close(one, two)
        output, modes = found[2]
        assert modes == []
        models[2].blocks[1].norm1._forward_pre_hooks.clear()
        models[2].norm._forward_pre_hooks.clear()
        with torch.no_grad():
            assert torch.equal(output, models[2](x))

    def test_somebody_else_running_the_same_model(self) -> None:
        model, x, others = vit(), picture(), []

        def meanwhile(*_):
            if not others:
                others.append(threading.Thread(target=model.blocks[0], args=(torch.randn(2, 7, WIDTH).double(),)))
                others[0].start()
                others[0].join()

        model.blocks[0].norm2.register_forward_hook(meanwhile)
        output, found = recorded(model, x)
        assert [each.block for each in found] == ["blocks.0", "blocks.1"]
        close(output.detach(), vit()(x).detach(), 1e-12)

"""The model is left unchanged: after a trace, an error or an interrupt, and with other threads at work."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import PooledNet, messy, state_of
from torchpeek.engine import as_model_call, layer_calls, saved_tensors, suggest_layer
from torchpeek.engine.preserve import preserved
from torchpeek.engine.targets import Classes, Predicted, TopClasses
from tracing import traced


class TestLeavesTheModelUnchanged:
    @pytest.mark.parametrize("gradients", [True, False])
    @pytest.mark.parametrize("layer", ["conv", "bn", "act"])
    def test_after_a_trace(self, layer: str, gradients: bool) -> None:
        model = messy()
        x = torch.randn(2, 3, 8, 8)
        before = state_of(model)
        trace = traced(model, x, [layer], TopClasses(2), gradients=gradients)
        if gradients:
            _ = trace.gradients
        trace.rescore(lambda given, rows, trials: given * 0.5, 3)
        trace.ablate(lambda given, rows, trials: given * 0.5, 3)
        trace.again(x + 1)
        assert state_of(model) == before

    @pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
    def test_after_an_error_in_the_middle(self, error: BaseException) -> None:
        model = messy()
        x = torch.randn(2, 3, 8, 8)
        trace = traced(model, x, ["act"], Predicted())
        before = state_of(model)
        model.fail_with = error
        for ask in (
            lambda: traced(model, x, ["conv"], Predicted()),
            lambda: trace.rescore(lambda given, rows, trials: given, 2),
            lambda: trace.ablate(lambda given, rows, trials: given, 2),
            lambda: trace.again(x),
            lambda: layer_calls(model, as_model_call(model, x)),
            lambda: suggest_layer(model, as_model_call(model, x)),
        ):
            with pytest.raises(type(error)):
                ask()
            assert state_of(model) == before

    def test_a_change_that_raises(self) -> None:
        model = messy()
        trace = traced(model, torch.randn(2, 3, 8, 8), ["act"], Predicted())
        before = state_of(model)
        with pytest.raises(ZeroDivisionError):
            trace.ablate(lambda given, rows, trials: given * (1 // 0), 2)
        assert state_of(model) == before

    # An interrupt that lands in a weakref's callback is swallowed by Python itself, with this warning; the call then
    # goes on to its end, and the model has to be as found all the same.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_after_ctrl_c_at_any_moment(self) -> None:
        """Also between a hook's registration and its handle, or in the middle of putting things back."""
        import torchpeek as tp

        model = messy()
        x = torch.randn(2, 3, 8, 8)
        start = time.perf_counter()
        for _ in range(5):
            tp.explain(model, x, layer="act")
        once = (time.perf_counter() - start) / 5
        moments = random.Random(0)
        interrupted = 0
        former = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        try:
            for _ in range(300):
                before = state_of(model)
                try:
                    signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-5, once))
                    tp.explain(model, x, layer=moments.choice(["act", None]), target=[[0, 1], [1, 2]])
                    time.sleep(0.2)
                except KeyboardInterrupt:
                    interrupted += 1
                assert state_of(model) == before
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
        assert interrupted >= 280, "nearly all of them came through"

    def test_eval_mode_inside_whatever_a_users_train_does(self) -> None:
        class Stubborn(PooledNet):
            def train(self, mode: bool = True):
                raise AssertionError("a tool has no business here")

        model = Stubborn()
        model.act.training = True
        with preserved(model):
            assert not any(module.training for module in model.modules())
        assert model.act.training

    def test_buffers_that_are_inference_tensors(self) -> None:
        model = messy()
        with torch.inference_mode():
            model.bn.running_mean = torch.ones(6)
        x = torch.randn(2, 3, 8, 8)
        before = state_of(model)
        traced(model, x, ["act"], Predicted())
        assert state_of(model) == before

    @pytest.mark.parametrize("kind", ["sparse", "resized", "expanded with NaN", "shadowed"])
    def test_buffers_of_odd_kinds(self, kind: str) -> None:
        class Odd(PooledNet):
            def __init__(self) -> None:
                super().__init__()
                odd = torch.arange(3.0)
                if kind == "sparse":
                    odd = torch.eye(3).to_sparse()
                elif kind == "expanded with NaN":
                    odd = torch.tensor([torch.nan]).expand(3)
                self.register_buffer("odd", odd)
                self.register_buffer("after", torch.zeros(1))

            def forward(self, x):
                if kind == "resized":
                    self.odd.data = torch.zeros(7)
                elif kind == "shadowed":
                    del self.odd
                    self.odd = torch.ones(1)
                self.after += 1
                return super().forward(x)

        model = Odd()
        odd = model.odd
        before = odd.to_dense().tolist()
        traced(model, torch.randn(1, 3, 5, 5), ["act"], Predicted())
        assert model.odd is odd
        assert str(model.odd.to_dense().tolist()) == str(before)
        assert "odd" not in model.__dict__
        assert model.after.tolist() == [0]

    @pytest.mark.parametrize("cut", [1, 2])
    def test_gradients_where_a_no_grad_block_is_cut_short(self, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """An exception from outside, between the last line of torch's block and its end, skips the end."""
        calls = 0
        flattened = saved_tensors._flattened

        def cut_short(tensors: list[torch.Tensor]) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == cut:  # the first call saves, the second one compares
                torch.set_grad_enabled(False)
                raise KeyboardInterrupt
            return flattened(tensors)

        model = nn.BatchNorm2d(3)
        monkeypatch.setattr(saved_tensors, "_flattened", cut_short)
        with pytest.raises(KeyboardInterrupt), preserved(model):
            model.running_mean.add_(1)
            model.running_mean.data = torch.ones(3)
        assert torch.is_grad_enabled()

    def test_a_model_that_writes_into_its_input(self) -> None:
        class Normalising(PooledNet):
            def forward(self, x):
                return super().forward(x.sub_(1).div_(2))

        model, x = Normalising().eval(), torch.randn(2, 3, 5, 5)
        mine = x.clone()
        trace = traced(model, x, ["act"], Predicted())
        assert torch.equal(x, mine)
        torch.testing.assert_close(trace.rescore(lambda given, rows, trials: given, 1)[:, 0], trace.scores)
        x.zero_()  # nor does the caller into what the trace keeps
        torch.testing.assert_close(trace.again(mine).scores, trace.scores)
        torch.testing.assert_close(trace.rescore(lambda given, rows, trials: given, 1)[:, 0], trace.scores)

    def test_two_compiled_models_in_two_threads(self) -> None:
        """Running eagerly is a matter of the process; the first that comes turns it on, the last that goes off."""
        models = [PooledNet(), PooledNet()]
        for model in models:
            model.compile(backend="eager")
        entered, left = threading.Event(), threading.Event()
        stances = []

        def stays_longer() -> None:
            with preserved(models[1]):
                entered.set()
                left.wait()
                stances.append(torch._dynamo.eval_frame._stance.stance)

        other = threading.Thread(target=stays_longer)
        with preserved(models[0]):
            other.start()
            entered.wait()
        left.set()
        other.join()
        assert stances == ["force_eager"]
        assert torch._dynamo.eval_frame._stance.stance == "default"

    def test_an_instances_own_forward_stays(self) -> None:
        model = messy()
        own = model.act.forward = partial(F.relu, inplace=False)
        traced(model, torch.randn(2, 3, 8, 8), ["act"], Predicted())
        assert model.act.__dict__["forward"] is own

    def test_nothing_lives_on(self) -> None:
        """Peers: hooks and graphs stay after the call."""
        model = messy()
        kept = []
        model.act.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
        trace = traced(model, torch.randn(2, 3, 8, 8), ["bn"], Predicted())
        alive = weakref.ref(trace.at["bn"].activation)
        _ = trace.gradients
        del trace
        assert alive() is None
        assert [reference() for reference in kept] == [None] * len(kept)
        assert len(kept) == 2  # the second pass checks that the layer depends on the picture

    def test_two_models_that_share_a_part(self) -> None:
        """Each in a thread of its own: the part is in one's hands at a time."""
        shared = messy()
        models = [nn.Sequential(shared), nn.Sequential(shared)]
        inputs = torch.randn(1, 3, 8, 8)
        before = state_of(shared)
        failed = []

        def work(model: nn.Module) -> None:
            try:
                for _ in range(25):
                    _ = traced(model, inputs, ["0.act"], Classes([0])).gradients
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(model,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert state_of(shared) == before

    def test_two_threads_at_one_model(self) -> None:
        """One at a time; without the lock the hooks of the one would see the pass of the other."""
        model = messy()
        inputs = [torch.randn(1, 3, 8, 8) for _ in range(2)]
        alone = [traced(model, x, ["act"], Classes([0])).activations for x in inputs]
        before = state_of(model)
        wrong = []

        def work(n: int) -> None:
            for _ in range(20):
                if not torch.equal(traced(model, inputs[n], ["act"], Classes([0])).activations, alone[n]):
                    wrong.append(n)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert state_of(model) == before

    def test_somebody_elses_pass_is_not_captured(self) -> None:
        """Another thread may run the model meanwhile: its pass goes through our hooks, and stays its own."""
        model = PooledNet().eval()
        x, other = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
        seen = []

        def elsewhere(module, args):
            if threading.current_thread() is threading.main_thread():
                thread = threading.Thread(target=lambda: seen.append(model(other).requires_grad))
                thread.start()
                thread.join()

        model.head.register_forward_pre_hook(elsewhere)
        trace = traced(model, x, ["act"], Predicted())
        torch.testing.assert_close(trace.activations.squeeze(1), model.act(model.features(x)).detach())
        assert len(seen) == 2  # the second pass checks that the layer depends on the picture

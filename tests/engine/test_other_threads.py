"""Other threads, forks and passes inside of passes: each goes on as if torchpeek did nothing."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchpeek as tp
from networks import PooledNet, state_of
from torchpeek.engine.model_locks import LockHolder
from torchpeek.engine.preserve import preserved
from torchpeek.engine.random_state import _DrawObserver
from torchpeek.undo import Undo

INPUTS = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8).sin()


class Drawing(PooledNet):
    """A network that draws random numbers in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


@contextmanager
def in_another_thread(work: Callable[[], object]) -> Iterator[None]:
    """Repeat the work in another thread while the block runs."""
    stopped = threading.Event()
    started = threading.Event()

    def repeat() -> None:
        while not stopped.is_set():
            work()
            started.set()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        assert started.wait(30)
        yield
    finally:
        stopped.set()
        thread.join()


class TestRandomState:
    def test_draws_of_a_thread_while_another_explains(self) -> None:
        """They are the numbers that it draws alone: none comes twice."""
        model = PooledNet()
        torch.manual_seed(0)
        expected = [torch.rand(()).item() for _ in range(300)]
        torch.manual_seed(0)
        drawn = []
        with in_another_thread(lambda: tp.explain(model, INPUTS, layer="act")):
            torch.manual_seed(0)
            for _ in range(300):
                drawn.append(torch.rand(()).item())
                time.sleep(0.0002)
        assert drawn == expected

    def test_attention_without_dropout_draws_nothing(self) -> None:
        """Also where another thread draws during each of its operations."""
        q = torch.ones(1, 1, 4, 8)
        observer = _DrawObserver([torch.device("cpu")])

        class OtherThread(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                torch.default_generator.manual_seed(next(seeds))
                return func(*args, **(kwargs or {}))

        seeds = iter(range(1000))
        with OtherThread(), observer:
            torch.nn.functional.scaled_dot_product_attention(q, q, q)
            torch.nn.functional.dropout(q, 0.5, training=False)
            torch.lstm(q[0], (q[0, :, :1], q[0, :, :1]), [torch.ones(32, 8)] * 2, False, 1, 0.0, True, False, True)
        assert not observer.has_drawn()
        with OtherThread(), observer:
            torch.nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
        assert observer.has_drawn()

    def test_an_exception_right_after_the_draw(self) -> None:
        class Strikes(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                func(*args, **(kwargs or {}))
                raise KeyboardInterrupt

        observer = _DrawObserver([torch.device("cpu")])
        with pytest.raises(KeyboardInterrupt), Strikes(), observer:
            torch.rand(2)
        assert observer.has_drawn()

    @pytest.mark.parametrize("others", [False, True])
    def test_a_model_that_draws(self, others: bool) -> None:
        model, alone = Drawing(), threading.Event()
        torch.manual_seed(3)
        heatmap = tp.explain(model, INPUTS, layer="act").values
        torch.manual_seed(3)
        again, expected = tp.explain(model, INPUTS, layer="act").values, torch.get_rng_state()
        assert not torch.equal(heatmap, torch.zeros_like(heatmap))
        if not others:
            torch.manual_seed(3)
            assert torch.equal(torch.get_rng_state(), expected)
            return
        idle = threading.Thread(target=alone.wait)
        idle.start()
        try:
            for call in (
                lambda: tp.activations(model, INPUTS, "act"),
                lambda: tp.statistics(model, [INPUTS]),
                lambda: tp.gradient_flow(model, INPUTS),
                lambda: tp.explain(model, INPUTS, layer="act"),
            ):
                for _ in range(2):  # the first pass is observed, and what it shows holds for the second
                    torch.manual_seed(3)
                    call()
                    assert torch.equal(torch.get_rng_state(), expected)
            assert torch.equal(tp.explain(model, INPUTS, layer="act").values, again)
        finally:
            alone.set()
            idle.join()

    def test_a_baseline_of_the_users_that_draws(self) -> None:
        """Its numbers follow from the seed; one that draws nothing does not touch the state."""
        model = PooledNet()
        heatmap = tp.explain(model, INPUTS, layer="act")
        drawn = []

        def baseline(inputs: Tensor) -> Tensor:
            drawn.append(torch.rand_like(inputs))
            return drawn[-1]

        torch.manual_seed(5)
        before = torch.get_rng_state()
        tp.evaluate(model, INPUTS, heatmap, metrics={"deletion": {"steps": 2, "baseline": baseline}}, seed=7)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(drawn[0], torch.rand(INPUTS.shape, generator=torch.Generator().manual_seed(7)))


class TestTrainingMeanwhile:
    def test_a_call_from_another_thread_is_noticed(self) -> None:
        model = PooledNet().train()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with preserved(model):
                thread = threading.Thread(target=model, args=(INPUTS,))
                thread.start()
                thread.join()
                model(INPUTS)
        assert [str(each.message) for each in caught if "another thread called PooledNet" in str(each.message)]
        assert len(caught) == 1
        assert not model._forward_pre_hooks

    def test_a_model_in_eval_mode_gets_no_hook(self) -> None:
        model = PooledNet().eval()
        with preserved(model):
            assert not model._forward_pre_hooks


class TestPassInsideAPass:
    @pytest.mark.parametrize("where", ["features", "act", ""])
    @pytest.mark.parametrize(
        "inner",
        [
            lambda model: tp.explain(model, INPUTS, layer="act").values,
            lambda model: tp.explain(model, INPUTS).values,
            lambda model: tp.trace(model, INPUTS, layer="act").scores,
            lambda model: tp.activations(model, INPUTS, "act")["act"],
            lambda model: torch.tensor(tp.gradient_flow(model, INPUTS).total_norm),
            lambda model: torch.tensor(next(iter(tp.statistics(model, [INPUTS], "act"))).output.summary().mean),
        ],
    )
    def test_a_hook_that_explains_its_model(self, inner: Callable[[nn.Module], Tensor], where: str) -> None:
        model = PooledNet()
        outer = [
            lambda: tp.explain(model, INPUTS, layer="act").values,
            lambda: tp.explain(model, INPUTS, layer="act", method="scorecam").values,
            lambda: tp.explain(model, INPUTS).values,
        ]
        expected = [call() for call in outer]
        expected_inside, inside = inner(model), []

        def hook(*_: object) -> None:
            handle.remove()  # the passes inside run the hook, too
            inside.append(inner(model))

        for call, value in zip(outer, expected, strict=True):
            handle = model.get_submodule(where).register_forward_hook(hook)
            before = {key: value for key, value in state_of(model).items() if key != "hooks"}
            assert torch.equal(call(), value)
            assert {key: value for key, value in state_of(model).items() if key != "hooks"} == before
        assert len(inside) == len(outer)
        assert all(torch.equal(each, expected_inside) for each in inside)

    def test_a_forward_that_explains_a_part(self) -> None:
        class Explaining(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = PooledNet()

            def forward(self, x: Tensor) -> Tensor:
                heat = tp.explain(self.net, x, layer="act", target=0).resized(tuple(x.shape[2:])).values
                return self.net(x * heat[:, :1].relu())

        model = Explaining()
        alone = tp.explain(model.net, INPUTS, layer="act", target=0).values
        heatmap = tp.explain(model, INPUTS, layer="net.act", target=0)
        assert torch.isfinite(heatmap.values).all()
        assert torch.equal(tp.explain(model.net, INPUTS, layer="act", target=0).values, alone)


class TestLocks:
    @pytest.mark.parametrize("which", ["over", "thread gone"])
    def test_a_block_that_is_gone_holds_nothing(self, which: str) -> None:
        modules = list(PooledNet().modules())
        undo, closer = Undo(), Owner()
        undo.watch(closer)

        def hold() -> None:
            LockHolder(undo).acquire(modules)  # and no step that releases it

        if which == "over":
            hold()
            del closer
        else:
            thread = threading.Thread(target=hold)
            thread.start()
            thread.join()
        done = []

        def other() -> None:
            holder = LockHolder(Undo())
            holder.acquire(modules)
            holder.release()
            done.append(True)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(10)
        assert done


class Owner:
    """What a `with` statement holds."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Python 3.12, about every fork with threads
class TestFork:
    def test_a_fork_while_another_thread_explains(self) -> None:
        """The child finds the model as it was, and can explain it."""
        model = PooledNet().train()
        tp.explain(model, INPUTS, layer="act")  # what is imported on the way is, before the fork
        codes = []
        with in_another_thread(lambda: tp.explain(model, INPUTS, layer="act")):
            gc.disable()
            for number in range(12):
                time.sleep(0.0007 * number)
                child = os.fork()
                if child == 0:
                    code = 1
                    try:
                        signal.alarm(20)
                        hooks = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())
                        code = 2 * bool(hooks) + 4 * (not all(each.training for each in model.modules()))
                        tp.explain(model, INPUTS, layer="act")
                    finally:
                        os._exit(code)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            gc.enable()
        assert codes == [0] * 12

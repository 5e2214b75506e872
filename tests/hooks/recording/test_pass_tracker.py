"""Which forward passes a recording covers: several passes, recursion, threads, and stopping early."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, Scale
from torchpeek.errors import AmbiguousCall, InputError, NotFired


class TestPasses:
    def test_a_model_that_calls_itself_is_one_pass(self) -> None:
        class Tree(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.leaf = Scale(2.0)

            def forward(self, x, depth: int = 2, fail: bool = False):
                if fail and depth == 0:
                    raise RuntimeError
                return self.leaf(x) if depth == 0 else self.leaf(self(x, depth - 1, fail))

        model = Tree()
        with tp.record(model, "leaf") as tape:
            for fail in (False, True, False):
                with contextlib.suppress(RuntimeError):
                    model(torch.ones(1), fail=fail)
        assert [call.output.item() for call in tape["leaf"]] == [2, 4, 8]

    def test_what_this_pass_did_not_call_is_let_go_of(self) -> None:
        class Branch(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Identity(), nn.Identity()

            def forward(self, x, which: str):
                return getattr(self, which)(x * 1)

        model = Branch()
        with tp.record(model, "*", snapshot="clone") as tape:
            model(torch.ones(4), "a")
            old = weakref.ref(tape["a"][0])
            model(torch.ones(4), "b")
            assert old() is None
            assert tape.nbytes == 16

    def test_last_and_all(self) -> None:
        model = PooledNet()
        inputs = [torch.randn(1, 3, 4, 4) for _ in range(3)]
        with tp.record(model, "act") as last, tp.record(model, "act", passes="all") as every:
            for x in inputs:
                model(x)
        assert len(last["act"]) == 1
        assert len(every["act"]) == 3
        assert torch.equal(last["act"].output, every["act"][2].output)

    def test_training_goes_on(self) -> None:
        def train(recorded: bool) -> list[float]:
            torch.manual_seed(3)
            model = PooledNet()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            losses = []
            tape = tp.record(model, "*", gradients=True, inputs=True) if recorded else None
            if tape is not None:
                tape.__enter__()
            for _ in range(4):
                loss = model(torch.randn(4, 3, 5, 5)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            if tape is not None:
                tape.__exit__(None, None, None)
                assert tape["act"].grad_output is not None
            return losses

        assert train(recorded=True) == train(recorded=False)

    def test_nothing_is_left_alive(self) -> None:
        """200 recordings, with gradients, whose graphs outlive them."""
        model, alive = PooledNet(), []
        for _ in range(200):
            with tp.record(model, "*", gradients=True, inputs=True) as tape:
                loss = model(torch.randn(1, 3, 4, 4)).sum()
                loss.backward()
            alive += [weakref.ref(tape), weakref.ref(tape["act"].output)]
            del tape, loss
        gc.collect()
        assert [reference() for reference in alive] == [None] * len(alive)


class TestStop:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = Scale(2.0), Scale(3.0), Scale(5.0)
            self.ran: list[str] = []

        def forward(self, x, skip: bool = False):
            x = self.first(x)
            self.ran.append("first")
            x = x if skip else self.second(x)
            self.ran.append("second")
            x = self.third(x)
            self.ran.append("third")
            return x

    def test_after_the_last_that_is_called_not_the_last_that_is_listed(self) -> None:
        model = self.Net()
        with tp.record(model, ["second", "first"], stop=True) as tape:
            model(torch.ones(1))
            raise AssertionError("the block ends with the pass")
        assert model.ran == ["first"]
        assert (tape["first"].output.item(), tape["second"].output.item()) == (2, 6)
        assert not model.first._forward_hooks

    def test_opened_again_it_waits_for_all_of_them_again(self) -> None:
        model = self.Net()
        tape = tp.record(model, ["first", "second"], stop=True)
        for value in (1.0, 10.0):
            with tape:
                model(torch.tensor([value]))
        assert (tape["first"].output.item(), tape["second"].output.item()) == (20, 60)

    def test_a_layer_that_is_not_called_is_not_waited_for_again(self) -> None:
        model = self.Net()
        tape = tp.record(model, ["first", "second"], stop=True)
        with tape:
            model(torch.ones(1), skip=True)
        assert model.ran == ["first", "second", "third"]
        with tape:
            model(torch.ones(1), skip=True)
        assert model.ran[3:] == []
        with pytest.raises(NotFired, match=r"stopped before layer 'second'.*stop=False"):
            _ = tape["second"].output

    def test_an_exception_of_the_users_comes_through(self) -> None:
        model = self.Net()
        with pytest.raises(ZeroDivisionError), tp.record(model, "third", stop=True):
            _ = 1 // 0

    def test_two_that_stop_each_end_their_own_block(self) -> None:
        model, reached = self.Net(), []
        with tp.record(model, "second", stop=True) as outer:
            with tp.record(model, "first", stop=True) as inner:
                model(torch.ones(1))
            reached.append("inner")
            model(torch.ones(1))
        assert reached == ["inner"]
        assert (inner["first"].output.item(), outer["second"].output.item()) == (2, 6)

    def test_refusals(self) -> None:
        model = self.Net()
        with pytest.raises(InputError, match="stop or gradients"):
            tp.record(model, "first", stop=True, gradients=True)

        class FSDPModule(nn.Linear):
            """By this name torch knows a sharded module."""

        with pytest.raises(InputError, match="FSDP"):
            tp.record(nn.Sequential(FSDPModule(2, 2)), "0", stop=True)


class TestThreads:
    def test_each_thread_records_its_own(self) -> None:
        model = PooledNet().eval()
        inputs = [torch.randn(1, 3, 4, 4) for _ in range(6)]
        with torch.no_grad():
            truth = [model.act(model.features(x)) for x in inputs]
        found: dict[int, Tensor] = {}

        def work(number: int) -> None:
            with torch.no_grad():
                for _ in range(20):
                    with tp.record(model, "act", inputs=True) as tape:
                        model(inputs[number])
                    found[number] = tape["act"].output
                    assert torch.equal(found[number], truth[number])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(found[number], truth[number]) for number in range(6))
        assert not model.act._forward_hooks

    def test_a_pass_in_another_thread_is_not_ours_and_it_says_so(self) -> None:
        model = PooledNet()
        with tp.record(model, "act") as tape:
            thread = threading.Thread(target=model, args=(torch.randn(1, 3, 4, 4),))
            thread.start()
            thread.join()
        with pytest.raises(NotFired, match="in another thread"):
            _ = tape["act"].output

    def test_replicas_of_the_model_are_put_together(self) -> None:
        """As DataParallel runs them: replicas in threads of their own, one pass."""
        model = PooledNet().eval()
        halves = torch.randn(2, 2, 3, 4, 4)
        tape = tp.record(model, ["act", "head"], inputs=True, gradients=True)
        with tape:
            for number_of_pass in range(2):
                results: dict[int, Tensor] = {}
                replicas = [model._replicate_for_data_parallel() for _ in range(2)]

                def run(number: int, replica: nn.Module, into: dict[int, Tensor]) -> None:
                    into[number] = replica(halves[number])

                for number, replica in enumerate(replicas):  # one after the other: on one device nothing orders them
                    thread = threading.Thread(target=run, args=(number, replica, results))
                    thread.start()
                    thread.join()
                if number_of_pass == 0:
                    tape.new_pass()  # real ones are told apart by their devices; these are all on the CPU
            torch.cat([results[0], results[1]]).sum().backward()
        with torch.no_grad():
            truth = model.act(model.features(halves.flatten(0, 1)))
        assert len(tape["act"]) == 2
        torch.testing.assert_close(tape["act"].output, truth)
        assert tape["act"].grad_output.shape == truth.shape
        assert tape["head"].input.shape == (4, 6)

    def test_replicas_have_running_statistics_together(self) -> None:
        model = PooledNet().eval()
        halves = torch.randn(2, 3, 3, 4, 4)
        with tp.record(model, "act", keep=tp.keep.Running()) as tape:
            replicas = [model._replicate_for_data_parallel() for _ in range(2)]
            threads = [threading.Thread(target=each, args=(half,)) for each, half in zip(replicas, halves, strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        with torch.no_grad():
            truth = model.act(model.features(halves.flatten(0, 1))).double()
        torch.testing.assert_close(tape["act"].output.mean, truth.mean((0, 2, 3)), rtol=1e-5, atol=1e-7)

    def test_what_replicas_give_that_is_no_tensor_is_not_put_together(self) -> None:
        model = PooledNet().eval()
        with tp.record(model, "act", keep=len) as tape:
            for replica in [model._replicate_for_data_parallel() for _ in range(2)]:
                thread = threading.Thread(target=replica, args=(torch.randn(3, 3, 4, 4),))
                thread.start()
                thread.join()
        assert [call.output for call in tape["act"]] == [3, 3]
        with pytest.raises(AmbiguousCall):
            _ = tape["act"].output

    def test_data_parallel_itself(self) -> None:
        """On a CPU it only passes on; the layers go by their names in it."""
        model, x = nn.DataParallel(PooledNet()), torch.randn(2, 3, 4, 4)
        with tp.record(model, "module.act") as tape:
            model(x)
        assert tape["module.act"].output.shape == (2, 6, 4, 4)

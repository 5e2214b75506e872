"""record, edit, record_gradients and edit_gradient: numbers by hand, traps reproduced, and nothing changed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import os
import pickle
import signal
import threading
import time
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import torchpeek as tp
from networks import MessyNet, PooledNet, messy, state_of
from torchpeek.errors import (
    AmbiguousCall,
    GradUnavailable,
    InputError,
    LayerNotFound,
    NotConnected,
    NotFired,
    StaleCapture,
)


class TwoKernels(nn.Module):
    """A convolution with kernels of ones and of twos, and a max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)
        with torch.no_grad():
            self.conv.weight[0] = 1
            self.conv.weight[1] = 2
            self.conv.bias.zero_()

    def forward(self, x):
        return self.pool(self.conv(x))


class TestPlainTensors:
    def test_gradients_of_leaves_and_others(self) -> None:
        w, x = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
        a, b = w + x, w + 1
        y = a * b
        with tp.record_gradients(a=a, w=w) as gradients:
            y.backward()
        assert (float(w.grad), float(x.grad)) == (5, 2)
        assert (float(gradients["a"]), float(gradients["w"])) == (2, 5)
        assert not a.retains_grad

    def test_an_edit_that_writes_in_place_and_returns_more(self) -> None:
        w, x = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
        y = (w + x) * (w + 1)
        with tp.edit_gradient(w, lambda gradient: gradient.mul_(2) * 3):
            y.backward()
        assert float(w.grad) == 30

    def test_hooks_come_off(self) -> None:
        w = torch.tensor(1.0, requires_grad=True)
        with tp.record_gradients(w=w) as gradients, tp.edit_gradient(w, lambda g: g * 7):
            pass
        (w * 2).backward()
        assert float(w.grad) == 2
        assert gradients["w"] is None

    def test_refusals(self) -> None:
        with pytest.raises(GradUnavailable, match="needs no gradient"), tp.record_gradients(a=torch.ones(1)):
            pass
        with pytest.raises(InputError, match="gradients are those of tensors"), tp.edit_gradient(3, abs):  # type: ignore[arg-type]
            pass


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


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return x * self.factor


class TestTraps:
    @pytest.mark.parametrize("frozen", [False, True])
    def test_in_place_after_the_layer(self, frozen: bool) -> None:
        """Output and gradient are those before it."""

        class Net(nn.Module):
            def __init__(self, inplace: bool) -> None:
                super().__init__()
                self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace)

            def forward(self, x):
                return self.relu(self.conv(x)).square().sum()

        x = torch.randn(2, 3, 6, 6)
        torch.manual_seed(1)
        ours = Net(inplace=True).requires_grad_(not frozen)
        torch.manual_seed(1)
        plain = Net(inplace=False)
        expected = plain.conv(x)
        expected.retain_grad()
        plain.relu(expected).square().sum().backward()
        with tp.record(ours, "conv", gradients=True) as tape:
            ours(x).backward()
        assert (tape["conv"].output < 0).any()
        torch.testing.assert_close(tape["conv"].output, expected.detach())
        torch.testing.assert_close(tape["conv"].grad_output, expected.grad)

    def test_a_stale_reference_raises_and_never_lies(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)

            def forward(self, x):
                return self.conv(x).relu_()  # no module says so

        model = Net()
        with tp.record(model, "conv") as tape:
            model(torch.randn(1, 3, 5, 5))
        with pytest.raises(StaleCapture, match="snapshot='clone'"):
            _ = tape["conv"].output
        with tp.record(model, "conv", snapshot="clone") as tape:
            model(torch.randn(1, 3, 5, 5))
        assert (tape["conv"].output < 0).any()

    def test_under_inference_mode(self) -> None:
        class Net(PooledNet):
            def forward(self, x):
                return self.head(self.features(x).relu_().mean((2, 3)))

        model = Net()
        with torch.inference_mode(), tp.record(model, "features") as tape:
            model(torch.randn(1, 3, 5, 5))
        assert (tape["features"].output < 0).any()

    def test_a_shared_module_called_three_times(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = Scale(2.0)
                self.alias = self.layer

            def forward(self, x):
                return self.layer(self.alias(self.layer(x)))

        model = Net()
        with tp.record(model, "*", gradients=True) as tape:
            model(torch.ones(1)).backward()
        assert list(tape) == ["layer"]
        assert [call.output.item() for call in tape["layer"]] == [2, 4, 8]
        assert [call.grad_output.item() for call in tape["layer"]] == [4, 2, 1]
        assert [call.order for call in tape["layer"]] == [0, 1, 2]
        with pytest.raises(AmbiguousCall, match="called 3 times"):
            _ = tape["layer"].output

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_a_checkpointed_block_is_one_call(self, reentrant: bool) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.block, self.last = Scale(2.0), Scale(3.0), Scale(5.0)

            def forward(self, x):
                return self.last(checkpoint(self.block, self.first(x), use_reentrant=reentrant))

        model = Net()
        with tp.record(model, ["block", "last"]) as tape:
            model(torch.ones(1)).backward()
        assert [len(tape[name]) for name in tape] == [1, 1]
        assert model.block.factor.grad.item() == 10

    def test_containers(self) -> None:
        @dataclasses.dataclass
        class Output:
            logits: Tensor
            extra: tuple[Tensor, int]

        class Part(nn.Module):
            def __init__(self, kind: str) -> None:
                super().__init__()
                self.kind = kind

            def forward(self, x):
                if self.kind == "dict":
                    return {"a": x * 2, "more": [x * 3, "text"]}
                if self.kind == "tuple":
                    return x * 2, None
                return Output(x * 2, (x * 3, 7))

        for kind in ("dict", "tuple", "dataclass"):
            model = nn.Sequential(Part(kind))
            with tp.record(model, "0") as tape:
                given = model(torch.ones(1))
            got = tape["0"].output
            if kind == "dict":
                assert isinstance(given, dict)
                assert (got["a"].item(), got["more"][0].item(), got["more"][1]) == (2, 3, "text")
            elif kind == "tuple":
                assert (got[0].item(), got[1]) == (2, None)
            else:
                assert isinstance(given, Output)
                assert isinstance(got, Output)
                assert (got.logits.item(), got.extra[1]) == (2, 7)

    def test_gradients_through_a_dict(self) -> None:
        class Part(nn.Module):
            def forward(self, x):
                return {"a": x * 2, "b": x * 3}

        part = Part()
        model = nn.Sequential(part)
        x = torch.ones(1, requires_grad=True)
        with tp.record(model, "0", gradients=True) as tape:
            out = model(x)
            (out["a"] * 5).backward()
        assert tape["0"].grad_output["a"].item() == 5
        assert tape["0"].grad_output["b"] is None

    def test_replicas_in_threads(self) -> None:
        """As DataParallel makes them: other objects, the same hooks."""
        model = PooledNet()
        replicas = [copy.copy(model) for _ in range(2)]
        for replica in replicas:
            replica.__dict__["_modules"] = dict(model._modules)
            replica._modules["act"] = model.act._replicate_for_data_parallel()
        with tp.record(model, "act", passes="all") as tape:
            threads = [threading.Thread(target=replica, args=(torch.randn(1, 3, 4, 4),)) for replica in replicas]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(tape["act"]) == 2

    def test_a_copy_or_a_pickle_of_a_recorded_model_takes_no_hook_along(self) -> None:
        model, x = PooledNet(), torch.randn(1, 3, 4, 4)
        with tp.record(model, "act", gradients=True) as tape:
            model(x).sum().backward()
            twin, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
            seen = tape["act"].output
            for other in (twin, loaded):
                other(x * 2)
            assert len(tape["act"]) == 1
            assert torch.equal(tape["act"].output, seen)

    def test_a_compiled_model(self) -> None:
        """torch ignores hooks that come after the first compiled call; so it runs eagerly, and says so."""
        torch._dynamo.reset()
        counters.clear()
        model, x = PooledNet().eval(), torch.randn(1, 3, 4, 4)
        model.compile(backend="eager")
        with torch.no_grad():
            model(x)
        assert counters["stats"]["unique_graphs"] >= 1
        with pytest.warns(tp.Notice, match="runs eagerly"), tp.record(model, "act", gradients=True) as tape:
            model(x).sum().backward()
        torch.testing.assert_close(tape["act"].output, model.act(model.features(x)).detach())
        assert tape["act"].grad_output.shape == (1, 6, 4, 4)

    def test_two_recordings_at_once_closed_in_any_order(self) -> None:
        model, x = PooledNet(), torch.randn(1, 3, 4, 4)
        before = state_of(model)
        first, second = tp.record(model, "act"), tp.record(model, ["act", "head"])
        first.__enter__()
        second.__enter__()
        model(x)
        first.__exit__(None, None, None)
        model(x + 1)
        second.__exit__(None, None, None)
        assert {**state_of(model), "random state": 0} == {**before, "random state": 0}
        assert not torch.equal(first["act"].output, second["act"].output)


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
            tape = tp.record(model, "*", gradients=True, inputs=True)
            if recorded:
                tape.__enter__()
            for _ in range(4):
                loss = model(torch.randn(4, 3, 5, 5)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            if recorded:
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


class TestGrad:
    def test_of_several_scores_after_the_block_without_touching_anything(self) -> None:
        model, x = PooledNet(), torch.randn(2, 3, 4, 4)
        with tp.record(model, ["features", "act"], gradients=True) as tape:
            scores = model(x)
        for k in (0, 3):
            truth = model.head.weight[k].detach()[None, :, None, None].expand(2, 6, 4, 4) / 16
            found = tape.grad(scores[:, k].sum())
            torch.testing.assert_close(found["act"], truth)
            torch.testing.assert_close(tape["act"].grad_output, truth)
            torch.testing.assert_close(found["features"], truth * (tape["features"].output > 0))
        assert list(found) == ["features", "act"]
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_inside_the_block_it_arrives_once(self) -> None:
        model, seen = PooledNet(), []
        keep = tp.keep.Callback(lambda captured: seen.append(captured.part))
        with tp.record(model, "act", gradients=True, keep=keep) as tape:
            tape.grad(model(torch.randn(1, 3, 4, 4)).sum())
        assert seen == ["output", "grad_output"]

    def test_goes_no_further_down_than_the_layer(self) -> None:
        model, below = PooledNet(), []
        model.features.register_full_backward_hook(lambda *given: below.append(given))
        with tp.record(model, "act", gradients=True) as tape:
            tape.grad(model(torch.randn(1, 3, 4, 4)).sum())
        assert not below

    def test_of_a_frozen_model_and_of_a_layer_called_twice(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = Scale(3.0)

            def forward(self, x):
                return self.scale(self.scale(x))

        model = Twice().requires_grad_(False)
        with tp.record(model, "scale", gradients=True) as tape:
            found = tape.grad(model(torch.ones(1)).sum())
        assert (found["scale", 0].item(), found["scale", 1].item()) == (3, 1)
        with pytest.raises(AmbiguousCall, match=r"\['scale', 0\]"):
            found["scale"]

    def test_of_a_layer_that_the_score_does_not_depend_on(self) -> None:
        class Aside(PooledNet):
            def forward(self, x):
                self.features(x * 2)
                return self.head(self.act(x.mean(1, keepdim=True).expand(-1, 6, -1, -1)).mean((2, 3)))

        model = Aside()
        with tp.record(model, ["features", "act"], gradients=True) as tape:
            scores = model(torch.randn(1, 3, 4, 4))
        found = tape.grad(scores.sum())
        assert found["features"] is None
        assert found["act"] is not None
        with tp.record(model, "features", gradients=True) as tape:
            scores = model(torch.randn(1, 3, 4, 4))
        with pytest.raises(NotConnected, match="'features'"):
            tape.grad(scores.sum())

    def test_refusals(self) -> None:
        model, x = PooledNet(), torch.randn(2, 3, 4, 4)
        with tp.record(model, "act") as tape:
            scores = model(x)
        with pytest.raises(InputError, match="gradients=True"):
            tape.grad(scores.sum())
        with tp.record(model, "act", gradients=True) as tape:
            with pytest.raises(GradUnavailable, match="no layer has been called"):
                tape.grad(scores.sum())
            scores = model(x)
        with pytest.raises(InputError, match=r"shape \(2, 5\)"):
            tape.grad(scores)
        with pytest.raises(GradUnavailable, match="detached"):
            tape.grad(scores.sum().detach())


class TestParameters:
    def test_values_and_what_flowed_back_in_one_pass(self) -> None:
        model, x = TwoKernels(), torch.ones(1, 1, 4, 4)
        with tp.record(model, "conv", gradients=True, parameters=True) as tape:
            for _ in range(2):
                F.l1_loss(model(x), torch.zeros(1, 2, 1, 1)).backward()
        assert tape["conv"].parameters["weight"].shape == (2, 1, 3, 3)
        assert tape["conv"].grad_parameters["weight"].unique().tolist() == [0.5]  # one pass
        assert tape["conv"].grad_parameters["bias"].tolist() == [0.5, 0.5]
        assert model.conv.weight.grad.unique().tolist() == [1.0]  # two

    def test_of_a_block_and_of_what_is_frozen(self) -> None:
        model = PooledNet()
        model.features[0].requires_grad_(False)
        with tp.record(model, "features", gradients=True, parameters=True) as tape:
            model(torch.randn(1, 3, 4, 4)).sum().backward()
        found = tape["features"].grad_parameters
        assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        assert found["0.weight"] is None
        torch.testing.assert_close(found["2.weight"], model.features[2].weight.grad)

    def test_an_optimizer_step_makes_the_reference_stale_but_not_the_copy(self) -> None:
        model, x = TwoKernels(), torch.ones(1, 1, 4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for snapshot in ("auto", "clone"):
            with tp.record(model, "conv", parameters=True, snapshot=snapshot) as tape:
                before = model.conv.weight.detach().clone()
                model(x).sum().backward()
                optimizer.step()
            if snapshot == "clone":
                assert torch.equal(tape["conv"].parameters["weight"], before)
            else:
                with pytest.raises(StaleCapture):
                    _ = tape["conv"].parameters

    def test_refusals(self) -> None:
        model = PooledNet()
        with tp.record(model, "act") as tape:
            model(torch.randn(1, 3, 4, 4))
        with pytest.raises(InputError, match="parameters=True"):
            _ = tape["act"].parameters


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


class TestChangesNothing:
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


class TestEdit:
    def test_an_output(self) -> None:
        model, x = PooledNet().eval(), torch.randn(1, 3, 4, 4)
        with tp.edit(model, outputs={"act": lambda out: out * 0}):
            assert torch.allclose(model(x), model.head.bias.expand(1, -1))
        assert not torch.allclose(model(x), model.head.bias.expand(1, -1))

    def test_an_input_is_changed_before_the_layer_runs_and_recorded_as_changed(self) -> None:
        model, x = TwoKernels(), torch.ones(1, 1, 4, 4)
        with tp.edit(model, inputs={"conv": lambda given: given * 2}), tp.record(model, "conv", inputs=True) as tape:
            assert model(x).flatten().tolist() == [18, 36]
        assert tape["conv"].input.unique().tolist() == [2]

    def test_several_inputs_and_a_tuple_as_output(self) -> None:
        class Add(nn.Module):
            def forward(self, a, b):
                return a + b, a - b

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.add = Add()

            def forward(self, x):
                return self.add(x, 2 * x)

        model, x = Net(), torch.ones(1)
        with tp.edit(model, inputs={"add": lambda given: (given[1], given[0])}):
            assert [t.item() for t in model(x)] == [3, 1]
        with tp.edit(model, outputs={"add": lambda out: (out[0] * 10, out[1])}):
            assert [t.item() for t in model(x)] == [30, -1]

    def test_a_gradient(self) -> None:
        model, x = PooledNet(), torch.randn(1, 3, 4, 4)
        model(x).sum().backward()
        before = model.features[0].weight.grad.clone()
        model.zero_grad()
        with tp.edit(model, gradients={"act": lambda gradient: gradient.mul_(2) * 3}):
            model(x).sum().backward()
        torch.testing.assert_close(model.features[0].weight.grad, 6 * before)

    def test_in_the_order_of_the_blocks(self) -> None:
        model, x = nn.Sequential(nn.Identity()), torch.ones(1)
        with tp.edit(model, outputs={"0": lambda out: out + 1}), tp.record(model, "0") as between:
            with tp.edit(model, outputs={"0": lambda out: out * 10}):
                assert model(x).item() == 20
            assert between["0"].output.item() == 2

    def test_a_patch_from_another_pass(self) -> None:
        model = PooledNet().eval()
        a, b = torch.randn(2, 1, 3, 4, 4)
        with tp.record(model, "act") as tape:
            expected = model(a)
        with tp.edit(model, outputs={"act": lambda out: tape["act"].output}):
            torch.testing.assert_close(model(b), expected)

    def test_a_function_of_the_users_that_raises(self) -> None:
        model = messy()
        before = state_of(model)["hooks"]
        with pytest.raises(ZeroDivisionError) as caught, tp.edit(model, outputs={"act": lambda out: out * (1 // 0)}):
            model(torch.randn(2, 3, 8, 8))
        assert caught.value.__notes__ == ["in the edit of layer 'act'"]
        assert state_of(model)["hooks"] == before

    def test_one_that_does_nothing_says_so(self) -> None:
        class Attends(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = nn.MultiheadAttention(4, 2)

            def forward(self, x):
                return self.attention(x, x, x)[0]

        model = Attends()
        with (
            pytest.warns(tp.Notice, match=r"an edit did nothing: layer 'attention\.out_proj'.*MultiheadAttention"),
            tp.edit(model, outputs={"attention.out_proj": tp.edits.zero()}),
        ):
            model(torch.randn(3, 1, 4))

    def test_refusals(self) -> None:
        model, x = PooledNet(), torch.randn(1, 3, 4, 4)
        with pytest.raises(InputError, match="returned None"), tp.edit(model, outputs={"act": lambda out: None}):
            model(x)
        with pytest.raises(LayerNotFound, match="closest: 'act'"), tp.edit(model, outputs={"acts": abs}):
            pass
        with pytest.raises(InputError, match="a dict from a layer"), tp.edit(model, outputs={"act": 3}):  # type: ignore[dict-item]
            pass
        with pytest.raises(GradUnavailable, match="no_grad"), torch.no_grad(), tp.edit(model, gradients={"act": abs}):
            model(x)
        model.requires_grad_(False)
        with pytest.raises(GradUnavailable, match="frozen"), tp.edit(model, gradients={"act": abs}):
            model(x)


class TestReadyMadeEdits:
    def test_zero_and_scale_of_channels(self) -> None:
        model, x = PooledNet().eval(), torch.randn(2, 3, 4, 4)
        with tp.record(model, "act") as plain:
            model(x)
        expected = plain["act"].output.clone()
        expected[:, [1, 3]] = 0
        with tp.edit(model, outputs={"act": tp.edits.zero(channels=[1, 3])}), tp.record(model, "act") as tape:
            model(x)
        assert torch.equal(tape["act"].output, expected)
        with tp.edit(model, outputs={"act": tp.edits.scale(0.5, channels=[-1])}), tp.record(model, "act") as tape:
            model(x)
        assert torch.equal(tape["act"].output[:, 5], plain["act"].output[:, 5] * 0.5)
        assert torch.equal(tape["act"].output[:, :5], plain["act"].output[:, :5])

    def test_zero_is_zero_also_of_infinity_and_nan(self) -> None:
        model = nn.Sequential(nn.Identity())
        with tp.edit(model, outputs={"0": tp.edits.zero()}):
            assert model(torch.tensor([[float("inf"), float("nan"), 1.0]])).tolist() == [[0, 0, 0]]

    def test_channels_of_tokens(self) -> None:
        model = nn.Sequential(nn.Identity())
        with tp.edit(model, outputs={"0": tp.edits.zero(channels=[0], axis=-1)}):
            assert model(torch.ones(1, 2, 3))[0].tolist() == [[0, 1, 1], [0, 1, 1]]

    def test_patch_from_another_recording(self) -> None:
        model = PooledNet().eval()
        a, b = torch.randn(2, 2, 3, 4, 4)
        with tp.record(model, "act") as tape:
            expected = model(a)
        with tp.edit(model, outputs={"act": tp.edits.patch(tape["act"])}):
            torch.testing.assert_close(model(b), expected)
        with tp.edit(model, outputs={"act": tp.edits.patch(tape["act"], channels=[2])}), tp.record(model, "act") as new:
            model(b)
        assert torch.equal(new["act"].output[:, 2], tape["act"].output[:, 2])
        assert not torch.equal(new["act"].output[:, 1], tape["act"].output[:, 1])
        corner = torch.zeros(4, 4, dtype=torch.bool)
        corner[0, 0] = True
        with tp.edit(model, outputs={"act": tp.edits.patch(tape["act"], where=corner)}), tp.record(model, "act") as new:
            model(b)
        assert torch.equal(new["act"].output[..., 0, 0], tape["act"].output[..., 0, 0])
        assert not torch.equal(new["act"].output[..., 1, 1], tape["act"].output[..., 1, 1])

    def test_gradients_flow_around_what_was_zeroed(self) -> None:
        model, x = PooledNet(), torch.randn(1, 3, 4, 4)
        with (
            tp.edit(model, outputs={"act": tp.edits.zero(channels=[0])}),
            tp.record(model, "features", gradients=True) as tape,
        ):
            model(x).sum().backward()
        assert not tape["features"].grad_output[:, 0].any()
        assert tape["features"].grad_output[:, 1:].any()

    def test_refusals(self) -> None:
        model, x = PooledNet(), torch.randn(1, 3, 4, 4)
        for change, match in (
            (tp.edits.zero(channels=[6]), r"channels \[6\] of a layer that has 6, 0 to 5"),
            (tp.edits.zero(channels=[0], axis=7), "axis is 7"),
            (tp.edits.patch(torch.ones(2, 6, 5, 5)), r"\(2, 6, 5, 5\) does not fit an output of \(1, 6, 4, 4\)"),
        ):
            with pytest.raises(InputError, match=match) as caught, tp.edit(model, outputs={"act": change}):
                model(x)
            assert caught.value.__notes__ == ["in the edit of layer 'act'"]
        pair = nn.Sequential(nn.LSTM(2, 2))
        with pytest.raises(InputError, match="which tensor"), tp.edit(pair, outputs={"0": tp.edits.zero()}):
            pair(torch.ones(1, 1, 2))


class TestReading:
    def test_a_call_that_never_happened(self) -> None:
        model = PooledNet()
        with tp.record(model, "act", passes="all") as tape:
            for _ in range(2):
                model(torch.randn(1, 3, 4, 4))
        with pytest.raises(NotFired, match=r"calls \[0\] to \[1\]; got \[2\]"):
            _ = tape["act"][2]
        with pytest.raises(AmbiguousCall, match=r"called 2 times.*passes='last'"):
            _ = tape["act"].output
        assert len(list(tape["act"])) == 2
        assert tape["act"][-1].order == 1

    def test_what_is_read_is_not_what_is_kept(self) -> None:
        """To write into it is an error that is seen, not a changed recording."""
        model = PooledNet()
        with torch.no_grad(), tp.record(model, "act", snapshot="clone") as tape:
            model(torch.randn(1, 3, 4, 4))
        tape["act"].output.zero_()
        with pytest.raises(StaleCapture):
            _ = tape["act"].output

    def test_what_never_came(self) -> None:
        class Listed(PooledNet):
            def __init__(self) -> None:
                super().__init__()
                self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 1)])

        model = Listed()
        with tp.record(model, "*") as tape:
            model(torch.randn(1, 3, 4, 4))
        with pytest.raises(NotFired, match="ModuleList"):
            _ = tape["blocks"].output
        with pytest.raises(NotFired, match=r"goes another way.*torch\.compile"):
            _ = tape["blocks.0"].output
        with pytest.raises(LayerNotFound, match="closest: 'head'"):
            tape["heads"]
        assert "was not called" in repr(tape)
        assert "(1, 6, 4, 4) float32" in repr(tape)

    def test_what_was_not_asked_for(self) -> None:
        model = PooledNet()
        with tp.record(model, "act") as tape:
            model(torch.randn(1, 3, 4, 4))
        for name in ("input", "grad_output", "grad_input"):
            with pytest.raises(InputError, match="recorded"):
                getattr(tape["act"], name)
        with pytest.raises(InputError, match="open already"), tape:
            tape.__enter__()
        with pytest.raises(InputError, match="snapshot"):
            tp.record(model, "act", snapshot="copy")  # type: ignore[arg-type]

    def test_gradients_under_no_grad(self) -> None:
        model = PooledNet()
        with (
            pytest.raises(GradUnavailable, match=r"'act' ran under torch.no_grad"),
            tp.record(model, "act", gradients=True),
            torch.no_grad(),
        ):
            model(torch.randn(1, 3, 4, 4))

    def test_a_layer_that_raised(self) -> None:
        class Broken(nn.Module):
            def forward(self, x):
                raise RuntimeError("broken")

        model = nn.Sequential(nn.Identity(), Broken())
        with pytest.raises(RuntimeError, match="broken"), tp.record(model, ["0", "1"], inputs=True) as tape:
            model(torch.ones(1))
        assert tape["0"].output.item() == 1
        assert tape["1"].input.item() == 1
        with pytest.raises(NotFired, match="did not return"):
            _ = tape["1"].output

    def test_memory_is_counted_once_for_each_storage(self) -> None:
        model = nn.Sequential(nn.Identity(), nn.Identity())
        with tp.record(model, "*", snapshot="alias") as tape:
            model(torch.ones(1000)[:1])
        assert tape.nbytes == 4000

    def test_a_messy_model_in_train_mode(self) -> None:
        model = MessyNet().train()
        with tp.record(model, ["conv", "bn", "drop"], gradients=True) as tape:
            model(torch.randn(2, 3, 8, 8)).sum().backward()
        assert all(tape[name].grad_output.shape == (2, 6, 8, 8) for name in tape)


class TestWhoseGradient:
    """A layer's own, before whatever is written in later, also where tensors are passed on or are views."""

    @staticmethod
    def chain(inplace: bool) -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Identity(),
            nn.ReLU(inplace),
            nn.Dropout(0.0),
            nn.Conv2d(4, 4, 1),
            nn.Flatten(),
            nn.Hardtanh(-0.2, 0.5, inplace),
            nn.Linear(4 * 36, 5),
            nn.Unflatten(1, (5, 1)),
            nn.LeakyReLU(0.1, inplace),
        ).double()

    def test_in_place_layers_after_layers_that_only_pass_on_or_view(self) -> None:
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        tapes = []
        for inplace in (True, False):
            model = self.chain(inplace)
            with tp.record(model, "*", gradients=True, inputs=True) as tape:
                model(x).square().sum().backward()
            tapes.append(tape)
        # The truth: the same layers one by one, none in place, none passing a tensor on, retain_grad on each result.
        outputs = [x]
        for layer in self.chain(inplace=False):
            outputs.append(layer(outputs[-1]) * 1)
            outputs[-1].retain_grad()
        outputs[-1].square().sum().backward()
        for name in tapes[0]:
            for tape in tapes:
                torch.testing.assert_close(tape[name].grad_output, outputs[int(name) + 1].grad, msg=name)
                torch.testing.assert_close(tape[name].grad_input, outputs[int(name)].grad, msg=name)

    def test_of_several_outputs_each_its_own(self) -> None:
        class Two(nn.Module):
            def forward(self, x):
                half = x * 2
                return half, half * 3

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.two, self.same = Two(), nn.Identity()

            def forward(self, x):
                a, b = self.two(x)
                return (self.same(a) * 7 + a * 5 + b).sum()

        for frozen in (False, True):
            model, x = Net(), torch.ones(1, requires_grad=not frozen)
            with tp.record(model, ["two", "same"], gradients=True) as tape:
                score = model(x)
                found = tape.grad(score)
                assert [each.item() for each in tape["two"].grad_output] == [12, 1]
                assert tape["same"].grad_output.item() == 7
            again = tape.grad(score)
            for gradients in (found, again):
                assert [each.item() for each in gradients["two"]] == [12, 1]
                assert gradients["same"].item() == 7

    def test_an_input_that_is_passed_on_and_not_used_has_no_gradient(self) -> None:
        """As the hidden states of a transformer: that the input has other uses is not this layer's."""

        class States(nn.Module):
            def forward(self, x):
                return x * 2, (x, x * 3)

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.states = States()

            def forward(self, x):
                return (self.states(x)[0] + 100 * x).sum()

        model, x = Net(), torch.ones(1, requires_grad=True)
        with tp.record(model, "states", gradients=True) as tape:
            score = model(x)
            score.backward(retain_graph=True)
        for _ in range(2):
            assert tape["states"].at("0").grad_output.item() == 1
            assert tape["states"].at("1.0").grad_output is None
            assert tape["states"].grad_input.item() == 2
            tape.grad(score)

    @pytest.mark.parametrize(
        "view",
        [
            lambda y: y[:, 0],
            lambda y: y.narrow(-1, 1, 3),
            lambda y: y.transpose(1, 2),
            lambda y: y.permute(2, 0, 1),
            lambda y: y.flatten(1),
        ],
    )
    def test_of_a_view_of_any_kind_that_is_then_written_into(self, view) -> None:
        class Views(nn.Module):
            def forward(self, x):
                return view(x)

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear, self.views = nn.Linear(6, 6), Views()

            def forward(self, x):
                return (self.views(self.linear(x)).relu_() ** 2).sum()

        model, x = Net(), torch.randn(2, 4, 6)
        truth = view(model.linear(x)).clone().detach().requires_grad_()
        (truth.clone().relu_() ** 2).sum().backward()
        with tp.record(model, "views", gradients=True) as tape:
            score = model(x)
            score.backward(retain_graph=True)
        torch.testing.assert_close(tape["views"].grad_output, truth.grad)
        torch.testing.assert_close(tape.grad(score)["views"], truth.grad)
        plain = model.linear.weight.grad.clone()
        model.zero_grad()
        with tp.edit(model, gradients={"views": lambda gradient: gradient * 100}):
            model(x).backward()
        torch.testing.assert_close(model.linear.weight.grad, plain * 100)

    def test_a_residual_that_is_added_in_place(self) -> None:
        """x += f(drop(x)): the way around is not the dropout's."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.drop = nn.Linear(3, 3), nn.Dropout(0.5)
                self.f = nn.Linear(3, 3).requires_grad_(False)  # else it needs what is then written into

            def forward(self, x):
                x = self.first(x)
                x += self.f(self.drop(x))
                return x.sum()

        model, x = Net().eval(), torch.randn(1, 3)
        truth = model.f.weight.detach().sum(0, keepdim=True)
        with tp.record(model, "drop", gradients=True) as tape:
            score = model(x)
            score.backward(retain_graph=True)
        torch.testing.assert_close(tape["drop"].grad_output, truth)
        torch.testing.assert_close(tape.grad(score)["drop"], truth)

    def test_a_layer_that_returns_its_parameter_and_an_edit_that_does_not_stay_on_it(self) -> None:
        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.ones(2))

            def forward(self):
                return self.w

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.own = Own()

            def forward(self):
                return (self.own() + 10 * self.own.w).sum()

        model = Net()
        with tp.record(model, "own", gradients=True) as tape:
            model().backward()
        assert tape["own"].grad_output.tolist() == [1, 1]
        model.zero_grad()
        with tp.edit(model, gradients={"own": lambda gradient: gradient * 0}):
            model().backward()
        assert model.own.w.grad.tolist() == [10, 10]
        model.zero_grad()
        model().backward()
        assert model.own.w.grad.tolist() == [11, 11]

    @pytest.mark.parametrize("layer", [nn.Linear(2, 2), nn.Flatten(), nn.Identity()])
    @pytest.mark.parametrize("inplace", [False, True])
    def test_gradients_meet_the_block_that_was_opened_first_last(self, layer: nn.Module, inplace: bool) -> None:
        model = nn.Sequential(nn.Linear(2, 2), layer, nn.ReLU(inplace), nn.Linear(2, 1))
        with torch.no_grad():
            for module in model:
                if isinstance(module, nn.Linear):
                    module.weight.fill_(1)
                    module.bias.fill_(1)
        with (
            tp.record(model, "1", gradients=True) as outside,
            tp.edit(model, gradients={"1": lambda gradient: gradient * 2}),
            tp.record(model, "1", gradients=True) as inside,
            tp.edit(model, gradients={"1": lambda gradient: gradient * 10}),
        ):
            model(torch.ones(1, 2)).backward()
        assert inside["1"].grad_output.unique().tolist() == [10]
        assert outside["1"].grad_output.unique().tolist() == [20]

    def test_a_frozen_part_that_is_checkpointed(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).requires_grad_(False)
                self.head = nn.Linear(3, 1)

            def forward(self, x):
                return self.head(checkpoint(self.body, x, use_reentrant=False)).sum()

        model = Net()
        with tp.record(model, "*", gradients=True) as tape:
            model(torch.randn(2, 3)).backward()
        torch.testing.assert_close(tape["body"].grad_output, model.head.weight.detach().expand(2, -1))
        assert model.head.weight.grad is not None

    def test_one_loss_over_two_passes(self) -> None:
        model = nn.Sequential(Scale(3.0))
        with tp.record(model, "0", gradients=True, passes="all") as tape:
            score = model(torch.ones(1)).sum() + 5 * model(torch.ones(1)).sum()
        found = tape.grad(score)
        assert [found["0", i].item() for i in range(2)] == [1, 5]

    def test_layers_that_return_nothing_or_raise_do_not_matter_to_the_others(self) -> None:
        class Nothing(nn.Module):
            def forward(self, x):
                return None

        class Raises(nn.Module):
            def forward(self, x):
                raise RuntimeError

        class Net(PooledNet):
            def __init__(self) -> None:
                super().__init__()
                self.nothing, self.raises = Nothing(), Raises()

            def forward(self, x):
                self.nothing(x)
                with contextlib.suppress(RuntimeError):
                    self.raises(x)
                return super().forward(x)

        model = Net()
        with tp.record(model, ["nothing", "raises", "act"], gradients=True) as tape:
            found = tape.grad(model(torch.randn(1, 3, 4, 4)).sum())
        assert set(found) == {"nothing", "act"}
        assert tape["nothing"].output is None
        assert tape["nothing"].grad_output is None
        with pytest.raises(NotFired, match="did not return"):
            _ = tape["raises"].grad_output

    def test_an_edit_of_a_gradient_that_is_then_written_into(self) -> None:
        for after in ([nn.ReLU(inplace=True)], [nn.Identity(), nn.ReLU(inplace=True)]):
            model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), *after)
            nn.init.ones_(model[0].weight)
            layers = {"0": lambda gradient: gradient * 100} if len(after) == 1 else {"1": lambda g: g * 100}
            with tp.edit(model, gradients=layers):
                model(torch.ones(1, 1, 1, 2)).sum().backward()
            assert model[0].weight.grad.item() == 200

    def test_of_what_is_given_by_name(self) -> None:
        class Add(nn.Module):
            def forward(self, a, *, b):
                return a + 2 * b

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.add = Add()

            def forward(self, x):
                return self.add(x, b=x)

        with tp.record(Net(), "add", gradients=True) as tape:
            model = tape._model
            model(torch.ones(1, requires_grad=True)).backward()
        assert tape["add"].grad_input.item() == 1
        assert tape["add"].grad_kwargs["b"].item() == 2


class TestWhereItCannotBeDone:
    def test_compiled_models_are_edited_eagerly_and_closed_in_any_order(self) -> None:
        torch._dynamo.reset()
        model, x = PooledNet().eval(), torch.randn(1, 3, 4, 4)
        with torch.no_grad():
            plain = model(x)
        model.compile(backend="eager")
        with torch.no_grad():
            model(x)
            with (
                pytest.warns(tp.Notice, match="while it is edited"),
                tp.edit(model, outputs={"act": tp.edits.zero()}),
            ):
                assert torch.allclose(model(x), model.head.bias.expand(1, -1))
            first, second = tp.record(model, "act"), tp.record(model, "act")
            with pytest.warns(tp.Notice, match="while it is recorded"):
                first.__enter__()
            with pytest.warns(tp.Notice, match="while it is recorded"):
                second.__enter__()
            first.__exit__(None, None, None)
            model(x)
            second.__exit__(None, None, None)
            assert second["act"].output is not None
            # Compiled again from here on: the graph is there still, and nobody is told to run eagerly.
            counters.clear()
            torch._dynamo.reset()
            torch.testing.assert_close(model(x), plain)
        assert counters["stats"]["unique_graphs"] >= 1

    def test_in_vmap(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2))
        for gradients in (False, True):
            with pytest.raises(InputError, match=r"torch\.vmap"), tp.record(model, "0", gradients=gradients):
                torch.vmap(model)(torch.ones(3, 2))

    def test_a_scripted_part(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = nn.Sequential(nn.Linear(2, 2), torch.jit.script(nn.Linear(2, 2)))
        with pytest.raises(InputError, match="layer '1' is scripted"):
            tp.record(model, "*")
        with tp.record(model, "0") as tape:
            model(torch.ones(1, 2))
        assert tape["0"].output.shape == (1, 2)

    def test_a_nested_tensor(self) -> None:
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        model = nn.TransformerEncoder(layer, 2).eval()
        mask = torch.tensor([[False, False, True], [False, False, False]])
        with torch.no_grad(), tp.record(model, "*") as tape, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(torch.randn(2, 3, 4), src_key_padding_mask=mask)
        assert repr(tape)


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

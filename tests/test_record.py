"""record, edit, record_gradients and edit_gradient: numbers by hand, traps reproduced, and nothing changed."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import torchpeek as tp
from networks import MessyNet, PooledNet, messy, state_of
from torchpeek.errors import AmbiguousCall, GradUnavailable, InputError, LayerNotFound, NotFired, StaleCapture


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
                assert (got["logits"].item(), got["extra"][1]) == (2, 7)

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


class TestReading:
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
        with pytest.raises(NotFired, match=r"goes another way"):
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

"""Traps of docs/hooks.md, reproduced: what record() returns there."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import torchpeek as tp
from networks import PooledNet, Scale, state_of
from torchpeek.errors import AmbiguousCall, StaleCapture


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

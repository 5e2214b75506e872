"""Reading a recording: calls, parameters, and what was never recorded."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchpeek as tp
from networks import MessyNet, PooledNet, TwoKernels
from torchpeek.errors import AmbiguousCall, GradUnavailable, InputError, LayerNotFound, NotFired, StaleCapture


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
        with pytest.raises(NotFired, match=r"takes a path without it.*torch\.compile"):
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

"""edit: changed outputs, inputs and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks import PooledNet, TwoKernels, messy, state_of
from torchpeek.errors import GradUnavailable, InputError, LayerNotFound


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

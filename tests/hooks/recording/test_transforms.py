"""Recording inside the transforms of torch.func, in forward-mode differentiation and in batched backward passes."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import GradUnavailable, InputError, StaleCapture

X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Mapped(nn.Module):
    """Runs a layer inside of vmap, though the model itself runs outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3).double(), nn.Linear(3, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.vmap(self.layer)(x))


def network(frozen: bool, in_place: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 3), nn.ReLU(inplace=in_place), nn.Linear(3, 1))
    return model.double().requires_grad_(not frozen)


class TestVmap:
    @pytest.mark.parametrize("options", [{}, {"inputs": True}, {"gradients": True}, {"keep": tp.keep.Running()}])
    def test_a_layer_that_the_model_runs_in_vmap_is_refused_by_name(self, options: dict[str, Any]) -> None:
        model = Mapped()
        refusal = r"a recorded Linear ran inside torch\.vmap"
        with pytest.raises(InputError, match=refusal), tp.record(model, "*", **options):
            model(X)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def test_the_other_layers_can_be_recorded(self) -> None:
        model = Mapped()
        with tp.record(model, "*", exclude="layer", inputs=True) as tape:
            model(X)
        assert torch.allclose(tape["head"].input, model.layer(X))

    def test_a_part_that_is_mapped_outside_of_a_pass(self) -> None:
        model = nn.Sequential(nn.Linear(3, 2).double())
        with pytest.raises(InputError, match=r"torch\.vmap"), tp.record(model, "0"):
            torch.vmap(model[0])(X)


class TestForwardMode:
    @pytest.mark.filterwarnings("ignore::FutureWarning")
    @pytest.mark.parametrize("in_place", [False, True])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_tangents_are_as_without_a_recording(self, frozen: bool, in_place: bool) -> None:
        model = network(frozen, in_place)
        slope = model[3].weight @ torch.diag((model[1](X[0]) > 0).double()) @ model[1].weight
        for gradients in (False, True):
            with tp.record(model, "*", inputs=True, gradients=gradients):
                output, tangent = torch.func.jvp(model, (X[0],), (torch.ones_like(X[0]),))
            assert torch.equal(output, model(X[0]))
            torch.testing.assert_close(tangent, slope.sum(1))


class TestBatchedBackward:
    def test_a_recorded_gradient_says_that_it_cannot_be_read(self) -> None:
        model = network(frozen=False, in_place=False)
        with tp.record(model, "1", gradients=True) as tape, tp.record_gradients(w=model[1].weight) as gradients:
            output = model(X)
            torch.autograd.grad(output, model[1].weight, torch.eye(4).double()[..., None], is_grads_batched=True)
        with pytest.raises(GradUnavailable, match="batched backward pass"):
            _ = tape["1"].grad_output
        with pytest.raises(GradUnavailable, match="batched backward pass"):
            _ = gradients["w"]
        copied = pickle.loads(pickle.dumps(tape))
        assert torch.equal(copied["1"].output, tape["1"].output)
        with pytest.raises(GradUnavailable, match="batched backward pass"):
            _ = copied["1"].grad_output
        assert repr(tape)
        assert "invalid" in repr(copied)

    def test_a_copy_with_an_overwritten_tensor_is_printed(self) -> None:
        model = network(frozen=True, in_place=True)
        with tp.record(model, "1", snapshot="alias") as tape:
            model(X)
        copied = pickle.loads(pickle.dumps(tape))
        assert "overwritten" in repr(copied)
        assert "overwritten" in repr(copied["1"])
        with pytest.raises(StaleCapture):
            _ = copied["1"].output

"""check_finite: what it names in the backward pass."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchpeek as tp
from torchpeek.errors import InputNotFinite, LayerNotFinite

X = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Applied(nn.Module):
    """A linear layer and then a function, in one module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.fc = nn.Linear(3, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.fc(x))


class Checkpointed(nn.Module):
    def __init__(self, layer: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.layer, self.reentrant = layer, reentrant

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.layer, x, use_reentrant=self.reentrant)


class DividesGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 0


def raised(model: nn.Module, loss: Callable[[Tensor], Tensor] = torch.sum) -> LayerNotFinite:
    with pytest.raises(LayerNotFinite) as caught, tp.check_finite(model):
        loss(model(X)).backward()
    return caught.value


CASES = {
    "sqrt": (lambda x: (x * 0).sqrt(), "SqrtBackward0", "infinity"),
    "where": (lambda x: torch.where(x > 0, x.sqrt(), torch.zeros_like(x)), "SqrtBackward0", "NaN"),
    "pow": (lambda x: (x * 0) ** 0.5, "PowBackward0", "infinity"),
    "distance": (lambda x: (x * 0).square().sum(1).sqrt(), "SqrtBackward0", "infinity"),
    "acos": (lambda x: torch.acos(x * 0 + 1), "AcosBackward0", "infinity"),
    "function": (DividesGradient.apply, "DividesGradientBackward", "infinity"),
    "function inside": (lambda x: DividesGradient.apply(x * 2) * 2, "DividesGradientBackward", "infinity"),
    "in place": (lambda x: x.mul_(0).sqrt_(), "SqrtBackward0", "infinity"),
}


class TestTheMakerIsNamed:
    @pytest.mark.parametrize("case", CASES)
    def test_node(self, case: str) -> None:
        function, node, kind = CASES[case]
        error = raised(nn.Sequential(nn.Linear(3, 3).double(), Applied(function), nn.Identity()))
        assert (error.layer, error.call, error.pass_number, error.direction) == ("1", 0, 0, "backward")
        assert error.node == node
        assert f"made {kind} from a finite gradient, in {node}" in str(error)

    def test_against_anomaly_detection(self) -> None:
        """torch's own names the node for NaN alone."""
        model = nn.Sequential(Applied(CASES["where"][0]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="SqrtBackward0"):
                model(X).sum().backward()
        assert raised(model).node == "SqrtBackward0"

    def test_what_came_in(self) -> None:
        error = raised(Applied(lambda x: (x * 0).sqrt()), lambda output: 3 * output.sum())
        assert error.operation == "torch.Tensor.sqrt"
        assert "SqrtBackward0 got the gradient (2, 3) float64 in [3, 3]" in str(error)
        assert "in the forward pass, it got (2, 3) float64 in [" in str(error)

    def test_the_gradient_of_a_parameter(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3))
        x = torch.full((1, 3), 1e30)
        model[0].weight.data.mul_(1e-30)
        with (
            pytest.raises(LayerNotFinite, match=r"the gradient of parameter '0.weight'") as caught,
            tp.check_finite(model),
        ):
            (model(x) * 1e30).sum().backward()
        assert caught.value.layer == "0"

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointed_parts(self, reentrant: bool) -> None:
        bad = Checkpointed(Applied(lambda x: (x * 0).sqrt()), reentrant)
        error = raised(nn.Sequential(nn.Linear(3, 3).double(), bad))
        assert (error.layer, error.node) == ("1.layer", "SqrtBackward0")
        fine = Checkpointed(Applied(torch.exp), reentrant)
        with tp.check_finite(fine):
            fine(X.clone().requires_grad_()).sum().backward()

    def test_the_second_call_of_a_shared_layer(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.root = Applied(lambda x: x.abs().sqrt())
                self.root.fc = nn.Identity()

            def forward(self, x: Tensor) -> Tensor:
                return self.root(x - x.detach()) + self.root(x + 4)

        model = Twice()
        with pytest.raises(LayerNotFinite) as caught, tp.check_finite(model):
            model(X.clone().requires_grad_()).sum().backward()
        assert (caught.value.layer, caught.value.call) == ("root", 0)

    def test_autograd_grad_and_a_frozen_model(self) -> None:
        model = Applied(lambda x: (x * 0).sqrt()).requires_grad_(False)
        x = X.clone().requires_grad_()
        with pytest.raises(LayerNotFinite) as caught, tp.check_finite(model):
            torch.autograd.grad(model(x).sum(), x)
        assert caught.value.node == "SqrtBackward0"

    def test_mixed_precision(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        with (
            torch.autocast("cpu", dtype=torch.float16),
            pytest.raises(LayerNotFinite) as caught,
            tp.check_finite(model),
        ):
            (model(X.float()).float().sum() * 65504).backward()
        assert caught.value.direction == "backward"
        with torch.autocast("cpu", dtype=torch.float16), tp.check_finite(model, backward=False):
            (model(X.float()).float().sum() * 65504).backward()

    def test_sparse_gradients(self) -> None:
        model = nn.Embedding(4, 2, sparse=True)
        with tp.check_finite(model):
            model(torch.tensor([1, 1])).sum().backward()
        assert model.weight.grad.is_sparse


class TestToldApart:
    def test_the_loss(self) -> None:
        model = nn.Linear(3, 3).double()
        with pytest.raises(InputNotFinite, match="after the model, as in the loss") as caught, tp.check_finite(model):
            (model(X) * 0).sqrt().sum().backward()
        assert (caught.value.node, caught.value.operation) == ("SqrtBackward0", "torch.Tensor.sqrt")

    def test_the_gradient_that_backward_gets(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3).double())
        with pytest.raises(InputNotFinite, match="no operation that was checked") as caught, tp.check_finite(model):
            model(X).backward(torch.full((2, 3), torch.nan, dtype=torch.float64))
        assert (caught.value.layer, caught.value.direction) == ("0", "backward")

    def test_the_sum_over_two_uses(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3))
        with pytest.raises(InputNotFinite, match="the sum over several uses"), tp.check_finite(model):
            output = model(torch.ones(1, 3))
            ((output * 3e38).sum() + (output * 3e38).sum()).backward()

    def test_exclude(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3).double(), Applied(lambda x: (x * 0).sqrt()))
        with tp.check_finite(model, exclude="1"):
            model(X).sum().backward()
        assert not model[0].weight.grad.isfinite().all()


class TestTheGraph:
    def test_a_graph_that_outlives_the_block_is_checked_no_more(self) -> None:
        model = Applied(lambda x: (x * 0).sqrt())
        with tp.check_finite(model):
            loss = model(X).sum()
        loss.backward()
        assert not model.fc.weight.grad.isfinite().all()

    def test_second_derivatives(self) -> None:
        model, x = Applied(torch.tanh), X.clone().requires_grad_()
        with tp.check_finite(model):
            (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
            gradient.square().sum().backward()
        expected = Applied(torch.tanh)
        y = X.clone().requires_grad_()
        (plain,) = torch.autograd.grad(expected(y).sum(), y, create_graph=True)
        plain.square().sum().backward()
        assert torch.equal(x.grad, y.grad)

    def test_nothing_is_kept_alive(self) -> None:
        gc.disable()
        try:
            model = nn.Sequential(Applied(torch.tanh), nn.Linear(3, 1).double())
            output_of = []
            with tp.check_finite(model):
                output = model(X)
                output.sum().backward()
            output_of.append(weakref.ref(output))
            parameter, alive = weakref.ref(model[0].fc.weight), weakref.ref(model)
            del model, output
            assert output_of[0]() is None
            assert alive() is None
            assert parameter() is None
        finally:
            gc.enable()

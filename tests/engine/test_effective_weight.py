"""effective_weight: what the next forward pass of a layer computes with, against that pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import torchpeek as tp
from torchpeek.errors import InputError, Notice


def used(model: nn.Module, x: Tensor, closes_over: bool = False) -> list[Tensor]:
    """The weights that a pass hands to conv2d and linear: of a copy, but for hooks that know the model."""
    weights: list[Tensor] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
            weights.append(weight.detach().clone())
            return function(x, weight, *args, **kwargs)

        return call

    # The weights that old hooks compute are no leaves, so that deepcopy needs them detached.
    for module in model.modules():
        for name, value in module.__dict__.items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                module.__dict__[name] = value.detach()
    with patch("torch.nn.functional.conv2d", noted(F.conv2d)), patch("torch.nn.functional.linear", noted(F.linear)):
        (model if closes_over else copy.deepcopy(model))(x)
    return weights


def weight_normed(layer: nn.Module) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer)


def spectral_normed(layer: nn.Module) -> None:
    nn.utils.spectral_norm(layer)


def pruned(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", 0.4)


def pruned_twice(layer: nn.Module) -> None:
    pruned(layer)
    prune.ln_structured(layer, "weight", 0.3, n=2, dim=0)


def direction_pruned(layer: nn.Module) -> None:
    """The pass computes the weight from the direction of the last pass, because the hook of weight_norm runs first."""
    weight_normed(layer)
    prune.l1_unstructured(layer, "weight_v", 0.4)


def masked(layer: nn.Module) -> None:
    """A hook of the user's, with keyword arguments."""
    layer.raw = nn.Parameter(layer.weight.detach().clone())
    layer.mask = torch.arange(layer.weight.numel()).reshape(layer.weight.shape) % 3 > 0
    del layer.weight

    def compute(module: Any, args: Any, kwargs: Any) -> None:
        module.weight = module.raw * module.mask

    layer.register_forward_pre_hook(compute, with_kwargs=True)


def masked_in_a_buffer(layer: nn.Module) -> None:
    raw = nn.Parameter(layer.weight.detach().clone())
    del layer.weight
    layer.register_parameter("raw", raw)
    layer.register_buffer("weight", raw.detach().clone())
    layer.register_forward_pre_hook(lambda module, args: setattr(module, "weight", module.raw.detach() * 2))


def closed_over(layer: nn.Module) -> None:
    """A hook that ignores its argument."""
    layer.raw = nn.Parameter(layer.weight.detach().clone())
    del layer.weight
    layer.register_forward_pre_hook(lambda *_: setattr(layer, "weight", layer.raw.tanh()))


def parametrised_twice(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer)
    parametrize.register_parametrization(layer, "weight", nn.Tanh())


WAYS = [
    weight_normed,
    spectral_normed,
    pruned,
    pruned_twice,
    direction_pruned,
    masked,
    masked_in_a_buffer,
    closed_over,
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    parametrised_twice,
    lambda layer: None,
]
X = torch.linspace(-1, 1, 2 * 3 * 6 * 6, dtype=torch.float64).reshape(2, 3, 6, 6)


def network(way: Callable[[nn.Module], Any], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).double()
    for layer in (model[0], model[3]):
        way(layer)
    return model


def state(model: nn.Module) -> list[Any]:
    """Everything that must stay: attributes by identity, and the values of tensors."""
    found: list[Any] = [torch.get_rng_state().tolist()]
    for module in model.modules():
        for store in (module.__dict__, module._parameters, module._buffers):
            for name, value in store.items():
                tensor = isinstance(value, Tensor)
                version = (value.tolist(), value.requires_grad) if tensor else None
                found.append((name, id(value), version, list(value) if isinstance(value, dict) else None))
    return found


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("way", WAYS)
class TestAgainstTheNextPass:
    def test_after_load_state_dict(self, way: Any, training: bool) -> None:
        model = network(way, 0).train(training)
        model(X)
        model.load_state_dict(network(way, 1).state_dict())
        before = state(model)
        found = tp.kernels(model, ["0", "3"])
        assert state(model) == before
        expected = used(model, X, way is closed_over)
        for weight, known in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(weight, known, rtol=0, atol=0)
            assert not weight.requires_grad

    def test_after_a_step_and_before_the_first_pass(self, way: Any, training: bool) -> None:
        model = network(way, 0).train(training)
        for _ in range(2):
            found = tp.kernels(model, ["0", "3"])
            for weight, known in zip(found.values(), used(model, X, way is closed_over), strict=True):
                torch.testing.assert_close(weight, known, rtol=0, atol=0)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
            model(X).square().sum().backward()
            optimizer.step()

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_in_the_users_blocks(self, way: Any, training: bool, context: Any) -> None:
        model = network(way, 0).train(training)
        with context():
            found = tp.kernels(model, "*")
        assert not any(weight.is_inference() for weight in found.values())
        torch.testing.assert_close(found["0"], used(model, X, way is closed_over)[0], rtol=0, atol=0)


class TestOthers:
    def test_a_graph_of_the_users_stays(self) -> None:
        """A pass, then kernels(), then the backward pass: with the gradients as without kernels()."""
        gradients = []
        for looks in (False, True):
            model = network(masked, 0)
            loss = model(X).square().sum()
            if looks:
                tp.kernels(model)
            loss.backward()
            gradients.append(model[0].raw.grad)
        assert torch.equal(*gradients)

    def test_hooks_that_only_look_are_not_run(self) -> None:
        model = network(weight_normed, 0)
        calls: list[Any] = []
        for layer in (model[0], model[1], model[3]):
            layer.register_forward_pre_hook(lambda module, args: calls.append(args))
        tp.kernels(model, "*")
        assert not calls
        with tp.record(model, "0", inputs=True) as tape:
            tp.kernels(model, "*")
            model(X)
        assert tape["0"].input is not None

    def test_a_hook_that_raises_leaves_the_layer_as_it_was(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3))
        masked(model[0])

        def spoils(module: Any, args: Any) -> None:
            with torch.no_grad():
                module.raw.zero_()
            module.extra = 1
            raise IndexError("tuple index out of range")

        model[0].register_forward_pre_hook(spoils)
        before = model[0].raw.detach().clone()
        with pytest.raises(InputError, match=r"'0' is computed by a hook that fails .*IndexError.* run the model once"):
            tp.kernels(model)
        assert torch.equal(model[0].raw, before)
        assert not hasattr(model[0], "extra")
        assert not hasattr(model[0], "weight")

    def test_a_weight_that_depends_on_the_input_is_the_last_one_and_said(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3)).double()
        raw = nn.Parameter(model[0].weight.detach().clone())
        del model[0].weight
        model[0].raw = raw
        model[0].register_forward_pre_hook(lambda module, args: setattr(module, "weight", raw * args[0].mean()))
        model(X + 1)
        with pytest.warns(Notice, match="the weight that the last forward pass left"):
            found = tp.kernels(model)
        torch.testing.assert_close(found["0"], (raw * (X + 1).mean()).detach())

    def test_a_hook_of_the_whole_model_is_said(self) -> None:
        model = network(closed_over, 0)
        hooks = list(model[0]._forward_pre_hooks.values())
        model[0]._forward_pre_hooks.clear()
        model.register_forward_pre_hook(hooks[0])
        with pytest.raises(InputError, match="computed outside of the layer, and no forward pass has done so"):
            tp.kernels(model)
        model(X)
        with pytest.warns(Notice, match="computed outside of the layer"):
            tp.kernels(model)

    def test_random_numbers(self) -> None:
        class Dropped(nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                return F.dropout(weight, 0.5, self.training)

        model = nn.Sequential(nn.Conv2d(3, 4, 3))
        parametrize.register_parametrization(model[0], "weight", Dropped())
        before = torch.get_rng_state()
        found = tp.kernels(model)["0"]
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(found, model[0].weight)  # the next draw

    def test_lazy_layers(self) -> None:
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyLinear(3))
        for layers in (None, "*", nn.Linear):
            with pytest.raises(InputError, match=r"without a weight: its first forward pass makes it\. Next: run"):
                tp.kernels(model, layers)
        model(torch.rand(1, 2, 5, 5))
        assert [tuple(each.shape) for each in tp.kernels(model, "*").values()] == [(4, 2, 3, 3), (3, 3)]

    def test_complex_sparse_and_shared(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 3, 1, dtype=torch.complex64), nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = nn.Parameter(torch.eye(3).to_sparse())
        dense = model[2].weight = nn.Parameter(torch.eye(3))
        model.append(nn.Linear(3, 3)).append(model[2])
        model[3].weight = dense
        found = tp.kernels(model, "*")
        assert list(found) == ["0", "1", "2", "3"]  # a layer with two names has the first
        assert found["0"].is_complex()
        assert all(torch.equal(found[name], torch.eye(3)) for name in "123")
        found["2"].zero_()
        assert torch.equal(found["3"], torch.eye(3))

    @pytest.mark.filterwarnings("ignore")
    def test_quantised(self) -> None:
        import torch.ao.nn.quantized as quantised

        weight = torch.tensor([-1.0, 0.5, 0.25, 1.0]).reshape(2, 2, 1, 1)
        for kind, by_output in [(quantised.Conv2d, weight), (quantised.ConvTranspose2d, weight.transpose(0, 1))]:
            layer = kind(2, 2, 1)
            layer.set_weight_bias(torch.quantize_per_tensor(weight, 0.25, 0, torch.qint8), torch.zeros(2))
            found = tp.kernels(nn.Sequential(layer, quantised.MaxPool2d(2)))
            assert list(found) == ["0"]
            assert torch.equal(found["0"], weight)
            assert torch.equal(found.by_output()["0"], by_output)
        linear = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), {nn.Linear})
        torch.testing.assert_close(tp.kernels(linear, "0")["0"], linear[0].weight().dequantize())


class TestLinearHead:
    """cam reads the weights of the head. It gets those that the pass computed with, and changes nothing."""

    @pytest.mark.parametrize("way", [*WAYS[:3], masked, parametrizations.spectral_norm, parametrizations.weight_norm])
    @pytest.mark.parametrize("training", [False, True])
    def test_cam_of_a_computed_head(self, way: Any, training: bool) -> None:
        torch.manual_seed(0)
        parts = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
        model = nn.Sequential(*parts).double().train(training)
        way(model[4])
        with torch.no_grad():
            model(X)
        before = state(model)
        trace = tp.trace(model, X, layer="1", target=2)
        heatmap = tp.explain(trace, method="cam")
        changed = [a[0] for a, b in zip(state(model)[1:], before[1:], strict=True) if a != b]
        assert set(changed) <= {"weight"}  # the attribute that each pass of the model replaces
        weight = used(model.eval(), X)[1][2]
        torch.testing.assert_close(heatmap.values[:, 0], (trace.activations[:, 0] * weight[:, None, None]).sum(1))

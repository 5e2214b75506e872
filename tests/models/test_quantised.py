"""Quantised models: heatmaps where they are possible, and errors where they are not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from networks.cnn_and_vit import X, model_of, off
from torchpeek.errors import GradUnavailable, NoSpatialLayer, Notice
from torchpeek.models.quantised import observing_layers, quantised_layers


@pytest.fixture
def quantization() -> Any:
    """torch.ao.quantization, without what it says of its own future; skipped where this torch has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("torch.ao.quantization")
        if "fbgemm" not in torch.backends.quantized.supported_engines:
            pytest.skip("no engine for quantised layers here")
        yield module


class Stubs(nn.Module):
    """Quantised from the first layer on; turned back before a last part, if there is one."""

    def __init__(self, quantization: Any, inside: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.quant, self.inside = quantization.QuantStub(), inside
        self.dequant, self.after = quantization.DeQuantStub(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.dequant(self.inside(self.quant(x))))


class TestQuantised:
    GRADIENTS = (
        "gradcam",
        "gradcam++",
        "layercam",
        "integrated-gradcam",
        "groupcam",
        "fullgrad",
        "opticam",
        "saliency",
    )

    @pytest.fixture
    def dynamic(self, quantization: Any) -> nn.Module:
        """The linear head in int8."""
        return quantization.quantize_dynamic(model_of("conv"), {nn.Linear}, dtype=torch.qint8)

    def test_dynamic_without_gradients(self, dynamic: nn.Module) -> None:
        """As in floating point, but for the steps of its weights and its inputs, each of 1 / 127 of the largest."""
        assert quantised_layers(dynamic) == ["head"]
        step = 2 / 127
        for name in ("eigencam", "fem", "kpcacam", "scorecam", "recipro-cam", "random"):
            expected = tp.explain(model_of("conv"), X, method=name, layer="features.4", target=[1, 2])
            got = tp.explain(dynamic, X, method=name, layer="features.4", target=[1, 2])
            exactly = name in ("eigencam", "fem", "kpcacam", "random")  # these do not look at the head
            assert off(got, expected) <= (1e-6 if exactly else 4 * step), name

    def test_dynamic_ablation_is_the_models_own_head(self, dynamic: nn.Module) -> None:
        trace = tp.trace(dynamic, X[:1], layer="features.4", target=1, gradients=False)
        activation = trace.activations[0]  # (1, C, h, w)
        own = dynamic.head(activation.mean((2, 3)))[0, 1]
        falls = []
        for channel in range(activation.shape[1]):
            without = activation.clone()
            without[:, channel] = 0
            falls.append((own - dynamic.head(without.mean((2, 3)))[0, 1]) / own.abs())
        expected = (torch.stack(falls)[:, None, None] * activation[0]).sum(0)
        got = tp.explain(dynamic, X[:1], method="ablationcam", layer="features.4", target=1).values[0, 0]
        # All channels go at once, and the head's scale is that of all of them.
        assert float((got - expected).abs().max() / expected.abs().max()) < 0.1

    @pytest.mark.parametrize("method", GRADIENTS)
    @pytest.mark.filterwarnings("ignore:the model turns gradients off")
    def test_dynamic_with_gradients_is_refused(self, dynamic: nn.Module, method: str) -> None:
        where = {} if method in ("fullgrad", "saliency") else {"layer": "features.4"}
        with pytest.raises(GradUnavailable, match=r"the model is quantised \('head'\).*a method without gradients"):
            tp.explain(dynamic, X, method=method, **where)

    @pytest.mark.filterwarnings("ignore:the model turns gradients off")
    def test_dynamic_traces_with_gradients_are_refused(self, dynamic: nn.Module) -> None:
        with pytest.raises(GradUnavailable, match="the model is quantised"):
            tp.trace(dynamic, X, layer="features.4")

    def static(self, quantization: Any, after: nn.Module | None = None, inside: nn.Module | None = None) -> nn.Module:
        model = Stubs(quantization, inside or model_of("conv"), after).eval()
        model.qconfig = quantization.get_default_qconfig("fbgemm")
        if after is not None:
            after.qconfig = None
        prepared = quantization.prepare(model)
        prepared(X)
        return quantization.convert(prepared)

    @pytest.mark.parametrize("method", ["gradcam", "eigencam", "scorecam", "ablationcam"])
    @pytest.mark.parametrize("layer", ["inside.features.4", "quant", None])
    def test_static_layers_have_no_floating_point_output(self, quantization: Any, method: str, layer: Any) -> None:
        model = self.static(quantization)
        with pytest.raises(NoSpatialLayer, match=r"the model is quantised \('quant', .*floating-point activations"):
            tp.explain(model, X, method=method, layer=layer)

    @pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam"])
    def test_a_floating_point_part_after_it_works(self, quantization: Any, method: str) -> None:
        """Gradients flow to the layer, not on into what is quantised: as of the float part on the same activations."""
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        model = self.static(quantization, PooledNet().eval(), stem)
        got = tp.explain(model, X, method=method, layer="after.act", target=1)
        if method == "scorecam":  # masks are laid over the picture, before what is quantised
            assert got.values.isfinite().all()
            return
        expected = tp.explain(model.after, model.dequant(model.inside(model.quant(X))), method=method, target=1)
        torch.testing.assert_close(got.values, expected.values)

    def fake(self, quantization: Any) -> nn.Module:
        model = Stubs(quantization, model_of("conv")).train()
        model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        prepared = quantization.prepare_qat(model)
        for seed in range(3):
            prepared(torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(seed)))
        return prepared.eval()

    def test_fake_quantisation_has_gradients(self, quantization: Any) -> None:
        model = self.fake(quantization)
        model.apply(quantization.disable_observer)
        assert not observing_layers(model)
        seen: list[Tensor] = []
        with model.inside.features[4].register_forward_hook(lambda module, args, output: seen.append(output)):
            score = model(X)[:, 1].sum()
        (gradient,) = torch.autograd.grad(score, seen[0])
        expected = (gradient.mean((2, 3), keepdim=True) * seen[0]).sum(1, keepdim=True)
        got = tp.explain(model, X, layer="inside.features.4", target=1)
        torch.testing.assert_close(got.values, expected)
        for method in ("scorecam", "ablationcam", "integrated-gradcam"):
            assert tp.explain(model, X, method=method, layer="inside.features.4", target=1).values.any()

    def test_fake_quantisation_that_still_learns_is_pointed_out(self, quantization: Any) -> None:
        model = self.fake(quantization)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            tp.explain(model, X * 100, layer="inside.features.4")
        notices = [str(each.message) for each in said if issubclass(each.category, Notice)]
        assert "disable_observer" in notices[0]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_other_models_are_not_quantised(self) -> None:
        assert not quantised_layers(model_of("conv"))
        assert not observing_layers(model_of("conv"))

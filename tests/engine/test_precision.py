"""The same map in another precision, and wherever and however the model runs; what cannot be is refused by name."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import GradUnavailable, InputError, LayerNotFound, NoSpatialLayer, Notice
from torchpeek.models.quantised import observing_layers, quantised_layers

METHODS = ["gradcam", "hirescam", "layercam", "recipro-cam", "integrated-gradcam"]
LAYERS = {"conv": "features.4", "tokens": "blocks.1.norm"}


class Pooled(nn.Module):
    """Two convolutions, global average pooling, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
        self.features = nn.Sequential(*stem, nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.ReLU())
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


class Block(nn.Module):
    """Attention and an MLP, each added to the tokens (N, T, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(x)


class Tokens(nn.Module):
    """A small vision transformer with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.class_token = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.randn(1, 1, 8))
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).mT
        return self.head(self.blocks(torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1))[:, 0])


X = torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(1))


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return {"conv": Pooled, "tokens": Tokens}[kind]().eval()


def off(got: tp.Heatmap, expected: tp.Heatmap) -> float:
    """The largest difference, relative to the largest value."""
    ours, theirs = got.values.double().cpu(), expected.values.double().cpu()
    return float((ours - theirs).abs().max() / theirs.abs().max())


# Fewer than sixteen roundings lie in a row on the way there and back, each by at most half an epsilon.
ROUNDINGS = 16


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("kind", LAYERS)
    def test_is_that_of_float64_but_for_rounding(self, kind: str, dtype: torch.dtype) -> None:
        """Of a model whose parameters are exact in the smaller type, so that only the arithmetic differs."""
        model = model_of(kind).to(dtype)
        exact, x = copy.deepcopy(model).double(), X.to(dtype)
        expected = tp.compare(exact, x.double(), methods=METHODS, layer=LAYERS[kind], target=[1, 2])
        for name, got in tp.compare(model, x, methods=METHODS, layer=LAYERS[kind], target=[1, 2]).items():
            assert got.values.dtype == torch.float32
            assert got.provenance.dtype == str(dtype).removeprefix("torch.")
            assert off(got, expected[name]) < ROUNDINGS * torch.finfo(dtype).eps / 2, name
        assert expected["gradcam"].values.dtype == torch.float64

    @pytest.mark.parametrize("kind", LAYERS)
    def test_under_autocast(self, kind: str) -> None:
        model = model_of(kind)
        expected = tp.compare(model, X, methods=METHODS, layer=LAYERS[kind], target=[1, 2])
        with torch.autocast("cpu", torch.bfloat16):
            found = tp.compare(model, X, methods=METHODS, layer=LAYERS[kind], target=[1, 2])
            trace = tp.trace(model, X, layer=LAYERS[kind], target=[1, 2])
        for name, got in found.items():
            assert off(got, expected[name]) < ROUNDINGS * torch.finfo(torch.bfloat16).eps / 2, name
            assert got.values.dtype == torch.float32
        # What is asked of a trace later runs as the trace did, outside of autocast, too.
        later = tp.explain(trace, method="integrated-gradcam")
        assert off(later, found["integrated-gradcam"]) < 1e-6

    def test_scoring_passes_alone_in_bfloat16(self) -> None:
        model = model_of("conv")
        exact = tp.explain(model, X, method="scorecam", layer="features.4")
        half = tp.explain(model, X, method="scorecam", layer="features.4", precision="bfloat16")
        assert 0 < off(half, exact) < ROUNDINGS * torch.finfo(torch.bfloat16).eps / 2

    def test_what_overflows_in_half_precision_is_named(self) -> None:
        model = model_of("conv").half()
        with torch.no_grad():
            model.features[3].weight.mul_(60000)
        with pytest.raises(tp.errors.NotFinite, match="Half precision overflows above 65504; try float32"):
            tp.explain(model, X.half() * 100, layer="features.4")


class TestCompiled:
    """Compiled models ignore hooks that come later; here they run eagerly, and are compiled again afterwards."""

    @pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam"])
    @pytest.mark.parametrize("how", ["wrapped", "in place", "a part"])
    def test_is_that_of_the_model_itself(self, how: str, method: str) -> None:
        torch._dynamo.reset()
        plain, model = model_of("conv"), model_of("conv")
        if how == "wrapped":
            model = torch.compile(model, backend="eager")  # type: ignore[assignment]
        elif how == "in place":
            model.compile(backend="eager")
        else:
            model.features = torch.compile(model.features, backend="eager")
        with torch.no_grad():
            before = model(X)
        expected = tp.explain(plain, X, method=method)
        got = tp.explain(model, X, method=method)
        torch.testing.assert_close(got.values, expected.values)
        assert got.provenance.model == "Pooled"
        with torch.no_grad():
            torch.testing.assert_close(model(X), before)

    def test_names_with_and_without_the_prefix(self) -> None:
        model = torch.compile(model_of("conv"), backend="eager")
        maps = [tp.explain(model, X, layer=name) for name in ("features.4", "_orig_mod.features.4")]
        assert torch.equal(maps[0].values, maps[1].values)

    def test_a_layer_inside_of_a_compiled_part_has_its_prefix(self) -> None:
        model = model_of("conv")
        expected = tp.explain(model, X, layer="features.4")
        model.features = torch.compile(model.features, backend="eager")
        got = tp.explain(model, X, layer="features._orig_mod.4")
        torch.testing.assert_close(got.values, expected.values)
        with pytest.raises(LayerNotFound, match=r"closest: .*'features._orig_mod.4'"):
            tp.explain(model, X, layer="features.4")


class TestDataParallel:
    @pytest.mark.parametrize("layer", ["features.4", "module.features.4", ["features.2", "module.features.4"], None])
    @pytest.mark.parametrize("method", ["gradcam", "ablationcam"])
    def test_is_that_of_the_model_inside(self, layer: Any, method: str) -> None:
        model = model_of("conv")
        if isinstance(layer, list):
            own: Any = ["features.2", "features.4"]
        else:
            own = "features.4"
        expected = tp.explain(model, X, method=method, layer=own)
        for wrapped in (nn.DataParallel(model), tp.LoadedModel(nn.DataParallel(model))):
            got = tp.explain(wrapped, X, method=method, layer=layer)
            torch.testing.assert_close(got.values, expected.values)
            assert got.provenance.model == "Pooled"

    def test_over_several_devices_is_refused(self) -> None:
        model = nn.DataParallel(model_of("conv"))
        model.device_ids = [0, 1]
        with pytest.raises(InputError, match=r"over 2 devices runs copies.*Next: give the model inside of it, model\."):
            tp.explain(model, X)


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
    GRADIENTS = ("gradcam", "gradcam++", "layercam", "integrated-gradcam", "groupcam", "fullgrad")

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
        where = {} if method == "fullgrad" else {"layer": "features.4"}
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
class TestGPU:
    """The same maps as on the CPU, on the GPU."""

    @pytest.mark.parametrize("kind", LAYERS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_is_that_of_the_cpu(self, kind: str, dtype: torch.dtype) -> None:
        model = model_of(kind).to(dtype)
        exact = copy.deepcopy(model).double()
        methods = METHODS if dtype != torch.float64 else [*METHODS, "eigencam", "scorecam", "ablationcam", "groupcam"]
        expected = tp.compare(exact, X.to(dtype).double(), methods=methods, layer=LAYERS[kind], target=[1, 2])
        found = tp.compare(model.cuda(), X.to(dtype).cuda(), methods=methods, layer=LAYERS[kind], target=[1, 2])
        for name, got in found.items():
            assert got.values.is_cuda
            assert got.provenance.device.startswith("cuda")
            bound = 1e-9 if dtype == torch.float64 else ROUNDINGS * torch.finfo(dtype).eps / 2
            # Convolutions in float32 may run in TensorFloat-32, of 10 bits.
            bound = max(bound, ROUNDINGS * 2**-11) if dtype == torch.float32 else bound
            assert off(got, expected[name]) < bound, name

    def test_pictures_go_to_the_models_device_and_tensors_stay(self) -> None:
        loaded = tp.LoadedModel(model_of("conv").cuda(), tp.Preprocess(None, None))
        assert loaded.device.type == "cuda"
        with pytest.raises(RuntimeError) as caught:
            tp.explain(loaded, X)
        assert "on cpu; its parameters are torch.float32 on cuda" in str(caught.value.__notes__)

    def test_autocast_and_one_device_in_parallel(self) -> None:
        model = model_of("conv").cuda()
        expected = tp.explain(model, X.cuda(), layer="features.4")
        wrapped = tp.explain(nn.DataParallel(model, device_ids=[0]), X.cuda(), layer="features.4")
        assert off(wrapped, expected) < 1e-5
        with torch.autocast("cuda", torch.float16):
            half = tp.explain(model, X.cuda(), layer="features.4")
        assert off(half, expected) < ROUNDINGS * torch.finfo(torch.float16).eps / 2

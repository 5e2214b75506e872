"""Heatmaps in every precision and on a GPU: equal to those of float64 on the CPU but for rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks.cnn_and_vit import LAYERS, METHODS, ROUNDINGS, X, model_of, off


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

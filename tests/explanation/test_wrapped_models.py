"""Compiled models and DataParallel: the heatmaps are those of the model inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks.cnn_and_vit import X, model_of
from torchpeek.errors import InputError, LayerNotFound


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

"""Networks that torch.fx traced, whose blocks are no modules any more."""

from __future__ import annotations

import pytest
import torch
import torch.fx
from torch import Tensor, nn

import torchpeek as tp

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.resnet18().double().eval()
    return model


class TestResNet:
    """The sum at the end of a block goes into a ReLU that is called twice: its second call returns what layer4 did."""

    def expected(self, model: nn.Module, x: Tensor, method: str) -> Tensor:
        return tp.explain(model, x, layer="layer4", method=method, target=3).values

    @pytest.mark.parametrize("method", ["gradcam", "layercam", "ablationcam"])
    def test_symbolic_trace(self, resnet: nn.Module, method: str) -> None:
        x = torch.rand(2, 3, 64, 64).double()
        found = tp.explain(torch.fx.symbolic_trace(resnet), x, method=method, target=3)
        assert found.provenance.layer == "layer4.1.relu[1]"
        torch.testing.assert_close(found.values, self.expected(resnet, x, method), rtol=1e-9, atol=1e-12)

    def test_feature_extractor(self, resnet: nn.Module) -> None:
        extraction = pytest.importorskip("torchvision.models.feature_extraction")
        x = torch.rand(2, 3, 64, 64).double()
        extractor = extraction.create_feature_extractor(resnet, {"layer4": "features", "fc": "logits"}).eval()
        found = tp.explain(extractor, x, target=tp.targets.Output(3, part="logits"))
        assert found.provenance.layer == "layer4.1.relu[1]"
        torch.testing.assert_close(found.values, self.expected(resnet, x, "gradcam"), rtol=1e-9, atol=1e-12)

    def test_exported_and_unflattened(self, resnet: nn.Module) -> None:
        x = torch.rand(1, 3, 64, 64).double()
        model = torch.export.unflatten(torch.export.export(resnet, (x,)))
        found = tp.explain(model, x, target=3)
        torch.testing.assert_close(found.values, self.expected(resnet, x, "gradcam"), rtol=1e-9, atol=1e-12)

    def test_an_exported_graph_has_no_layers(self, resnet: nn.Module) -> None:
        x = torch.rand(1, 3, 64, 64).double()
        model = torch.export.export(resnet, (x,)).module()
        with pytest.raises(tp.errors.NoSpatialLayer, match="no layer of GraphModule") as caught:
            tp.explain(model, x, target=3)
        assert "torch.export.unflatten" in str(caught.value)

"""The layer that is suggested when none is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from networks import PooledNet
from torchpeek.engine.targets import Predicted
from torchpeek.errors import NoSpatialLayer
from tracing import suggested_layer, traced


class TestSuggestedLayer:
    def test_the_last_grid_before_the_head(self) -> None:
        assert suggested_layer(PooledNet(), torch.randn(1, 3, 8, 8)).layer == "act"

    @pytest.mark.parametrize(
        ("name", "layer"),
        [
            ("mobilenet_v2", "features.18"),
            ("resnet18", "layer4"),
            ("densenet121", "features.norm5"),
            ("efficientnet_b0", "features.8"),
            ("convnext_tiny", "features.7"),
            ("vgg11", "avgpool"),
        ],
    )
    def test_of_well_known_networks(self, name: str, layer: str) -> None:
        torchvision = pytest.importorskip("torchvision")
        model = torchvision.models.get_model(name, weights=None)
        found = suggested_layer(model, torch.randn(1, 3, 224, 224))
        assert found.layer == layer
        assert "before the head" in found.reason

    def test_is_remembered(self) -> None:
        model = PooledNet()
        passes = []
        model.register_forward_hook(lambda *_: passes.append(1))
        for _ in range(3):
            suggested_layer(model, torch.randn(4, 3, 8, 8))
        assert len(passes) == 2  # what is returned, and what of it depends on the picture and changes the score
        suggested_layer(model, torch.randn(4, 3, 9, 9))
        assert len(passes) == 4
        suggested_layer(model, torch.randn(2, 3, 8, 8))
        assert len(passes) == 4
        suggested_layer(model, torch.randn(4, 3, 9, 9), anew=True)
        assert len(passes) == 6

    def test_an_activation_rather_than_what_it_overwrites(self) -> None:
        class Flat(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
                self.nothing, self.head = nn.Identity(), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.nothing(self.relu(self.bn(self.conv(x)))).mean((2, 3)))

        assert suggested_layer(Flat(), torch.randn(1, 3, 8, 8)).layer == "relu"

    @pytest.mark.parametrize("inplace", [False, True])
    def test_the_last_call_of_a_module_that_is_used_twice(self, inplace: bool) -> None:
        class Shared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=inplace)
                self.head = nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.relu(self.b(self.relu(self.a(x)))).mean((2, 3)))

        model, x = Shared(), torch.randn(1, 3, 8, 8)
        assert suggested_layer(model, x).layer == "relu[1]"
        _ = traced(model, x, ["b"], Predicted()).gradients

    def test_refusals(self) -> None:
        with pytest.raises(NoSpatialLayer, match="no layer of Sequential returns a grid"):
            suggested_layer(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(1, 3, 2, 2))

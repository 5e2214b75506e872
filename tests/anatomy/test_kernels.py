"""kernels: the weights of every convolution, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import LayerNotFound


class TestKernels:
    def test_of_every_convolution(self) -> None:
        model = PooledNet()
        found = tp.kernels(model)
        assert list(found) == ["features.0", "features.2"]
        assert torch.equal(found["features.0"], model.features[0].weight)
        found["features.0"].zero_()
        assert model.features[0].weight.any()

    def test_alexnet_grouped_by_shape(self) -> None:
        from torchvision.models import alexnet

        model = alexnet()
        groups = tp.kernels(model).by_shape()
        shapes = {size: [tuple(weight.shape) for weight in each.values()] for size, each in groups.items()}
        assert shapes == {
            (11, 11): [(64, 3, 11, 11)],
            (5, 5): [(192, 64, 5, 5)],
            (3, 3): [(384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3)],
        }
        assert sum(len(each) for each in groups.values()) == 5

    def test_selected_transposed_and_computed(self) -> None:
        model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Linear(4, 5), nn.ReLU())
        nn.utils.parametrizations.weight_norm(model[0])
        found = tp.kernels(model, "*")
        assert {name: tuple(weight.shape) for name, weight in found.items()} == {"0": (3, 4, 2, 2), "1": (5, 4)}
        torch.testing.assert_close(found["0"], model[0].weight)

    def test_leaves_buffers_alone_that_computing_a_weight_changes(self) -> None:
        model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))).train()
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        tp.kernels(model)
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())

    def test_refusals(self) -> None:
        with pytest.raises(LayerNotFound, match="has a weight"):
            tp.kernels(PooledNet(), nn.ReLU)
        with pytest.raises(LayerNotFound, match="closest: 'head'"):
            tp.kernels(PooledNet(), "heads")

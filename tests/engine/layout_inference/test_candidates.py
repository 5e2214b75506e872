"""Which axis holds the channels, where sizes alone allow several readings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchpeek.engine import ModelRunner
from torchpeek.engine.layout_inference.candidates import is_channels_last
from torchpeek.engine.targets import Predicted


class TestChannelsLast:
    """(N, h, w, C) read as (N, C, h, w) would give a heatmap of height against channels."""

    @pytest.mark.parametrize(
        ("shape", "given", "expected"),
        [
            ((1, 56, 56, 96), (1, 3, 224, 224), True),
            ((1, 7, 7, 768), (1, 3, 224, 224), True),
            ((1, 14, 10, 64), (1, 3, 224, 160), True),
            ((1, 64, 14, 10), (1, 3, 224, 160), False),
            ((1, 2048, 7, 7), (1, 3, 224, 224), False),
            ((1, 7, 7, 7), (1, 3, 224, 224), False),
            ((1, 256, 6, 6), (1, 3, 227, 227), False),
            ((1, 32, 8, 40), (1, 1, 64, 80), False),  # a stride of its own for each axis, as for spectrograms
            ((1, 12, 9), (1, 3, 36), False),
        ],
    )
    def test_what_is_taken_for_it(self, shape, given, expected) -> None:
        assert is_channels_last(nn.Identity(), torch.empty(shape), torch.empty(given)) is expected

    @pytest.mark.parametrize("layer", ["0", "1", "2"])
    def test_a_stride_of_its_own_for_each_axis_is_no_reason(self, layer: str) -> None:
        """As for spectrograms: (32, 32, 128) might be height, width and channels, but comes out of a convolution."""
        model = nn.Sequential(
            nn.Conv2d(1, 32, (5, 3), stride=(4, 1), padding=(2, 1)),
            nn.BatchNorm2d(32),
            nn.Sequential(nn.Conv2d(32, 32, 1), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 3),
        )
        trace = ModelRunner(model).trace(torch.randn(1, 1, 128, 128), [layer], Predicted())
        assert trace.activations.shape == (1, 1, 32, 32, 128)

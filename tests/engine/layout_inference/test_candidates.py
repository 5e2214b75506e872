"""Which axes of an output are samples, channels and grid, where sizes alone allow several layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.layouts import Flat, Sequence, Signal, Swap, Turned, Upright, Windows, layer_output
from torchpeek.engine.layout_inference.candidates import is_channels_last
from torchpeek.engine.targets import Predicted
from torchpeek.errors import NoSpatialLayer
from tracing import traced

pytestmark = pytest.mark.usefixtures("one_thread")


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
        trace = traced(model, torch.randn(1, 1, 128, 128), [layer], Predicted())
        assert trace.activations.shape == (1, 1, 32, 32, 128)


NO_CLASS: dict[str, Any] = {"class_token": False, "global_pool": "avg", "num_classes": 4}


class TestAmbiguousShapes:
    """Where one axis is as long as another. Each of these was read wrong once, without a word."""

    @pytest.mark.parametrize("channels", [24, 12])
    def test_a_convolution_inside_says_nothing_of_what_comes_out(self, channels: int) -> None:
        model, x = Turned(channels).eval(), torch.randn(2, 3, 64, 96)
        trace = tp.trace(model, x, layer="embed")
        assert trace.at["embed"].layout == tp.Layout("channels-last", (8, 12))
        assert torch.equal(trace.activations.squeeze(1), layer_output(model, "embed", x).permute(0, 3, 1, 2))

    def test_a_cube_next_to_a_norm_over_the_last_axis(self) -> None:
        """Only what certainly has its channels last is read so; of what may be either both are listed."""
        model, x = Turned(8).eval(), torch.randn(1, 3, 64, 64)
        assert str(tp.trace(model, x, layer="norm").at["norm"].layout) == "channels-last 8x8"
        assert str(tp.trace(model, x, layer="lin").at["lin"].layout) == "channels-last 8x8"
        with pytest.raises(
            NoSpatialLayer, match=r"fits 2 layouts: 'channels-first 8x8', 'channels-last 8x8'\. Choose one with"
        ):
            tp.trace(model, x, layer="embed")
        trace = tp.trace(model, x, layer="embed", layout="channels-last")
        assert torch.equal(trace.activations.squeeze(1), layer_output(model, "embed", x).permute(0, 3, 1, 2))
        upright = Upright(8).eval()
        with pytest.raises(NoSpatialLayer, match="'channels-first 8x8', 'channels-last 8x8'"):
            tp.trace(upright, x, layer="block")
        assert str(tp.trace(upright, x, layer="embed").at["embed"].layout) == "channels-first 8x8"
        first = tp.trace(upright, x, layer="block", layout="channels-first 8x8")
        assert torch.equal(first.activations.squeeze(1), layer_output(upright, "block", x))

    @pytest.mark.parametrize("size", [(64, 64), (64, 96)])
    def test_a_cube_in_a_network_of_convolutions_is_no_question(self, size: tuple[int, int]) -> None:
        block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        model = nn.Sequential(nn.Conv2d(3, 8, 8, 8), block, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        for layer in ("0", "1", "2"):
            x = torch.randn(2, 3, *size)
            assert torch.equal(tp.trace(model, x, layer=layer).activations.squeeze(1), layer_output(model, layer, x))

    @pytest.mark.parametrize("channels", [10, 16])
    @pytest.mark.parametrize("count", [1, 2, 16])
    def test_as_many_samples_as_tokens(self, channels: int, count: int) -> None:
        """(16, 16, C): which of the two are samples is seen where there is one."""
        model, x = Sequence(channels).eval(), torch.randn(count, 3, 64, 64)
        for layer in ("encoder.layers.0", "encoder.layers.0.norm1", "encoder"):
            trace = tp.trace(model, x, layer=layer)
            assert trace.at[layer].layout == tp.Layout("sequence-first", (4, 4))
            expected = layer_output(model, layer, x).permute(1, 2, 0).unflatten(2, (4, 4))
            torch.testing.assert_close(trace.activations.squeeze(1), expected)

    @pytest.mark.parametrize("count", [1, 2, 4, 16])
    def test_windows_in_the_axis_of_the_samples(self, count: int) -> None:
        """Also where the positions in a window are as many as the samples, and the windows a grid."""
        model, x = Windows().eval(), torch.randn(count, 3, 64, 64)
        with pytest.raises(NoSpatialLayer, match="it folds 16 parts of each picture, such as windows"):
            tp.trace(model, x, layer="inside")
        assert tp.trace(model, x).layer == "patch"

    def test_a_signal_with_as_many_channels_as_positions(self) -> None:
        x = torch.randn(2, 2, 64)
        for channels, prefix, expected in [(24, 0, "16"), (24, 1, "1+16"), (16, 1, "1+16"), (8, 1, "1+16")]:
            model = Signal(channels, prefix).eval()
            trace = tp.trace(model, x, layer="block")
            assert str(trace.at["block"].layout) == f"tokens {expected}"
            torch.testing.assert_close(trace.activations.squeeze(1), layer_output(model, "block", x)[:, prefix:].mT)
        with pytest.raises(NoSpatialLayer, match="2 layouts: 'tokens 16', 'channels-first 16'"):
            tp.trace(Signal(16, 0).eval(), x, layer="block")
        assert str(tp.trace(Signal(16, 0).eval(), x, layer="block.norm2").at["block.norm2"].layout) == "tokens 16"

    def test_a_signal_without_convolutions(self) -> None:
        """What a recurrent network says of (N, L, C): nothing shows which axis is time but the user."""

        class Recurrent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm, self.head = nn.LSTM(2, 12, batch_first=True), nn.Linear(12, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(torch.tanh(self.lstm(x.mT)[0]).mean(1))

        model, x = Recurrent().eval(), torch.randn(2, 2, 48)
        with pytest.raises(NoSpatialLayer, match=r"'tokens 48'.*'channels-first 12'"):
            tp.trace(model, x, layer="lstm")
        trace = tp.trace(model, x, layer="lstm", layout="tokens 48")
        assert trace.at["lstm"].layout.part == "0"
        assert trace.gradients.shape == (2, 1, 12, 48)

    @pytest.mark.parametrize(("channels", "layout"), [(10, "channel-tokens 4x4"), (20, "channel-tokens 4x4")])
    def test_channels_a_few_more_than_positions(self, channels: int, layout: str) -> None:
        """(N, 20, 16) might be 4 tokens and 16; but 20 channels and 16 positions are what the convolution had."""
        model, x = Flat(channels).eval(), torch.randn(2, 3, 64, 64)
        trace = tp.trace(model, x, layer="flat")
        assert str(trace.at["flat"].layout) == layout
        assert torch.equal(trace.activations.squeeze(1), layer_output(model, "patch", x))

    def test_a_square_of_channels_and_tokens(self) -> None:
        model, x = Flat(16).eval(), torch.randn(2, 3, 64, 64)
        with pytest.raises(NoSpatialLayer, match="'tokens 4x4', 'channel-tokens 4x4'"):
            tp.trace(model, x, layer="flat")
        trace = tp.trace(model, x, layer="flat", layout="channel-tokens")
        assert torch.equal(trace.activations.squeeze(1), layer_output(model, "patch", x))
        # After the norm, and of a transformer's block, it is no question.
        assert str(tp.trace(model, x, layer="norm").at["norm"].layout) == "tokens 4x4"
        timm = pytest.importorskip("timm")
        vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=16, num_heads=2, **NO_CLASS)
        assert str(tp.trace(vit, x, layer="blocks.0").at["blocks.0"].layout) == "tokens 4x4"

    def test_196_of_both(self) -> None:
        timm = pytest.importorskip("timm")
        vit = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=196, num_heads=2, **NO_CLASS).eval()
        x = torch.randn(1, 3, 224, 224)
        trace = tp.trace(vit, x, layer="blocks.0")
        expected = layer_output(vit, "blocks.0", x).mT.unflatten(2, (14, 14))
        torch.testing.assert_close(trace.activations.squeeze(1), expected)

    def test_one_position_is_no_grid(self) -> None:
        """(N, 1, 256) is one token, whatever 256 may be the square of."""
        model = nn.Sequential(nn.Conv2d(3, 256, 32, 32), nn.Flatten(2), Swap(), nn.Tanh(), nn.Flatten(1))
        with pytest.raises(NoSpatialLayer, match="no grid of more than one position"):
            tp.trace(model, torch.randn(2, 3, 32, 32), layer="3")


class TestDetectors:
    def test_a_grid_may_be_larger_than_the_picture_that_is_given(self) -> None:
        """As the detector scales it first: of 32 x 48 pixels its finest grid is 48 x 80."""
        detection = pytest.importorskip("torchvision").models.detection
        model = detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, min_size=96).eval()
        target = tp.targets.Neuron("backbone.body.4", 3)
        for layer in ("backbone.body.0", "backbone.body.2"):
            trace = tp.trace(model, torch.rand(1, 3, 32, 48), layer=layer, target=target)
            grid = {"backbone.body.0": (48, 80), "backbone.body.2": (24, 40)}[layer]
            assert trace.at[layer].layout == tp.Layout("channels-first", grid)
            assert float(trace.gradients.abs().max()) > 0

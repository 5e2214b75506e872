"""What is said where no layer has a grid of the picture, and that a layout that is named then gives the right map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.views import Electrodes, Frames, Siamese, Spectrogram
from torchpeek.errors import NoSpatialLayer

pytestmark = pytest.mark.usefixtures("one_thread")


def by_autograd(model: nn.Module, layer: str, inputs: tuple[Tensor, ...], label: int, call: int = 0) -> Tensor:
    """Grad-CAM of one call of a layer that returns (N, C, *grid)."""
    returned: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: returned.append(output))
    scores = model(*inputs)[:, label].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(scores, returned[call])
    weights = gradient.flatten(2).mean(2).view(*gradient.shape[:2], *(1 for _ in gradient.shape[2:]))
    return (weights * returned[call].detach()).sum(1, keepdim=True)


def message(model: nn.Module, inputs: Any) -> str:
    with pytest.raises(NoSpatialLayer) as caught:
        tp.explain(model, inputs)
    return str(caught.value)


class TestSpectrogram:
    """A signal (N, samples) whose spectrogram the network computes: the grid is that of the spectrogram."""

    def network(self) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        return Spectrogram().double().eval(), torch.randn(2, 1020).double()

    def test_what_is_said(self) -> None:
        model, x = self.network()
        assert (
            "'encoder' (N, 5, 8, 13): no picture axis explains 8 x 13; layout='channels-first 8x13'; 'encoder.1' "
            "(N, 4, 16, 26): no picture axis explains 16 x 26; layout='channels-first 16x26'"
        ) in message(model, x)
        with pytest.raises(
            NoSpatialLayer, match=r"\(N, 4, 16, 26\) for 2 pictures: no picture axis explains 16 x 26\. .*"
        ):
            tp.explain(model, x, layer="encoder.1")

    @pytest.mark.parametrize("layout", ["channels-first 8x13", "N C 8 13", "N C H W"])
    def test_the_layout_that_is_named(self, layout: str) -> None:
        model, x = self.network()
        found = tp.explain(model, x, layer="encoder", layout=layout, target=1)
        torch.testing.assert_close(found.values, by_autograd(model, "encoder", (x,), 1), rtol=1e-9, atol=1e-12)


class TestSiamese:
    def inputs(self) -> tuple[Tensor, Tensor]:
        return torch.randn(2, 3, 16, 12).double(), torch.randn(2, 3, 16, 12).double()

    @pytest.mark.parametrize("call", [0, 1])
    def test_each_call(self, call: int) -> None:
        torch.manual_seed(0)
        model, pair = Siamese().double().eval(), self.inputs()
        found = tp.explain(model, tp.Arguments(pair, picture=call), layer=f"encoder[{call}]", target=1)
        expected = by_autograd(model, "encoder", pair, 1, call)
        torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("call", [0, 1])
    def test_the_call_of_the_picture_is_suggested(self, call: int) -> None:
        torch.manual_seed(0)
        model, pair = Siamese().double().eval(), self.inputs()
        found = tp.explain(model, tp.Arguments(pair, picture=call), target=1)
        assert found.provenance.layer.endswith(f"[{call}]")
        expected = by_autograd(model, "encoder", pair, 1, call)
        torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-12)


class TestFrames:
    def test_what_is_said(self) -> None:
        model, x = Frames().double().eval(), torch.randn(2, 4, 3, 16, 12).double()
        said = message(model, x)
        assert "'encoder' (4N, 5, 4, 3): it folds 4 parts of each picture" in said
        assert said.endswith("layout='(N 4) C H W' or layout='(4 N) C H W'")
        with pytest.raises(NoSpatialLayer, match=r"say so with layout='\(N 4\) C H W' or layout='\(4 N\) C H W'"):
            tp.explain(model, x, layer="encoder")
        assert {row.name: row.output for row in tp.layers(model, x)}["encoder"] == "(4N, 5, 4, 3)"

    def test_a_grid_of_the_last_axes(self) -> None:
        """The frames become channels: the picture's own axes are the last two of (N, T, C, H, W)."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(1, 2), nn.Conv2d(12, 5, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model, x = model.double().eval(), torch.randn(2, 4, 3, 16, 12).double()
        found = tp.explain(model, x, target=1)
        assert (found.provenance.layer, found.provenance.layout) == ("2", "channels-first 14x10")
        torch.testing.assert_close(found.values, by_autograd(model, "2", (x,), 1), rtol=1e-9, atol=1e-12)


class TestElectrodes:
    @pytest.mark.parametrize("count", [1, 2])
    def test_one_axis_in_two(self, count: int) -> None:
        """(N, electrodes, 1, T), convolved along T: the grid is 1 x T."""
        torch.manual_seed(0)
        model, x = Electrodes().double().eval(), torch.randn(count, 4, 1, 64).double()
        found = tp.explain(model, x, target=1)
        assert (found.provenance.layer, found.provenance.layout) == ("second", "channel-tokens 1x28")
        expected = by_autograd(model, "second", (x,), 1).unsqueeze(2)
        torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-12)
        assert tp.explain(model, x, method="scorecam").values.shape == (count, 1, 1, 28)


def test_nothing_that_could_be_a_grid() -> None:
    assert "and none returns a tensor with axes that could be one" in message(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(1, 3, 2, 2)
    )

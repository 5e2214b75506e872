"""The suggested layer follows from the model, the shapes and the question, whatever was explained before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp


class Network(nn.Module):
    """Two stages. For dark pictures the second is zero everywhere. With `skip`, the head reads both."""

    def __init__(self, *, skip: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.ReLU())
        self.head, self.skip = nn.Linear(6, 4), skip
        with torch.no_grad():
            self.second[0].weight.abs_()
            self.second[0].bias.fill_(-0.1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first).mean((2, 3))
        return self.head(second + first.mean((2, 3)) if self.skip else second)


class Routed(nn.Module):
    """Only bright pictures go through the second stage."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.first(x)
        return self.head((self.second(grid) if x.mean() > 0.1 else grid).mean((2, 3)))


# Of a dark picture, maps are zero.
pytestmark = pytest.mark.filterwarnings("ignore::torchpeek.errors.Notice")

DARK = {
    "black": torch.zeros(1, 3, 8, 8),
    "black and a photograph": torch.cat([torch.zeros(1, 3, 8, 8), torch.rand(1, 3, 8, 8)]),
    "nearly black": 0.01 * torch.rand(1, 3, 8, 8),
}


@pytest.mark.parametrize("before", DARK.values(), ids=DARK.keys())
@pytest.mark.parametrize("method", ["gradcam", "eigencam", "fullgrad", "polycam", "fuse"])
@pytest.mark.parametrize("skip", [False, True], ids=["chain", "skip"])
def test_after_a_dark_picture(before: Tensor, method: str, skip: bool) -> None:
    model, x = Network(skip=skip).eval(), torch.rand(2, 3, 8, 8)
    options: dict[str, Any] = {"fuse": "mean"} if method == "fuse" else {"method": method}
    if skip and before.any() and len(before) == 1:
        pytest.skip("the first stage alone decides, for this picture")
    fresh = copy.deepcopy(model)
    tp.explain(model, before, target=0, **options)
    heatmap, expected = tp.explain(model, x, target=0), tp.explain(fresh, x, target=0)
    assert heatmap.provenance.layer == expected.provenance.layer == "second"
    assert heatmap.provenance.layer_reason == expected.provenance.layer_reason
    assert torch.equal(heatmap.values, expected.values)


def test_a_path_that_a_black_picture_alone_takes() -> None:
    model, x = Routed().eval(), torch.rand(1, 3, 8, 8)
    for _ in range(2):
        assert tp.explain(model, torch.zeros(1, 3, 8, 8)).provenance.layer == "first.1"
        assert tp.explain(model, x).provenance.layer == "second"


def test_bytes() -> None:
    class Scaled(Network):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float() / 255)

    model = Scaled().eval()
    for value in (0, 255):
        picture = torch.full((1, 3, 8, 8), value, dtype=torch.uint8)
        assert tp.explain(model, picture, target=0).provenance.layer == "second"

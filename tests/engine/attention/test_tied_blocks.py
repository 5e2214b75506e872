"""A transformer that runs one block several times, against its copy with a block for each depth."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp

X = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
DEPTH = 4


class TiedViT(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.cls = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.blocks = nn.ModuleList([block] if tied else (copy.deepcopy(block) for _ in range(DEPTH)))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).mT
        tokens = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], 1)
        for block in list(self.blocks) * (DEPTH // len(self.blocks)):
            tokens = block(tokens)
        return self.head(self.norm(tokens)[:, 0])


@pytest.fixture(scope="module")
def pair() -> tuple[TiedViT, TiedViT]:
    tied, untied = (TiedViT(tied=tied).double().eval() for tied in (True, False))
    torch.testing.assert_close(tied(X), untied(X), rtol=0, atol=0)
    return tied, untied


@pytest.mark.parametrize("method", ["rollout", "legrad", "transformer-attribution"])
def test_methods_that_read_attention(pair, method: str) -> None:
    tied, untied = (tp.explain(model, X, method=method).values for model in pair)
    assert bool(untied.any())
    torch.testing.assert_close(tied, untied, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:eigencam at")
@pytest.mark.parametrize("method", ["gradcam", "layercam", "ablationcam", "eigencam"])
@pytest.mark.parametrize("depth", [0, 2, -2])
def test_methods_of_one_layer_at_each_depth(pair, method: str, depth: int) -> None:
    tied = tp.explain(pair[0], X, method=method, layer=f"blocks.0.norm1[{depth}]").values
    untied = tp.explain(pair[1], X, method=method, layer=f"blocks.{depth % DEPTH}.norm1").values
    assert bool(untied.any())
    torch.testing.assert_close(tied, untied, rtol=0, atol=1e-12)

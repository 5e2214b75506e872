"""Layouts and candidates where layers are called several times."""

from __future__ import annotations

import torch
from torch import nn

import torchpeek as tp
from networks.several_calls import SharedAct, Siamese, Tied
from torchpeek.engine import as_model_call
from torchpeek.engine.layout_inference.dry_run import dry_run, layout_of
from torchpeek.hooks import layer_at

X = torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))


def shown(model: nn.Module, *inputs: torch.Tensor):
    return dry_run(model, as_model_call(model, tp.Arguments(inputs, picture="0")))


class TestCandidates:
    def test_calls_with_the_picture_are_candidates(self) -> None:
        dry = shown(Siamese().eval(), X, -X)
        names = [each.layer for each in dry.candidates]
        assert names[-1] == "backbone.layer4[0]"
        assert all(name.endswith("[0]") for name in names)

    def test_and_a_siamese_network_has_a_default_layer(self) -> None:
        heatmap = tp.explain(Siamese().eval(), tp.Arguments((X, -X), picture="0"))
        assert heatmap.provenance.layer in ("backbone.layer4[0]", "backbone.layer4[1]")
        assert heatmap.values.shape == (2, 1, 4, 3)
        fused = tp.explain(Siamese().eval(), tp.Arguments((X, -X), picture="0"), fuse="mean")
        assert fused.provenance.layer.count("[") == fused.provenance.layer.count(",") + 1

    def test_the_last_call_comes_last(self) -> None:
        """An activation function that is shared, and a block whose weights are tied over the depth."""
        assert shown(SharedAct().eval(), X).candidates[-1].layer == "act[2]"
        assert shown(Tied().eval(), X).candidates[-1].layer == "block[2]"

    def test_the_outermost_layer_stands_for_a_call_that_returned_the_same_tensor(self) -> None:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.relu = nn.Conv2d(3, 3, 3, 1, 1), nn.ReLU()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.relu(x + self.conv(self.relu(x)))

        stem = nn.Conv2d(3, 3, 3, 2, 1)
        model = nn.Sequential(stem, Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
        assert [each.layer for each in shown(model, X).candidates] == ["0", "1.relu[0]", "1.conv", "1"]


class TestLayouts:
    def test_each_call_has_its_own(self) -> None:
        model = SharedAct().eval()
        call = as_model_call(model, X)
        grids = [layout_of(model, call, layer_at(model, f"act[{number}]")).grid for number in (0, 1, 2, -1, -3)]
        assert grids == [(16, 12), (8, 6), (8, 6), (8, 6), (16, 12)]
        assert layout_of(model, call, layer_at(model, "act[3]")) is None

    def test_a_module_of_two_names_has_one_count(self) -> None:
        model = SharedAct().eval()
        model.again = model.act
        call = as_model_call(model, X)
        assert layout_of(model, call, layer_at(model, "again[-3]")).grid == (16, 12)
        named = [tp.explain(model, X, layer=name).values for name in ("again[1]", "act[1]", "again[-2]")]
        assert all(torch.equal(named[0], each) for each in named[1:])

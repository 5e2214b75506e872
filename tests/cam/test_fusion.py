"""Methods that combine several layers, and the fusion of heatmaps of several layers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import TwoGrids
from networks.split import X
from replicas.further_passes import polycam, refinecam
from torchpeek.cam import fused
from torchpeek.errors import InputError, MethodNotFound, OptionError


class TestSeveralLayers:
    LABELS = [[2, 0], [1, 3]]  # noqa: RUF012

    @pytest.mark.parametrize(("name", "replica"), [("polycam", polycam), ("refinecam", refinecam)])
    @pytest.mark.parametrize("layers", [None, ["fine", "coarse"], ["coarse", "fine"]], ids=str)
    def test_replica(self, grids: TwoGrids, name: str, replica: object, layers: list[str] | None) -> None:
        heatmap = tp.explain(grids, X, method=name, layer=layers, target=self.LABELS)
        assert heatmap.values.shape == (2, 2, 8, 6)
        for n in range(2):
            for k in range(2):
                expected = replica(grids, X[n : n + 1], self.LABELS[n][k], grids.layers())
                largest = np.abs(expected).max()
                np.testing.assert_allclose(heatmap.values[n, k].numpy(), expected, rtol=1e-8, atol=1e-10 * largest)
        assert {name.split(".")[0] for name in heatmap.provenance.layer.split(", ")} == {"fine", "coarse"}
        assert ("sizes of grid" in heatmap.provenance.layer_reason) == (layers is None)

    def test_refinecam_of_another_method(self, grids: TwoGrids) -> None:
        heatmap = tp.explain(grids, X, method="refinecam", layer=["fine", "coarse"], target=1, base="layercam")
        parts = [tp.explain(grids, X, method="layercam", layer=each, target=1) for each in ("fine", "coarse")]
        expected = torch.stack([each.positive().unit().resized((8, 6)).values for each in parts]).prod(0)
        torch.testing.assert_close(heatmap.values, expected)
        with pytest.raises(MethodNotFound):
            tp.explain(grids, X, method="refinecam", base="layer-cam")
        with pytest.raises(OptionError, match="a method of one layer"):
            tp.explain(grids, X, method="refinecam", base="polycam")

    def test_refinecam_is_zero_where_a_layer_is(self, grids: TwoGrids) -> None:
        heatmap = tp.explain(grids, X, method="refinecam", target=1)
        single = tp.explain(grids, X, method="gradcam++", layer="fine", target=1)
        assert ((heatmap.values == 0) | (single.values > 0)).all()

    @pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")
    @pytest.mark.parametrize("how", ["max", "mean", "product"])
    def test_fusion(self, grids: TwoGrids, how: str) -> None:
        maps = [tp.explain(grids, X, layer=each, target=self.LABELS) for each in ("fine", "coarse")]
        each = torch.stack([one.positive().unit().resized((8, 6)).values for one in maps])
        expected = {"max": each.amax(0), "mean": each.mean(0), "product": each.prod(0)}[how]
        heatmap = tp.explain(grids, X, layer=["fine", "coarse"], target=self.LABELS, fuse=how)
        torch.testing.assert_close(heatmap.values, expected)
        assert how in heatmap.provenance.steps[0]
        fine_and_coarse = re.compile("^[fc].*e$")
        by_pattern = tp.explain(grids, X, layer=fine_and_coarse, target=self.LABELS, fuse=how)
        torch.testing.assert_close(by_pattern.values, expected)
        by_suggestion = tp.explain(grids, X, target=self.LABELS, fuse=how)
        torch.testing.assert_close(by_suggestion.values, expected)

    def test_a_list_is_fused_by_its_maximum(self, grids: TwoGrids) -> None:
        heatmap = tp.explain(grids, X, layer=["fine", "coarse"], target=1)
        expected = tp.explain(grids, X, layer=["fine", "coarse"], target=1, fuse="max")
        assert torch.equal(heatmap.values, expected.values)
        kept = tp.trace(grids, X, layer=["fine", "coarse"], target=1)
        assert torch.equal(tp.explain(kept).values, expected.values)

    def test_of_one_layer_there_is_nothing_to_fuse(self, grids: TwoGrids) -> None:
        with pytest.raises(InputError, match="makes one map of several layers; got one, 'fine'"):
            tp.explain(grids, X, layer="fine", fuse="mean")
        with pytest.raises(OptionError, match="fuse is 'sum'; allowed: 'max', 'mean', 'product'"):
            tp.explain(grids, X, fuse="sum")

    def test_methods_that_combine_layers_are_not_fused_again(self, grids: TwoGrids) -> None:
        with pytest.raises(InputError, match="polycam combines layers by itself"):
            tp.explain(grids, X, method="polycam", fuse="max")
        by_pattern = tp.explain(grids, X, method="refinecam", layer=re.compile("^[fc].*e$"), target=1)
        assert by_pattern.provenance.layer == "fine, coarse"

    @pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")
    def test_of_two_layers_with_one_grid_the_later_is_the_base(self) -> None:
        class Same(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.head = (
                    nn.Conv2d(3, 4, 3, padding=1),
                    nn.Conv2d(4, 4, 3, padding=1),
                    nn.Linear(4, 3),
                )

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.b(torch.relu(self.a(x))).mean((2, 3)))

        model = Same().double().eval()
        both = tp.explain(model, X, method="polycam", layer=["a", "b"], target=1).values
        last = tp.explain(model, X, method="polycam", layer="b", target=1).values
        first = tp.explain(model, X, method="polycam", layer="a", target=1).values
        # On one grid a map over its own average is one where it is not zero: what is left is the base.
        torch.testing.assert_close(both, torch.where(first > 0, last, 0))

    def test_the_seed_of_the_base(self, grids: TwoGrids) -> None:
        one, same, other = (
            tp.explain(grids, X, method="refinecam", layer=["fine"], target=1, base="sscam", seed=s) for s in (1, 1, 2)
        )
        assert torch.equal(one.values, same.values)
        assert not torch.equal(one.values, other.values)
        assert one.provenance.options == {"base": "sscam", "seed": 1}

    def test_by_hand(self) -> None:
        one, two = torch.tensor([[[[0.0, 2.0], [4.0, -8.0]]]]), torch.tensor([[[[3.0, 6.0], [0.0, 6.0]]]])
        assert fused([one, two], "product").tolist() == [[[[0.0, 0.5], [0.0, 0.0]]]]
        assert fused([one, two], "max").tolist() == [[[[0.5, 1.0], [1.0, 1.0]]]]
        assert fused([one, two], "mean").tolist() == [[[[0.25, 0.75], [0.5, 0.5]]]]

    @pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")
    def test_compare_of_both_kinds(self, grids: TwoGrids) -> None:
        maps = tp.compare(grids, X, methods=["polycam", "gradcam", "refinecam"], target=1)
        assert list(maps) == ["polycam", "gradcam", "refinecam"]
        assert maps["gradcam"].provenance.layer == "coarse"
        assert torch.equal(maps["polycam"].values, tp.explain(grids, X, method="polycam", target=1).values)

"""cam and random: the linear head they need, and the seed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks import PooledNet, SplitNet
from networks.split import X
from torchpeek.errors import MethodNotApplicable, Notice


class TestCam:
    def test_refuses_what_is_not_pooling_and_a_linear_head(self, net: SplitNet) -> None:
        with pytest.raises(MethodNotApplicable, match="global average pooling"):
            tp.explain(net, X, method="cam", layer="prefix")
        with pytest.raises(MethodNotApplicable):
            tp.explain(PooledNet(), X.float(), method="cam", layer="features.2")  # the ReLU lies between
        with pytest.raises(MethodNotApplicable, match="class logits"):
            tp.explain(PooledNet(), X.float(), method="cam", layer="act", target=tp.targets.ClassProbability())

    def test_what_is_advised_where_it_is_not_defined(self) -> None:
        """True of both: hirescam adds up to the score; gradcam is cam over the positions where cam is, and not here."""
        torch.manual_seed(0)
        flattened = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 5)).double().eval()
        x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
        with pytest.raises(
            MethodNotApplicable, match=r"Next: take hirescam, whose map adds up .* or gradcam"
        ) as caught:
            tp.explain(flattened, x, method="cam", layer="0", target=1)
        assert "only where cam is defined" in str(caught.value)
        maps = tp.compare(flattened, x, methods=["hirescam", "gradcam"], layer="0", target=1)
        scores = flattened(x)[:, [1]] - flattened[2].bias[1]
        torch.testing.assert_close(maps["hirescam"].values.sum((2, 3)), scores)
        assert not torch.allclose(maps["gradcam"].values.sum((2, 3)), scores)
        pooled = PooledNet().double()
        maps = tp.compare(pooled, X, methods=["cam", "gradcam"], layer="act", target=1)
        positions = maps["cam"].values[0, 0].numel()
        torch.testing.assert_close(maps["gradcam"].values * positions, maps["cam"].values)

    def test_without_a_bias(self) -> None:
        model = PooledNet(bias=False).double()
        heatmap = tp.explain(model, X, method="cam", target=1)
        torch.testing.assert_close(heatmap.values.mean((2, 3)), heatmap.scores)


class TestEigencam:
    def test_a_map_without_positive_values_is_said(self) -> None:
        """Before a ReLU whose inputs are all negative, the first component agrees with the sum of the channels."""
        conv = torch.nn.Conv2d(3, 4, 3)
        torch.nn.init.constant_(conv.bias, -5.0)
        torch.nn.init.uniform_(conv.weight, 0, 0.1)
        model = torch.nn.Sequential(conv, torch.nn.GELU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        assert (conv(x) < 0).all()
        with pytest.warns(Notice, match=r"eigencam at '0': 2 of 2 maps have no positive value.*before a ReLU"):
            heatmap = tp.explain(model, x, method="eigencam", layer="0", target=[[0, 1], [2, 3]])
        assert (heatmap.values < 0).all()
        with pytest.warns(Notice, match="1 of 2 maps"):
            tp.explain(model, torch.stack([x[0], x[1] + 50]), method="eigencam", layer="0", target=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tp.explain(PooledNet(), X.float(), method="eigencam", layer="act")


class TestRandom:
    def test_is_seeded_and_leaves_the_global_generator_alone(self) -> None:
        model = PooledNet()
        state = torch.get_rng_state().tolist()
        first, same, other = (tp.explain(model, X.float(), method="random", seed=seed).values for seed in (1, 1, 2))
        assert torch.get_rng_state().tolist() == state
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
        assert 0 <= float(first.min()) < float(first.max()) < 1

    def test_the_seed_is_in_the_provenance(self) -> None:
        assert tp.explain(PooledNet(), X.float(), method="random", seed=7).provenance.options == {"seed": 7}
        assert tp.explain(PooledNet(), X.float(), seed=7).provenance.options == {}

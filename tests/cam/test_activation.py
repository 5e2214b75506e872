"""cam and random: the linear head they need, and the seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks import PooledNet, SplitNet
from networks.split import X
from torchpeek.errors import MethodNotApplicable


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

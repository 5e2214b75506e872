"""Gradient methods by hand, and identities between them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks import PooledNet, SplitNet
from networks.split import X
from torchpeek.cam import METHODS


def attention(name: str) -> bool:
    """Whether a network has to have attention for this method."""
    return METHODS[name].needs == "attention"


class TestIdentities:
    @pytest.mark.parametrize(
        "name", ["gradcam", "xgradcam", "hirescam", "gradcam-elementwise", "layercam", "eigengradcam"]
    )
    def test_linear_in_the_score(self, net: SplitNet, name: str) -> None:
        before = tp.explain(net, X, method=name, layer="prefix", target=1).values
        with torch.no_grad():
            net.head.weight.mul_(3)
            net.head.bias.mul_(3)
        torch.testing.assert_close(tp.explain(net, X, method=name, layer="prefix", target=1).values, 3 * before)

    def test_gradcam_is_cam_divided_by_the_positions(self) -> None:
        model, x = PooledNet().double().eval(), X[:, :, :5]
        cam, gradcam = (
            tp.explain(model, x, method=name, layer="act", target=[[0, 1], [2, 4]]) for name in ("cam", "gradcam")
        )
        torch.testing.assert_close(gradcam.values, cam.values / (5 * 6), rtol=1e-12, atol=1e-15)

    def test_the_mean_of_cam_is_the_score_without_its_bias(self) -> None:
        model = PooledNet().double().eval()
        heatmap = tp.explain(model, X, method="cam", layer="act", target=tp.targets.TopClasses(3))
        bias = model.head.bias[heatmap.question.labels]
        torch.testing.assert_close(heatmap.values.mean((2, 3)) + bias, heatmap.scores, rtol=1e-12, atol=0)

    def test_hirescam_adds_up_to_the_score_where_it_is_linear(self) -> None:
        """Its completeness: gradient times activation of a linear function, plus the bias, is the function."""
        model = PooledNet().double().eval()
        heatmap = tp.explain(model, X, method="hirescam", layer="act", target=2)
        torch.testing.assert_close(heatmap.values.sum((2, 3)) + model.head.bias[2], heatmap.scores, rtol=1e-12, atol=0)

    def test_where_the_head_is_linear_these_are_one(self) -> None:
        model = PooledNet().double().eval()
        maps = tp.compare(model, X, methods=["gradcam", "xgradcam", "hirescam"], layer="act", target=3)
        for heatmap in maps.values():
            torch.testing.assert_close(heatmap.values, maps["gradcam"].values)

    def test_elementwise_is_never_negative_and_at_least_hirescam(self, net: SplitNet) -> None:
        maps = tp.compare(net, X, methods=["hirescam", "gradcam-elementwise"], layer="prefix")
        assert (maps["gradcam-elementwise"].values >= maps["hirescam"].values.clamp(min=0)).all()

    # random's numbers are drawn for the batch as a whole
    @pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
    def test_a_batch_is_as_one_by_one_and_many_classes_as_each(self, name: str) -> None:
        model = PooledNet(attention=attention(name)).double().eval()
        whole = tp.explain(model, X, method=name, layer="act", target=[[0, 1], [2, 3]]).values
        for n, row in enumerate([[0, 1], [2, 3]]):
            for k, label in enumerate(row):
                alone = tp.explain(model, X[n : n + 1], method=name, layer="act", target=label).values
                torch.testing.assert_close(whole[n : n + 1, k : k + 1], alone, rtol=1e-9, atol=1e-12)


class TestByHand:
    """One channel of activations 1, 2, 3, 4 and one of zeros; gradients set by the head."""

    class Net(nn.Module):
        def __init__(self, gradient: list[list[float]]) -> None:
            super().__init__()
            self.layer = nn.Identity()
            self.register_buffer("gradient", torch.tensor(gradient))

        def forward(self, x):
            return (self.layer(x) * self.gradient).sum((1, 2, 3), keepdim=True)[:, :, 0, 0]

    A = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            # gradients 2, 0, -1, 1; their mean .5
            ("gradcam", [[0.5, 1.0], [1.5, 2.0]]),
            # 2 * 1, 0 * 2, -1 * 3, 1 * 4
            ("hirescam", [[2.0, 0.0], [-3.0, 4.0]]),
            ("gradcam-elementwise", [[2.0, 0.0], [0.0, 4.0]]),
            ("layercam", [[2.0, 0.0], [0.0, 4.0]]),
            # (2 * 1 - 1 * 3 + 1 * 4) / 10 = .3
            ("xgradcam", [[0.3, 0.6], [0.9, 1.2]]),
            # sum(A) = 10: 2 / (2 + 20) + 1 / (2 + 10) = 1/11 + 1/12
            ("gradcam++", [[(1 / 11 + 1 / 12) * a for a in row] for row in [[1, 2], [3, 4]]]),
            # one channel: the first component is the channel itself
            ("eigencam", [[1.0, 2.0], [3.0, 4.0]]),
            ("eigengradcam", [[2.0, 0.0], [-3.0, 4.0]]),
        ],
    )
    def test_one_channel(self, name: str, expected: list[list[float]]) -> None:
        model = self.Net([[2.0, 0.0], [-1.0, 1.0]])
        values = tp.explain(model, self.A, method=name, layer="layer", target=0).values
        torch.testing.assert_close(values, torch.tensor([[expected]]), rtol=1e-6, atol=1e-6)

    def test_gradcam_plus_plus_is_not_the_sum_of_cubes(self) -> None:
        """torchcam 0.5 divides a copy, and so weighs by the sum of relu(g)^3: here 8 + 1 = 9."""
        model = self.Net([[2.0, 0.0], [-1.0, 1.0]])
        values = tp.explain(model, self.A, method="gradcam++", layer="layer", target=0).values
        assert float(values[0, 0, 0, 0]) == pytest.approx(1 / 11 + 1 / 12)
        assert float(values[0, 0, 0, 0]) != pytest.approx(9)

    def test_a_channel_that_is_zero_gets_no_weight(self) -> None:
        model = self.Net([[2.0, 0.0], [-1.0, 1.0]])
        two = torch.cat([self.A, torch.zeros_like(self.A)], dim=1)
        values = tp.explain(model, two, method="xgradcam", layer="layer", target=0).values
        torch.testing.assert_close(values, torch.tensor([[[[0.3, 0.6], [0.9, 1.2]]]]))

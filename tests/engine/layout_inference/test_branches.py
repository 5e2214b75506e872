"""A sum or a concatenation that no layer returns: its branches do not carry all of the picture."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.engine.layout_inference.data_flow import DataFlow

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CARRYING = "the last layer with a grid, except for the branches of a sum or a concatenation that no layer returns"


class Written(nn.Module):
    """Two branches after a stem, brought together by operations that are no modules."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.head, self.form = nn.Linear(16 if form == "joined" else 8, 4), form

    def after_stem(self, a: Tensor) -> Tensor:
        match self.form:
            case "sum":
                a = F.softplus(a + self.one(a))
                a = F.softplus(a + self.two(a))
            case "in place":
                a = self.two(self.one(a)).add_(a)
            case "joined":
                a = torch.cat([self.one(a), self.two(a)], 1)
            case "gated":
                a = a * torch.sigmoid(self.two(self.one(a)))
            case "chain":
                a = self.two(self.one(a))
            case "pooled":  # the grid before the sum is another one
                a = F.avg_pool2d(a, 2) + self.two(F.avg_pool2d(self.one(a), 2))
        return self.head(a.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.after_stem(self.stem(x))


def made(form: str) -> Written:
    torch.manual_seed(0)
    return Written(form).double().eval()


class TestSuggestedLayer:
    @pytest.mark.parametrize("form", ["sum", "in place", "joined", "gated"])
    def test_is_the_last_that_carries_all(self, form: str) -> None:
        model, passes = made(form), []
        model.register_forward_hook(lambda *_: passes.append(1))
        heatmap = tp.explain(model, X, target=2)
        assert (heatmap.provenance.layer, heatmap.provenance.layer_reason) == ("stem", CARRYING)
        assert len(passes) == 3
        activation = model.stem(X).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model.after_stem(activation)[:, 2].sum(), activation)
        expected = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).detach()
        torch.testing.assert_close(heatmap.values, expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("form", ["chain", "pooled"])
    def test_is_the_last_where_no_layer_of_its_grid_goes_around(self, form: str) -> None:
        provenance = tp.explain(made(form), X, target=2).provenance
        assert (provenance.layer, provenance.layer_reason) == ("two", "the last layer with a grid before the head")

    def test_is_a_branch_where_no_layer_carries_all(self) -> None:
        class Pathways(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 3, 2, 1)

            def forward(self, x: Tensor) -> Tensor:
                return (self.one(x) + self.two(x)).mean((2, 3))

        provenance = tp.explain(Pathways().double(), X, target=2).provenance
        assert provenance.layer == "two"
        assert provenance.layer_reason.endswith(
            "; it is one of the branches of a sum or a concatenation that no layer returns"
        )

    def test_of_a_network_whose_blocks_are_no_modules(self) -> None:
        """ConvNeXt's blocks add at their end. A traced one has no layer for that."""
        extraction = pytest.importorskip("torchvision.models.feature_extraction")
        import torchvision

        torch.manual_seed(0)
        model = torchvision.models.convnext_tiny().double().eval()
        traced = extraction.create_feature_extractor(model, {"classifier": "logits"}).eval()
        target = tp.targets.Output(3, part="logits")
        heatmap = tp.explain(traced, X.repeat(1, 1, 2, 2), target=target)
        assert (heatmap.provenance.layer, heatmap.provenance.layer_reason) == ("features.6.1", CARRYING)
        expected = tp.explain(model, X.repeat(1, 1, 2, 2), layer="features.6.1", target=3)
        torch.testing.assert_close(heatmap.values, expected.values, rtol=1e-9, atol=1e-14)


class TestDataFlow:
    def test_by_hand(self) -> None:
        flow = DataFlow()
        picture = flow.add([])
        stem = flow.add([picture])
        branch = flow.add([stem])
        total = flow.add([stem, branch])
        last = flow.add([total])
        unread = flow.add([branch])
        nodes = [stem, branch, total, last]
        assert flow.carries_all(stem, nodes, [last])
        assert flow.carries_all(total, nodes, [last])
        assert flow.carries_all(last, nodes, [last])
        assert not flow.carries_all(branch, nodes, [last])
        assert flow.carries_all(branch, nodes, [unread])
        assert flow.carries_all(last, nodes, [last, unread])

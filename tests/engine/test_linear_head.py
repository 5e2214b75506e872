"""The linear head behind global average pooling: its weights, or None."""

from __future__ import annotations

import pytest
import torch

from networks import PooledNet, SplitNet
from networks.split import X
from torchpeek.engine.targets import Predicted, TopClasses
from tracing import traced


class TestHead:
    def test_weights_of_the_linear_head(self) -> None:
        model = PooledNet().double().eval()
        trace = traced(model, torch.randn(2, 3, 5, 4).double(), ["act"], TopClasses(3))
        assert torch.equal(trace.head, model.head.weight[trace.question.labels])

    def test_none_where_something_lies_between(self, net: SplitNet) -> None:
        assert traced(net, X, ["prefix"], Predicted()).head is None
        pooled = PooledNet().eval()  # the ReLU lies between
        assert traced(pooled, torch.randn(1, 3, 5, 5), ["features"], Predicted()).head is None

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_no_excuse(self, dtype: torch.dtype) -> None:
        """Its rounding must not hide that something lies between the layer and the head."""
        for seed in range(30):
            torch.manual_seed(seed)
            model, x = PooledNet().to(dtype).eval(), torch.randn(1, 3, 6, 6, dtype=dtype)
            assert traced(model, x, ["act"], Predicted()).head is not None
            assert traced(model, x, ["features.2"], Predicted()).head is None

    def test_none_for_a_score_that_is_not_the_logit(self) -> None:
        from torchpeek.engine.targets import ClassProbability

        trace = traced(PooledNet().eval(), torch.randn(1, 3, 5, 5), ["act"], ClassProbability())
        assert trace.head is None

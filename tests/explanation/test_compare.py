"""compare: one shared trace, options by method, and requests that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchpeek as tp
from networks import PooledNet
from networks.split import X
from torchpeek.cam import METHODS, find_method
from torchpeek.errors import GradUnavailable, InputError, MethodNotFound, NotFinite, Notice, OptionError, TargetError

CHEAP = [name for name, method in METHODS.items() if method.cheap]


class TestCompare:
    def test_one_forward_and_one_backward_for_all(self) -> None:
        model = PooledNet().double().eval()
        tp.explain(model, X)  # the layer is suggested once
        forwards, backwards = [], []
        model.register_forward_hook(lambda *_: forwards.append(1))

        class Counted(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                backwards.append(1)
                return grad

        model.head.register_forward_pre_hook(lambda module, args: Counted.apply(*args))
        together = tp.compare(model, X, methods=CHEAP, layer="act", target=1)
        assert len(forwards) == 1
        assert len(backwards) == 1
        for name, heatmap in together.items():
            assert torch.equal(heatmap.values, tp.explain(model, X, method=name, layer="act", target=1).values)

    def test_without_a_gradient_method_no_graph_is_kept(self) -> None:
        model = PooledNet().eval()
        seen = []
        model.head.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
        tp.compare(model, X.float(), methods=["cam", "eigencam", "random"])
        assert seen[-1] is False

    def test_options_by_method(self) -> None:
        maps = tp.compare(PooledNet(), X.float(), methods={"random": {"seed": 3}, "gradcam": {}})
        assert maps["random"].provenance.options == {"seed": 3}

    def test_a_trace_in_place_of_model_and_inputs(self) -> None:
        model = PooledNet().double()
        trace = tp.trace(model, X)
        model.register_forward_hook(lambda *_: pytest.fail("a forward pass"))
        maps = tp.compare(trace, methods=["gradcam", "eigencam"], target=[[0, 1], [1, 2]])
        assert maps["gradcam"].values.shape == (2, 2, 8, 6)
        assert tp.explain(trace, method="layercam", target=4).question.labels.tolist() == [[4], [4]]
        with pytest.raises(InputError, match="give it alone"):
            tp.explain(trace, X)  # type: ignore[call-overload]
        with pytest.raises(GradUnavailable):
            tp.explain(tp.trace(PooledNet(), X.float(), gradients=False), method="gradcam")

    def test_lists_of_different_sizes(self) -> None:
        model = PooledNet().double()
        inputs = [X[:1], X[1:], torch.randn(1, 3, 9, 9).double(), X[:1, :, :5]]
        maps = tp.explain(model, inputs, target=[0, 1, 2, 3])
        assert [heatmap.values.shape[2:] for heatmap in maps] == [(8, 6), (8, 6), (9, 9), (5, 6)]
        for n, (heatmap, each) in enumerate(zip(maps, inputs, strict=True)):
            torch.testing.assert_close(heatmap.values, tp.explain(model, each, target=n).values)
        with pytest.raises(TargetError, match="2 entries for 4 inputs"):
            tp.explain(model, inputs, target=[0, 1])
        with pytest.raises(InputError, match="empty list"):
            tp.explain(model, [])

    def test_a_remembered_layer_that_does_not_fit_another_size(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 4, 3, 4, 1)
                self.head = nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.b(self.a(x)).mean((2, 3)))

        model = Net()
        assert tp.explain(model, torch.randn(1, 3, 64, 64)).provenance.layer == "b"
        assert tp.explain(model, torch.randn(1, 3, 16, 16)).provenance.layer == "a"  # where b has one position

    def test_bad_requests(self) -> None:
        with pytest.raises(MethodNotFound, match="closest: 'gradcam'"):
            tp.explain(PooledNet(), X.float(), method="grad-cam")
        with pytest.raises(OptionError, match=r"method is \['gradcam'\]; allowed: the name of a method"):
            tp.explain(PooledNet(), X.float(), method=["gradcam"])  # type: ignore[arg-type]
        for methods in (None, 3):
            with pytest.raises(InputError, match=f"methods is {methods}; allowed: names, or a dict from a name to its"):
                tp.compare(PooledNet(), X.float(), methods=methods)  # type: ignore[call-overload]
        with pytest.raises(InputError, match="methods is empty"):
            tp.compare(PooledNet(), X.float(), methods=[])
        with pytest.raises(TargetError, match="batch of 2"):
            tp.explain(PooledNet(), X.float(), target=[1])  # peers: silent zero maps
        with pytest.raises(InputError, match="does not say how it becomes a tensor"):
            tp.explain(PooledNet(), "cat.jpg")

    def test_zero_everywhere_is_a_notice_and_nan_an_error(self, monkeypatch) -> None:
        model = PooledNet()
        with torch.no_grad():
            model.head.weight[2] = 0
        with pytest.warns(Notice, match="2 of 4 maps are exactly zero"):
            tp.explain(model, X.float(), target=[[1, 2], [1, 2]])
        broken = find_method("gradcam")
        monkeypatch.setitem(
            METHODS,
            "gradcam",
            type(broken)("gradcam", "gradients", "", lambda trace: trace.scores[..., None, None] * torch.nan),
        )
        with pytest.raises(NotFinite, match="gradcam at 'act'"):
            tp.explain(model, X.float())

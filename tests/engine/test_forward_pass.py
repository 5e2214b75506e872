"""One forward pass: compiled models, precision, and the errors and notices of a pass that cannot be explained."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

from networks import PooledNet
from torchpeek.engine import inspectable_module
from torchpeek.engine.targets import Classes, Predicted, TopClasses
from torchpeek.errors import AmbiguousCall, InputError, LayerNotFound, NoSpatialLayer, NotFinite, NotFired, Notice
from tracing import traced


class TestErrors:
    def test_a_layer_that_is_not_there(self) -> None:
        with pytest.raises(LayerNotFound, match="closest: 'act'"):
            traced(PooledNet(), torch.randn(1, 3, 4, 4), ["acts"], Predicted())

    def test_a_layer_that_does_not_run(self) -> None:
        class Listed(PooledNet):
            def __init__(self) -> None:
                super().__init__()
                self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 1)])
                self.attention = nn.MultiheadAttention(4, 2)

            def forward(self, x):
                self.attention(*[torch.randn(2, 1, 4)] * 3)
                return super().forward(self.blocks[0].forward(x))

        model = Listed()
        for layer, reason in [
            ("blocks", "ModuleList"),
            ("blocks.0", ".forward directly"),
            ("attention.out_proj", "parent"),
        ]:
            with pytest.raises(NotFired, match=reason):
                traced(model, torch.randn(1, 3, 4, 4), [layer], Predicted())

    def test_a_layer_that_runs_twice(self) -> None:
        class Twice(PooledNet):
            def forward(self, x):
                return self.head(self.act(self.act(self.features(x)) - 1).mean((2, 3)))

        with pytest.raises(AmbiguousCall, match="called 2 times"):
            traced(Twice(), torch.randn(1, 3, 4, 4), ["act"], Predicted())

    def test_a_layer_without_a_grid(self) -> None:
        with pytest.raises(NoSpatialLayer, match=r"'head' returned \(N, 5\) for 1 picture of 4 x 4: no grid"):
            traced(PooledNet(), torch.randn(1, 3, 4, 4), ["head"], Predicted())

    def test_a_layer_that_returns_a_tuple(self) -> None:
        class Tupled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.two, self.head = Two(), nn.Linear(3, 2)

            def forward(self, x):
                return self.head(self.two(x)[0].mean((2, 3)))

        class Two(nn.Module):
            def forward(self, x):
                return x * 2, x

        with pytest.raises(NoSpatialLayer, match=r"returned tuple of .* fits 2 layouts: .*\(of its part '0'\)"):
            traced(Tupled(), torch.randn(1, 3, 4, 4), ["two"], Predicted())

    def test_nan(self) -> None:
        """Peers: a NaN map, or a NaN hidden by nansum."""
        x = torch.randn(3, 3, 4, 4)
        x[1, 0, 0, 0] = torch.nan
        with pytest.raises(NotFinite, match="the input has them already"):
            traced(PooledNet(), x, ["act"], Predicted())
        model = PooledNet()
        with torch.no_grad():
            model.features[2].weight[:] = torch.inf
        with pytest.raises(NotFinite, match=r"'act' returned NaN or infinity in sample 0, 1; the input has none"):
            traced(model, x[[0, 2]], ["act"], Predicted())

    @pytest.mark.parametrize("bad", [None, [1.0], torch.zeros(3), torch.zeros(0, 3, 4, 4)])
    def test_inputs_that_are_none(self, bad) -> None:
        with pytest.raises(InputError):
            traced(PooledNet(), bad, ["act"], Predicted())

    def test_an_error_of_the_models_own_says_what_it_was_given(self) -> None:
        class Failing(PooledNet):
            def forward(self, x):
                raise RuntimeError("its own")

        with pytest.raises(RuntimeError, match="its own") as caught:
            traced(Failing().double(), torch.randn(1, 3, 4, 4), ["act"], Predicted())
        assert caught.value.__notes__ == [
            "Failing was given torch.float32 of shape (1, 3, 4, 4) on cpu; its parameters are torch.float64 on cpu"
        ]

    def test_an_error_of_torchpeeks_own_has_no_such_note(self) -> None:
        with pytest.raises(NotFinite) as caught:
            traced(PooledNet(), torch.full((1, 3, 4, 4), torch.nan), ["act"], Predicted())
        assert not hasattr(caught.value, "__notes__")

    def test_models_that_are_none(self) -> None:
        with pytest.raises(InputError, match="model is a function"):
            inspectable_module(F.relu)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scripted = torch.jit.trace(PooledNet().eval(), torch.randn(1, 3, 4, 4))
        with pytest.raises(InputError, match="scripted or traced"):
            inspectable_module(scripted)


class TestCompiled:
    """Hooks added after a compiled model has run are ignored by torch; here they are not."""

    @pytest.mark.parametrize("how", ["wrapped", "in place", "a part"])
    def test_after_it_was_compiled(self, how: str) -> None:
        torch._dynamo.reset()
        counters.clear()
        plain = PooledNet().eval()
        model: nn.Module = PooledNet().eval()
        model.load_state_dict(plain.state_dict())
        if how == "wrapped":
            model = torch.compile(model, backend="eager")  # type: ignore[assignment]
        elif how == "in place":
            model.compile(backend="eager")
        else:
            model.features = torch.compile(model.features, backend="eager")
        x = torch.randn(1, 3, 5, 5)
        with torch.no_grad():
            model(x)
        assert counters["stats"]["unique_graphs"] >= 1, "a graph was compiled before the hooks came"
        layer = "features.2" if how != "a part" else "features._orig_mod.2"
        got = traced(model, x, [layer], Classes([1]))
        expected = traced(plain, x, ["features.2"], Classes([1]))
        torch.testing.assert_close(got.gradients, expected.gradients)
        torch.testing.assert_close(got.activations, expected.activations)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_accumulates_in_float32_at_least(self, dtype: torch.dtype) -> None:
        model = PooledNet().to(dtype).eval()
        trace = traced(model, torch.randn(1, 3, 5, 5, dtype=dtype), ["act"], TopClasses(2))
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        assert trace.activations.dtype == trace.gradients.dtype == trace.scores.dtype == wanted

    def test_under_autocast(self) -> None:
        model = PooledNet().eval()
        x = torch.randn(1, 3, 5, 5)
        with torch.autocast("cpu", torch.bfloat16):
            trace = traced(model, x, ["act"], Classes([1]))
        exact = traced(model, x, ["act"], Classes([1]))
        torch.testing.assert_close(trace.gradients, exact.gradients, rtol=0.02, atol=1e-3)


def test_a_model_whose_samples_see_each_other_is_pointed_out() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(64, 3))
    with pytest.warns(Notice, match="'1' normalises with the statistics of the batch"):
        traced(model, torch.randn(2, 3, 6, 6), ["1"], Predicted())
    traced(model, torch.randn(1, 3, 6, 6), ["1"], Predicted())


def test_notices_point_at_the_callers_line() -> None:
    import torchpeek as tp

    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(64, 3))
    with pytest.warns(Notice) as caught:
        tp.explain(model, torch.randn(2, 3, 6, 6), layer="1")
    assert caught[0].filename == __file__

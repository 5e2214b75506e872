"""Models that turn gradients off in a part of themselves, by no_grad, inference_mode or detach."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import GradUnavailable, NotConnected, Notice

Mode = Callable[[], AbstractContextManager[Any]]
X = torch.rand(2, 3, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


class Net(nn.Module):
    """A backbone inside a block of a mode, and what follows outside. `after` is what becomes of the features."""

    def __init__(self, mode: Mode, after: Callable[[Tensor], Tensor] = Tensor.clone) -> None:
        super().__init__()
        self.mode, self.after = mode, after
        self.backbone, self.post, self.head = Backbone(), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            features = self.backbone(x)
        return self.rest(self.after(features))

    def rest(self, features: Tensor) -> Tensor:
        return self.head(self.post(features).relu().mean((2, 3)))


class HeadInside(Net):
    """The backbone is outside, and what follows is inside."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        with self.mode():
            return self.rest(features)


class AllInside(Net):
    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            return self.rest(self.backbone(x))


def made(make: type[Net], mode: Mode = torch.inference_mode, **more: Any) -> Net:
    torch.manual_seed(0)
    return make(mode, **more).double().eval()


def expected(layer: str, method: str = "gradcam") -> Tensor:
    """The map of the same network without the mode."""
    return tp.explain(made(Net, contextlib.nullcontext), X, layer=layer, method=method, target=1).values


@pytest.fixture(autouse=True)
def process_is_left_as_found() -> Iterator[None]:
    yield
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert not torch.ones(1).is_inference()


class TestInside:
    """A graph that starts at a layer inside of the block goes on to the scores, as under no_grad."""

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("layer", ["backbone.first", "backbone.last"])
    @pytest.mark.parametrize(
        "method", ["gradcam", "layercam", "eigencam", "scorecam", "ablationcam", "smoothgradcam++", "shapleycam"]
    )
    @pytest.mark.parametrize("make", [Net, AllInside])
    @pytest.mark.filterwarnings("ignore:the model turns gradients off", "ignore:eigencam at")
    def test_the_map_is_that_of_the_network_without_the_mode(
        self, make: type[Net], method: str, layer: str, mode: Mode
    ) -> None:
        got = tp.explain(made(make, mode), X, layer=layer, method=method, target=1).values
        torch.testing.assert_close(got, expected(layer, method), rtol=1e-9, atol=1e-12)
        assert not got.is_inference()

    def test_by_plain_autograd(self) -> None:
        model = made(Net, contextlib.nullcontext)
        features = model.backbone(X).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model.rest(features)[:, 1].sum(), features)
        by_hand = (gradient.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True)
        with pytest.warns(Notice, match="one more pass keeps the graph"):
            got = tp.explain(made(Net), X, layer="backbone.last", target=1).values
        torch.testing.assert_close(got, by_hand, rtol=1e-9, atol=1e-12)

    @pytest.mark.filterwarnings("ignore:the model turns gradients off")
    def test_features_that_are_used_as_they_are(self) -> None:
        """Without a copy, torch lets no gradient through what inference mode made."""
        model = made(Net, after=lambda features: features)
        got = tp.explain(model, X, layer="backbone.last", target=1).values
        torch.testing.assert_close(got, expected("backbone.last"), rtol=1e-9, atol=1e-12)

    def test_a_method_with_the_decorator(self) -> None:
        class Decorated(Net):
            @torch.inference_mode()
            def forward(self, x: Tensor) -> Tensor:
                return self.rest(self.backbone(x))

        for layer in ("backbone.first", "post"):
            got = tp.explain(made(Decorated), X, layer=layer, target=1).values
            torch.testing.assert_close(got, expected(layer), rtol=1e-9, atol=1e-12)

    def test_the_suggested_layer(self) -> None:
        for make in (Net, HeadInside, AllInside):
            heatmap = tp.explain(made(make), X, target=1)
            assert heatmap.provenance.layer == "post"
            torch.testing.assert_close(heatmap.values, expected("post"), rtol=1e-9, atol=1e-12)

    def test_the_dry_run_finds_the_same_layers(self) -> None:
        """torch counts no writes in inference mode, and an activation that works in place is not passed over."""
        with_mode, without = (
            tp.explain(made(AllInside, mode), X, method="polycam", target=1)
            for mode in (torch.inference_mode, contextlib.nullcontext)
        )
        assert with_mode.provenance.layer == without.provenance.layer
        torch.testing.assert_close(with_mode.values, without.values, rtol=1e-9, atol=1e-12)

    @pytest.mark.filterwarnings("ignore:the model turns gradients off")
    def test_inside_the_callers_own_modes(self) -> None:
        model = made(Net)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                got = tp.explain(model, X, layer="backbone.last", target=1).values
                assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
                assert not torch.is_grad_enabled()
            torch.testing.assert_close(got, expected("backbone.last"), rtol=1e-9, atol=1e-12)

    def test_a_model_that_was_made_in_the_mode(self) -> None:
        with torch.inference_mode():
            model = made(Net, contextlib.nullcontext)
        with pytest.raises(NotConnected, match=r"parameters were made under torch.inference_mode") as caught:
            tp.explain(model, X, layer="backbone.last", target=1)
        assert "copy.deepcopy(model), made outside" in str(caught.value)
        got = tp.explain(copy.deepcopy(model), X, layer="backbone.last", target=1).values
        torch.testing.assert_close(got, expected("backbone.last"))

    def test_after_an_exception_inside_of_the_block(self) -> None:
        class Failing(AllInside):
            def rest(self, features: Tensor) -> Tensor:
                raise ValueError("its own")

        with pytest.raises(ValueError, match="its own"):
            tp.explain(made(Failing), X, layer="backbone.last", target=1)


class TestBefore:
    """No gradient flows back through such a part, and the error says what may be the reason."""

    @pytest.mark.parametrize(
        "model",
        [
            made(HeadInside),
            made(HeadInside, torch.no_grad),
            made(Net, contextlib.nullcontext, after=Tensor.detach),
        ],
        ids=["inference_mode", "no_grad", "detach"],
    )
    @pytest.mark.filterwarnings("ignore:the model turns gradients off")
    def test_the_layer(self, model: Net) -> None:
        words = r"no gradient flows back to it.*detaches it, runs it under torch.no_grad\(\) or inference_mode\(\)"
        with pytest.raises(NotConnected, match=words):
            tp.explain(model, X, layer="backbone.last", target=1)
        assert tp.explain(model, X, layer="backbone.last", method="eigencam").values.shape == (2, 1, 10, 10)

    @pytest.mark.parametrize("method", ["fullgrad", "opticam"])
    @pytest.mark.parametrize(
        "model",
        [
            made(Net),
            made(Net, torch.no_grad),
            made(AllInside),
            made(HeadInside),
            made(Net, after=lambda features: features),
        ],
        ids=["a clone", "no_grad", "all", "the head", "as they are"],
    )
    def test_a_method_that_needs_the_gradient_of_the_input(self, model: Net, method: str) -> None:
        with pytest.raises(NotConnected, match=r"inference_mode\(\)"):
            tp.explain(model, X, method=method, layer="post" if method == "opticam" else None, target=1)


@pytest.mark.parametrize("make", [Net, AllInside, HeadInside])
def test_a_recording(make: type[Net]) -> None:
    model = made(make)
    with tp.record(model, ["backbone.last", "post"], inputs=True) as tape:
        model(X)
    assert tape["post"].output.shape == (2, 8, 8, 8)
    with (
        pytest.raises(GradUnavailable, match=r"under torch.no_grad\(\) or inference_mode\(\)"),
        tp.record(model, ["backbone.last", "post"], gradients=True, inputs=True),
    ):
        model(X)

"""Frames and views that a layer folds into its batch axis: a map of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.views import Frames, OneFrame, Tokens
from torchpeek.errors import InputError, MethodNotApplicable, MetricNotApplicable, NoSpatialLayer

pytestmark = pytest.mark.usefixtures("one_thread")

# These read the inputs through all layers, attention, or a head after global average pooling.
ELSEWHERE = {"cam", "fullgrad", "rollout", "legrad", "transformer-attribution"}
ELSEWHERE |= {name for name, method in tp.METHODS.items() if method.layers == "none"}  # these have no layer


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return Frames(**options).double().eval()


def frames(count: int, *sizes: int) -> Tensor:
    return torch.randn(count, *(sizes or (4, 3, 16, 12)), generator=torch.Generator().manual_seed(1)).double()


def folded(model: nn.Module, layer: str, x: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """What the layer returned, and the gradient of the class's logits, as the layer has them."""
    returned: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: returned.append(output))
    scores = model(x)[:, label].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(scores, returned[0])
    return returned[0].detach(), gradient


class TestByAutograd:
    @pytest.mark.parametrize("count", [1, 2, 3])
    @pytest.mark.parametrize("views_first", [False, True])
    def test_gradcam_and_hirescam(self, count: int, views_first: bool) -> None:
        """By plain autograd on the folded batch: the weights are those of the view."""
        model, x = network(views_first=views_first), frames(count)
        layout = "(4 N) C H W" if views_first else "(N 4) C H W"
        found = tp.compare(model, x, methods=["gradcam", "hirescam"], layer="encoder.3", layout=layout, target=1)
        returned, gradient = folded(model, "encoder.3", x, 1)
        for n in range(count):
            for view in range(4):
                row = view * count + n if views_first else n * 4 + view
                weights = gradient[row].mean((1, 2), keepdim=True)
                expected = {"gradcam": weights * returned[row], "hirescam": gradient[row] * returned[row]}
                for name, of_channels in expected.items():
                    torch.testing.assert_close(
                        found[name].values[n, 0, view], of_channels.sum(0), rtol=1e-9, atol=1e-12
                    )
        assert found["gradcam"].values.shape == (count, 1, 4, 4, 3)
        assert found["gradcam"].provenance.layout == layout.replace("H W", "4 3")

    @pytest.mark.parametrize(("layout", "sequence_first"), [("(N 4) T C", False), ("T (N 4) C", True)])
    def test_tokens(self, layout: str, sequence_first: bool) -> None:
        torch.manual_seed(0)
        model, x = Tokens(sequence_first=sequence_first).double().eval(), frames(2)
        found = tp.explain(model, x, layer="block", layout=layout, method="hirescam", target=1)
        returned, gradient = folded(model, "block", x, 1)
        expected = (returned * gradient).sum(-1)
        expected = expected.mT if sequence_first else expected
        torch.testing.assert_close(found.values.flatten(3), expected[:, 1:].view(2, 1, 4, 12), rtol=1e-9, atol=1e-12)
        again = tp.explain(model, x, layer="block", layout=found.provenance.layout, method="hirescam", target=1)
        assert torch.equal(again.values, found.values)


class TestAllMethods:
    """A view's map is that of the network as a function of that view alone, which folds nothing."""

    @pytest.mark.filterwarnings("ignore:.*maps are exactly zero", "ignore:guided backpropagation changes")
    @pytest.mark.parametrize("method", [name for name in tp.METHODS if name not in {*ELSEWHERE, "random"}])
    @pytest.mark.parametrize("channels_second", [False, True])
    def test_as_a_network_of_one_frame(self, method: str, channels_second: bool) -> None:
        model = network(channels_second=channels_second)
        if method == "guided-gradcam":
            model.encoder[1] = nn.ReLU()
        x = frames(2).transpose(1, 2).contiguous() if channels_second else frames(2)
        options = {"opticam": {"steps": 3}, "groupcam": {"groups": 3}, "sscam": {"samples": 2}}.get(method, {})
        found = tp.explain(model, x, layer="encoder.3", layout="(N 4) C H W", method=method, target=1, **options)
        for n, view in ((0, 0), (1, 2), (1, 3)):
            one = OneFrame(model, x[n : n + 1], view).double().eval()
            frame = (x.transpose(1, 2) if channels_second else x)[n : n + 1, view]
            expected = tp.explain(one, frame, layer="encoder.3", method=method, target=1, **options)
            torch.testing.assert_close(found.values[n : n + 1, :, view], expected.values, rtol=1e-7, atol=1e-10)

    @pytest.mark.parametrize("views_first", [False, True])
    def test_as_many_frames_as_channels(self, views_first: bool) -> None:
        """Three frames of three channels: which axis has the frames is found out, not guessed."""
        layout = "(3 N) C H W" if views_first else "(N 3) C H W"
        for channels_second in (False, True):
            model, x = network(views_first=views_first, channels_second=channels_second), frames(2, 3, 3, 16, 12)
            found = tp.explain(model, x, layer="encoder.3", layout=layout, method="scorecam", target=1)
            one = OneFrame(model, x[1:], 2).double().eval()
            frame = x[1:, :, 2] if channels_second else x[1:, 2]
            expected = tp.explain(one, frame, layer="encoder.3", method="scorecam", target=1)
            torch.testing.assert_close(found.values[1:, :, 2], expected.values, rtol=1e-7, atol=1e-10)

    def test_frames_without_channels(self) -> None:
        class Grey(Frames):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.unsqueeze(2))

        torch.manual_seed(0)
        model, x = Grey(channels=1).double().eval(), frames(2, 4, 16, 12)
        found = tp.explain(model, x, layer="encoder.3", layout="(N 4) C H W", method="scorecam", target=1)
        one = OneFrame(model, x[1:].unsqueeze(2), 2).double().eval()
        expected = tp.explain(one, x[1:, 2:3], layer="encoder.3", method="scorecam", target=1)
        torch.testing.assert_close(found.values[1:, :, 2], expected.values, rtol=1e-7, atol=1e-10)

    def test_fused_and_smoothed(self) -> None:
        model, x = network(), frames(2)
        options: dict[str, Any] = {"layout": "(N 4) C H W", "target": 1}
        maps = [tp.explain(model, x, layer=layer, **options).positive() for layer in ("encoder.2", "encoder.3")]
        fused = tp.explain(model, x, layer=["encoder.2", "encoder.3"], fuse="max", **options)
        torch.testing.assert_close(fused.values, torch.stack([each.unit().values for each in maps]).amax(0))
        smooth = tp.Smoothing(factors=(0.5, 1.0))
        versions = [(x * factor, flip) for flip in (False, True) for factor in (0.5, 1.0)]
        each = [tp.explain(model, y.flip(-1) if flip else y, layer="encoder.3", **options) for y, flip in versions]
        expected = [h.values.flip(-1) if flip else h.values for h, (_, flip) in zip(each, versions, strict=True)]
        found = tp.explain(model, x, layer="encoder.3", smooth=smooth, **options)
        torch.testing.assert_close(found.values, torch.stack(expected).mean(0))


class TestContexts:
    def test_frozen_and_without_gradients(self) -> None:
        model, x = network(), frames(2)
        options: dict[str, Any] = {"layer": "encoder.3", "layout": "(N 4) C H W", "target": 1}
        expected = tp.explain(model, x, **options).values
        model.requires_grad_(False).train()
        with torch.no_grad():
            assert torch.equal(tp.explain(model, x, **options).values, expected)
        with torch.inference_mode():
            assert torch.equal(tp.explain(model, x, **options).values, expected)
        assert model.training
        assert not any(module._forward_hooks for module in model.modules())

    def test_a_trace_holds_all_views(self) -> None:
        model, x = network(), frames(2)
        trace = tp.trace(model, x, layer="encoder.3", layout="(N 4) C H W", target=[[0, 1], [0, 1]])
        returned, _ = folded(model, "encoder.3", x, 1)
        assert torch.equal(trace.activations.squeeze(1), returned.unflatten(0, (2, 4)).transpose(1, 2))
        assert trace.gradients.shape == (2, 2, 5, 4, 4, 3)
        one = trace.of_view(3)
        assert torch.equal(one.activations, trace.activations[:, :, :, 3])
        assert torch.equal(one.gradients, trace.gradients[:, :, :, 3])
        assert torch.equal(one.inputs, x[:, 3])
        changed = trace.ablate(lambda a, rows, trials: a * 0, 1)
        together = one.ablate(lambda a, rows, trials: a * 0, 1)
        assert not torch.allclose(changed, together)  # all views, and one
        with pytest.raises(InputError, match="no view 4; allowed: 0 to 3"):
            trace.of_view(4)

    def test_from_a_trace(self) -> None:
        model, x = network(), frames(2)
        trace = tp.trace(model, x, layer="encoder.3", layout="(N 4) C H W", target=1)
        direct = tp.explain(model, x, layer="encoder.3", layout="(N 4) C H W", target=1)
        assert torch.equal(tp.explain(trace).values, direct.values)


class TestRefusals:
    @pytest.mark.parametrize("views_first", [False, True])
    def test_the_other_order(self, views_first: bool) -> None:
        model, x = network(views_first=views_first), frames(2)
        right, wrong = ("(4 N)", "(N 4)") if views_first else ("(N 4)", "(4 N)")
        with pytest.raises(
            InputError, match=rf"does not fit .* Next: layout='{right.replace('(', '.').replace(')', '.')}"
        ):
            tp.explain(model, x, layer="encoder.3", layout=f"{wrong} C H W")

    def test_another_number(self) -> None:
        with pytest.raises(NoSpatialLayer, match=r"\(4N, 5, 4, 3\), which is not \(N 3\) C H W: its sizes do not fit"):
            tp.explain(network(), frames(2), layer="encoder.3", layout="(N 3) C H W")

    def test_methods_that_change_an_input_that_is_not_known(self) -> None:
        """Each view is a difference of two frames, so no part of the input belongs to one view."""

        class Differences(Frames):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x - x.roll(1, 1))

        torch.manual_seed(0)
        model, x = Differences().double().eval(), frames(2)
        options: dict[str, Any] = {"layer": "encoder.3", "layout": "(N 4) C H W", "target": 1}
        assert tp.explain(model, x, **options).values.shape == (2, 1, 4, 4, 3)
        for method in ("scorecam", "smoothgradcam++", "opticam"):
            with pytest.raises(MethodNotApplicable, match=r"no part of the input .* changes view 0 .* such as gradcam"):
                tp.explain(model, x, method=method, **options)

    def test_metrics_of_frames_that_come_before_the_channels(self) -> None:
        model, x = network(), frames(2)
        heatmap = tp.explain(model, x, layer="encoder.3", layout="(N 4) C H W")
        with pytest.raises(MetricNotApplicable, match=r"map of each view, \(N 4\) C 4 3"):
            tp.evaluate(model, x, heatmap, metrics=["deletion"])
        model, x = network(channels_second=True), x.transpose(1, 2)
        heatmap = tp.explain(model, x, layer="encoder.3", layout="(N 4) C H W")
        measured = tp.evaluate(model, x, heatmap, metrics={"deletion": {"steps": 3}})
        assert measured["deletion"].values.shape == (2, 1)

"""MobileNetV2 with its real ImageNet weights, on real photographs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import torchpeek as tp
from paths import IMAGES
from tracing import traced


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("chelsea.png", {"Egyptian cat": 0.717, "tiger cat": 0.147}),
        ("coffee.png", {"espresso": 0.992}),
        ("rocket.jpg", {"drilling platform": 0.354, "space shuttle": 0.180, "obelisk": 0.146}),
    ],
)
def test_predictions(mobilenet, file: str, expected: dict[str, float]) -> None:
    trace = tp.trace(mobilenet, IMAGES / file, target=tp.targets.ClassProbability(tp.targets.TopClasses(len(expected))))
    names = [mobilenet.class_names[label] for label in trace.question.labels[0]]
    assert names == list(expected)  # in this order
    assert trace.scores[0].tolist() == pytest.approx(list(expected.values()), abs=0.02)


def test_gradcam_is_exact_cam_divided_by_the_positions(mobilenet) -> None:
    model = copy.deepcopy(mobilenet.module).double()
    x = torch.cat([mobilenet.read(IMAGES / file).tensor for file in ("chelsea.png", "rocket.jpg")]).double()
    maps = tp.compare(model, x, methods=["cam", "gradcam"], layer="features.18", target=[[281, 282], [540, 812]])
    torch.testing.assert_close(maps["gradcam"].values, maps["cam"].values / 49, rtol=1e-12, atol=1e-12)
    bias = model.classifier[1].bias[maps["cam"].question.labels]
    torch.testing.assert_close(maps["cam"].values.mean((2, 3)) + bias, maps["cam"].scores, rtol=1e-12, atol=1e-12)


def test_the_rocket_the_model_takes_the_tower_for_a_platform(mobilenet) -> None:
    """Left of the middle for the platform, at the rocket for the shuttle."""
    heatmap = tp.explain(mobilenet, IMAGES / "rocket.jpg", target=[["drilling platform", "space shuttle"]])
    columns = heatmap.positive().values[0].sum(1)  # (K, w)
    centres = (columns * torch.arange(7)).sum(1) / columns.sum(1)
    assert centres[0] < centres[1]
    assert heatmap.provenance.layer == "features.18"


def test_a_gradient_agrees_with_finite_differences(mobilenet) -> None:
    model = copy.deepcopy(mobilenet.module).double()
    x = mobilenet.read(IMAGES / "chelsea.png").tensor.double()
    trace = tp.trace(model, x, layer="features.14", target=281)
    step = 1e-8  # small, so that few of the ReLU6 turn over
    directions = torch.randn(2, *trace.activations.shape[2:], dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)

    def nudge(a, rows, trials):
        return a + step * sign[trials % 2].view(-1, 1, 1, 1) * directions[trials // 2]

    scores = trace.ablate(nudge, 4)[0, :, 0]
    slopes = (scores[0::2] - scores[1::2]) / (2 * step)
    expected = (trace.gradients[0, 0] * directions).flatten(1).sum(1)
    torch.testing.assert_close(slopes, expected, rtol=1e-4, atol=1e-6)


def test_captum_agrees(mobilenet) -> None:
    from captum.attr import LayerGradCam

    x = mobilenet.read(IMAGES / "coffee.png").tensor
    theirs = LayerGradCam(mobilenet.module, mobilenet.module.features[18]).attribute(
        x, target=967, relu_attributions=False
    )
    ours = tp.explain(mobilenet, x, target="espresso").values
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-6)


def test_how_often_a_masked_picture_is_predicted_as_something_else(mobilenet) -> None:
    """Why a question is bound to the clean pass: under masks the prediction is another class about half of the time."""
    trace = tp.trace(mobilenet, IMAGES / "chelsea.png", gradients=False)
    channels = trace.activations[0, 0, :32]
    span = channels.amax((1, 2), keepdim=True)
    masks = F.interpolate((channels / span.clamp(min=1e-12))[:, None], size=(224, 224), mode="bilinear")
    asked = trace.rescore(lambda x, rows, trials: x * masks[trials], 32)
    predicted = traced(
        trace.forward_pass.model, trace.inputs * masks, ["features.18"], tp.targets.Predicted(), gradients=False
    )
    moved = (predicted.question.labels != trace.question.labels).float().mean()
    assert moved > 0.25
    assert (predicted.scores.flatten() >= asked.flatten() - 1e-4).all()

"""Heatmaps of boxes of several scales: the maps of all scales' layers, each by plain autograd, fused by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import dense_detectors as dense
from networks.dense_detectors import SIZE, X, dense_detector
from networks.scales import Branches, PathAggregation, coupled, detector
from torchpeek.errors import InputError, NoSpatialLayer, TargetError

pytestmark = pytest.mark.usefixtures("one_thread")

Box = tp.targets.Box
NECK = ["neck.0", "neck.1", "neck.2"]
MIXING = ["neck.top_down.1", "neck.bottom_up.0", "neck.bottom_up.1"]
FIRST_CELL = (0, 96, 120, 126)  # of each scale
PICTURES = torch.rand(2, 3, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
STEP = "each layer's map positive, unit, on the same grid, and their {}"


def outputs_of(net: nn.Module, layers: list[str], x: Tensor) -> tuple[Any, list[Tensor]]:
    """What the network and these layers return, with the graph."""
    found: dict[str, Tensor] = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda m, args, out, name=name: found.update({name: out}))
        for name in layers
    ]
    output = net(x)
    for hook in hooks:
        hook.remove()
    return output, [found[name] for name in layers]


def gradcam_by_hand(score: Tensor, outputs: list[Tensor], n: int) -> list[np.ndarray]:
    """Of sample n, at each layer: the sum over the channels of mean gradient times activation."""
    gradients = torch.autograd.grad(score, outputs, retain_graph=True)
    return [
        sum(g[n, c].mean() * a[n, c] for c in range(a.shape[1])).detach().numpy()
        for a, g in zip(outputs, gradients, strict=True)
    ]


def enlarged(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, between the centres of the cells, one position at a time."""
    height, width = heat.shape
    result = np.empty(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = heat[top, left] * (1 - x + left) + heat[top, right] * (x - left)
            lower = heat[bottom, left] * (1 - x + left) + heat[bottom, right] * (x - left)
            result[i, j] = upper * (1 - y + top) + lower * (y - top)
    return result


def fused_by_hand(maps: list[np.ndarray], fuse: str) -> np.ndarray:
    size = max((each.shape for each in maps), key=lambda shape: shape[0] * shape[1])
    unit = []
    for each in maps:
        positive = np.maximum(each, 0)
        unit.append(enlarged(positive / positive.max() if positive.max() > 0 else positive, size))
    return {"max": np.max, "mean": np.mean, "product": np.prod}[fuse](unit, axis=0)


@pytest.mark.parametrize("scale", [0, 1, 2])
@pytest.mark.parametrize("name", ["yolov8", "yolov5", "yolo_nas"])
@pytest.mark.parametrize("what", ["score", "left"])
def test_a_box_of_each_scale(name: str, scale: int, what: Any) -> None:
    """No other scale's layer matters, so the heatmap is the map at the layer of the box's own scale."""
    net, options = dense_detector(getattr(dense, name)), {"format": "xyxy"} if name == "yolo_nas" else {}
    _, outputs = outputs_of(net, NECK, X[:1])
    raw = net.head[scale](torch.tanh(outputs[scale]))  # only this scale's own head
    boxes, objectness, logits = net.decoded([raw if n == scale else each for n, each in enumerate(net.raw(X[:1]))])
    scores = logits[0].sigmoid() * (objectness[0].sigmoid() if name == "yolov5" else 1)
    corners = torch.cat([boxes[0, :, :2] - boxes[0, :, 2:] / 2, boxes[0, :, :2] + boxes[0, :, 2:] / 2], dim=1)
    for best in range(FIRST_CELL[scale], FIRST_CELL[scale + 1]):  # the first that has evidence for it
        label = int(scores[best].argmax())
        value = scores[best, label] if what == "score" else corners[best, 0]
        [of_scale] = gradcam_by_hand(value, [outputs[scale]], 0)
        if (of_scale > 0).any():
            break
    target = Box(at=corners[best].detach(), least_iou=0.99, what=what, **options)
    heatmap = tp.explain(net, X[:1], target=target)
    assert heatmap.question.numbers.tolist() == [[best]]
    expected = fused_by_hand([of_scale, np.zeros((8, 12))], "max")
    assert expected.any()
    torch.testing.assert_close(heatmap.values[0, 0], torch.from_numpy(expected))
    others = tp.trace(net, X[:1], layer=[NECK[n] for n in range(3) if n != scale], target=target)
    assert not any(each.any() for each in others.gradients_at.values())
    assert heatmap.provenance.layer == "neck.0, neck.1, neck.2"
    assert heatmap.provenance.layer_reason == "the last layers of each of the 3 scales that the boxes are read from"
    assert tuple(heatmap.provenance.steps) == (STEP.format("max"),)
    assert heatmap.provenance.layout == "channels-first 8x12, channels-first 4x6, channels-first 2x3"


@pytest.mark.parametrize("head", [Branches, coupled])
@pytest.mark.parametrize("fuse", [None, "max", "mean", "product"])
@pytest.mark.filterwarnings("ignore:gradcam at .* zero everywhere")
def test_a_neck_that_mixes_scales(head: Any, fuse: str | None) -> None:
    """A finer map is part of a coarser one, so a coarse box has maps at several layers. Three pictures, two boxes."""
    net, x = detector(PathAggregation, head), torch.cat([PICTURES, PICTURES.mean(0, keepdim=True)])
    heatmap = tp.explain(net, x, target=Box([0, 1]), **({} if fuse is None else {"fuse": fuse}))
    question = heatmap.question
    for n in range(3):
        for k in range(2):
            number, label = int(question.numbers[n, k]), int(question.labels[n, k])
            output, outputs = outputs_of(net, MIXING, x)
            maps = gradcam_by_hand(output[n, 4 + label, number], outputs, n)
            torch.testing.assert_close(
                heatmap.values[n, k], torch.from_numpy(fused_by_hand(maps, fuse or "max")), rtol=1e-6, atol=1e-9
            )
    assert heatmap.provenance.layer == ", ".join(MIXING)
    assert tuple(heatmap.provenance.steps) == (STEP.format(fuse or "max"),)


def test_a_coarse_box_depends_on_finer_layers_of_a_neck_that_mixes() -> None:
    net = detector(PathAggregation, Branches)
    boxes = net(PICTURES[:1])[0, :4].T.detach()
    for scale, number in enumerate((100, 16 * 16 + 20, 16 * 16 + 8 * 8 + 5)):
        centre, half = boxes[number, :2], boxes[number, 2:] / 2
        target = Box(at=torch.cat([centre - half, centre + half]), least_iou=0.99)
        trace = tp.trace(net, PICTURES[:1], target=target)
        assert trace.question.numbers.tolist() == [[number]]
        assert [bool(trace.gradients_at[name].any()) for name in MIXING] == [True, scale >= 1, scale >= 2]


@pytest.mark.filterwarnings("ignore:gradcam at 'neck.0'. .* zero everywhere")
@pytest.mark.filterwarnings("ignore:gradcam at 'neck.1'. .* zero everywhere")
@pytest.mark.filterwarnings("ignore:gradcam at 'neck.2'. .* zero everywhere")
def test_a_map_without_positive_values() -> None:
    """Fusing leaves nothing of it, and the notice says so."""
    net = dense_detector(dense.yolov8)
    signed = [tp.explain(net, X[:1], layer=name, target=Box(list(range(30)), what="left")) for name in NECK]
    negative = [k for k in range(30) if not any((each.values[0, k] > 0).any() for each in signed)]
    with pytest.warns(UserWarning, match="1 of 1 maps .* fusing sets negative values to zero"):
        assert not tp.explain(net, X[:1], target=Box(negative[0], what="left")).values.any()


def test_layers_that_the_user_names() -> None:
    net = dense_detector(dense.yolov8)
    suggested = tp.explain(net, X, target=Box())
    named = tp.explain(net, X, layer=NECK, target=Box())
    torch.testing.assert_close(named.values, suggested.values, rtol=0, atol=0)
    assert named.provenance.layer_reason == "asked for"
    one = tp.explain(net, X, layer="stem", target=Box())
    assert (one.provenance.layer, tuple(one.provenance.steps)) == ("stem", ())
    with pytest.raises(InputError, match="got one, 'stem'"):
        tp.explain(net, X, layer="stem", fuse="max", target=Box())


def test_several_methods() -> None:
    """Methods that combine layers take those before the heads, on which all boxes depend."""
    net = detector(PathAggregation, Branches)
    methods = ["gradcam", "scorecam", "ablationcam", "eigencam", "refinecam", "saliency", "fullgrad"]
    with pytest.warns(UserWarning, match="fullgrad"):
        maps = tp.compare(net, PICTURES, methods=methods, target=Box([0, 1]))
    for name in methods[:4]:
        assert maps[name].provenance.layer == ", ".join(MIXING)
        alone = tp.explain(net, PICTURES, method=name, target=Box([0, 1]))
        torch.testing.assert_close(maps[name].values, alone.values, rtol=1e-6, atol=1e-8)
        assert ((maps[name].values >= 0) & (maps[name].values <= 1)).all()
        assert maps[name].values.flatten(2).any(2).all()
    combined = maps["refinecam"].provenance.layer.split(", ")
    assert len(combined) == 3
    assert not any(name.startswith("head") for name in combined)
    assert maps["saliency"].provenance.layer == "the input"


def test_from_a_trace_and_in_training() -> None:
    net = detector(PathAggregation, Branches)
    expected = tp.explain(net, PICTURES, target=Box([0, 1]))
    trace = tp.trace(net, PICTURES, target=Box([0, 1]))
    assert list(trace.at) == MIXING
    torch.testing.assert_close(tp.explain(trace).values, expected.values)
    differentiable = tp.explain(tp.trace(net, PICTURES, target=Box([0, 1]), create_graph=True))
    torch.testing.assert_close(differentiable.values.detach(), expected.values)
    differentiable.values.sum().backward()
    assert net.neck.top_down[1][0].weight.grad.any()


def test_the_layers_do_not_depend_on_what_was_asked_before() -> None:
    net = dense_detector(dense.yolov8)
    before = tp.explain(net, X, target=Box())
    tp.explain(net, X[..., :64, :64], target=Box())
    tp.explain(net, X, layer="stem", target=Box())
    tp.compare(net, X, methods=["gradcam", "polycam"], target=Box(1))
    again = tp.explain(net, X, target=Box())
    assert again.provenance.layer == before.provenance.layer
    assert torch.equal(again.values, before.values)


def test_metrics() -> None:
    """Those that explain changed inputs fuse the same layers' maps again."""
    net = dense_detector(dense.yolov8)
    heatmap = tp.explain(net, X, target=Box([0, 1]))
    measured = tp.evaluate(net, X, heatmap, metrics=["average-drop", "average-sensitivity", "randomisation"], seed=1)
    calls = []

    def explain(module: nn.Module, inputs: Tensor, question: Any) -> Tensor:
        calls.append(len(inputs))
        fused = tp.explain(module, inputs, layer=NECK, target=_Bound(question))
        return fused.values

    by_hand = tp.evaluate(
        net, X, heatmap, metrics=["average-drop", "average-sensitivity", "randomisation"], seed=1, explain=explain
    )
    assert calls
    for name, each in measured.items():
        torch.testing.assert_close(each.values, by_hand[name].values)


class _Bound:
    """A question as a target."""

    def __init__(self, question: Any) -> None:
        self.question = question

    def bind(self, output: Any) -> Any:
        return self.question


def test_smoothed_and_saved(tmp_path: Any) -> None:
    net = dense_detector(dense.yolov8)
    smooth = tp.explain(net, X, target=Box(), smooth=tp.Smoothing(flip=False))
    assert smooth.provenance.steps[0] == STEP.format("max")
    tp.save(smooth, tmp_path / "map.safetensors")
    assert tp.load(tmp_path / "map.safetensors").provenance.layer == smooth.provenance.layer


def test_a_list_of_pictures_of_several_sizes() -> None:
    net = dense_detector(dense.yolov8)
    one, two = tp.explain(net, [X[:1], X[1:, :, :, :64]], target=Box())
    torch.testing.assert_close(one.values, tp.explain(net, X[:1], target=Box()).values)
    assert one.values.shape == (1, 1, SIZE[0] // 8, SIZE[1] // 8)
    assert two.values.shape == (1, 1, 8, 8)


def test_no_box() -> None:
    """After non-maximum suppression nothing may be left; a class may be in no box."""
    nothing = dense_detector(lambda net, maps: [rows[:0] for rows in dense.rows_of_each_picture(net, maps)])
    with pytest.raises(TargetError, match="picture 0 has no detections"):
        tp.explain(nothing, X, target=Box())
    with pytest.raises(TargetError, match="no detection of class 7"):
        tp.explain(dense_detector(dense.yolov8), X, target=Box(label=7))
    tokens = nn.Sequential(nn.Flatten(), nn.LazyLinear(7 * 126), nn.Sigmoid(), nn.Unflatten(1, (7, 126))).double()
    tokens(X)
    with pytest.raises(NoSpatialLayer):
        tp.explain(tokens, X, target=Box())

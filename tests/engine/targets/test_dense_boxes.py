"""Boxes of dense detectors, in every form of their output: by construction, plain autograd and loops over the boxes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import torchpeek as tp
from networks import dense_detectors as dense
from networks.dense_detectors import CLASSES, SIZE, DenseDetector, X, dense_detector
from replicas.boxes import iou
from torchpeek.errors import TargetError

Box = tp.targets.Box
ROWS = torch.arange(2)

FORMS = {
    "yolov8": (dense.yolov8, {}),
    "yolov8 with raw maps": (dense.yolov8_with_raw, {}),
    "yolov8 segmentation": (dense.yolov8_segmentation, {"classes": CLASSES}),
    "yolov8 transposed": (lambda net, maps: dense.yolov8(net, maps).mT, {"classes": CLASSES}),
    "yolov8 in a dict": (lambda net, maps: {"predictions": dense.yolov8(net, maps)}, {}),
    "yolov5": (dense.yolov5, {}),
    "yolox": (dense.yolox, {"classes": CLASSES}),
    "logits": (
        lambda net, maps: torch.cat([net.decoded(maps)[0], net.decoded(maps)[2]], dim=2).mT,
        {"scores": "sigmoid"},
    ),
    "yolo-nas": (dense.yolo_nas, {"format": "xyxy"}),
    "rt-detr": (dense.rt_detr, {"classes": CLASSES}),
    "end to end": (dense.end_to_end, {}),
    "rows of each picture": (dense.rows_of_each_picture, {}),
}
WITH_OBJECTNESS = ("yolov5", "yolox")
BY_OVERLAP = ("end to end", "rows of each picture")


def by_hand(net: DenseDetector, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Corners (N, boxes, 4) in pixels and scores (N, boxes, classes), from the network's own decoding."""
    boxes, objectness, classes = net.decoded(net.raw(x))
    scores = classes.sigmoid() * (objectness.sigmoid() if name in WITH_OBJECTNESS else 1)
    corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=2)
    if name == "rt-detr":
        corners, scores = corners[:, :50] / corners.new_tensor(SIZE).flip(0).repeat(2), scores[:, :50]
    return corners, scores


def distinct(corners: Tensor, scores: Tensor, count: int, least: float = 0.5) -> list[tuple[int, int]]:
    """The best boxes of one picture, box and class, one at a time; of those that overlap, one of each class."""
    best = [(float(row.max()), number, int(row.argmax())) for number, row in enumerate(scores.detach())]
    found: list[tuple[int, int]] = []
    corners = corners.detach()
    for _, number, label in sorted(best, key=lambda each: -each[0]):
        if all(label != c or iou(corners[number].tolist(), corners[n].tolist()) < least for n, c in found):
            found.append((number, label))
    return found[:count]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("batch", [1, 2])
def test_boxes_classes_and_scores(name: str, batch: int) -> None:
    form, options = FORMS[name]
    net, x = dense_detector(form), X[:batch]
    corners, scores = by_hand(net, x, name)
    trace = tp.trace(net, x, layer="neck.0", target=Box([0, 1, 2], **options), gradients=False)
    question = trace.question
    for n in range(batch):
        if name in BY_OVERLAP:  # rows are ranked as they are: nothing was suppressed in these stand-ins
            best, labels = scores[n].max(1)
            expected = [(number, int(labels[number])) for number in best.topk(3).indices.tolist()]
        else:
            expected = distinct(corners[n], scores[n], 3)
        numbers, classes = [list(each) for each in zip(*expected, strict=True)]
        assert question.labels[n].tolist() == classes
        torch.testing.assert_close(question.boxes[n], corners[n, numbers].detach())
        torch.testing.assert_close(trace.scores[n], scores[n, numbers, classes].detach())
    words = "score of a detected box" + ", objectness times class probability" * (name in WITH_OBJECTNESS)
    assert question.kind == words
    assert question.several_scales
    assert (question.numbers is not None) == (name not in BY_OVERLAP)
    assert question.relative == (name == "rt-detr")
    grids = ((8, 12), (4, 6), (2, 3))
    assert tuple(question.grids) == (grids if name not in BY_OVERLAP and name != "rt-detr" else ())


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("what", ["score", "left", "bottom"])
def test_gradcam_is_autograd(name: str, what: Any) -> None:
    """At the neck's layer of the box's own scale; the other scales are not connected to it."""
    form, options = FORMS[name]
    net = dense_detector(form)
    corners, scores = by_hand(net, X[:1], name)
    [(number, label)] = distinct(corners[0], scores[0], 1)
    scale = 0 if number < 96 else 1 if number < 120 else 2
    outputs: dict[str, Tensor] = {}
    hook = net.neck[scale].register_forward_hook(lambda module, args, output: outputs.update(neck=output))
    corners, scores = by_hand(net, X[:1], name)
    hook.remove()
    value = scores[0, number, label] if what == "score" else corners[0, number, {"left": 0, "bottom": 3}[what]]
    grid = outputs["neck"]
    (gradient,) = torch.autograd.grad(value, grid)
    expected = (gradient.mean((2, 3), keepdim=True) * grid).sum(1, keepdim=True)
    heatmap = tp.explain(net, X[:1], layer=f"neck.{scale}", target=Box(0, what=what, **options))
    torch.testing.assert_close(heatmap.values, expected.detach())
    torch.testing.assert_close(heatmap.scores[0, 0], value.detach())


@pytest.mark.parametrize("name", ["yolov8", "yolov5", "yolo-nas", "rt-detr"])
@pytest.mark.parametrize("what", ["score", "right"])
def test_a_box_is_found_again_by_its_cell(name: str, what: Any) -> None:
    """Of other pictures, several of each sample: the same box and class, wherever that box has moved."""
    form, options = FORMS[name]
    net, rows = dense_detector(form), torch.tensor([1, 0, 1])
    question = Box([0, 1], what=what, **options).for_pictures(X.shape).bind(net(X))
    corners, scores = by_hand(net, X, name)
    asked = [distinct(corners[n], scores[n], 2) for n in range(2)]
    changed = torch.rand(3, *X.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    corners, scores = (each.detach() for each in by_hand(net, changed, name))
    expected = [
        [float(scores[i, number, label] if what == "score" else corners[i, number, 2]) for number, label in asked[row]]
        for i, row in enumerate(rows.tolist())
    ]
    torch.testing.assert_close(question(net(changed), rows), torch.tensor(expected, dtype=torch.float64))
    given = changed.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: question(net(x), rows), given, fast_mode=True)
    selected = question.select(slice(1, 2), slice(1, 2))
    torch.testing.assert_close(
        selected(net(changed[:1]), ROWS[:1]), question(net(changed[:1]), torch.tensor([1]))[:, 1:]
    )


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.filterwarnings("ignore:whole passes for each change")  # of a list whose lengths follow from the batch
def test_further_passes(name: str) -> None:
    form, options = FORMS[name]
    net = dense_detector(form)
    for method in ("ablationcam", "scorecam"):
        heatmap = tp.explain(net, X[:1], layer="stem", target=Box([0, 1], **options), method=method)
        assert heatmap.values.shape == (1, 2, 16, 24)
        assert heatmap.values.any()


@pytest.mark.parametrize("bins", [1, 4])
def test_raw_maps_of_several_scales(bins: int) -> None:
    """Decoded one cell at a time: the mean bin under a softmax, from the cell's centre, in strides."""
    net = dense_detector(dense.raw_scales, bins)
    target = Box([0, 3], classes=CLASSES)
    trace = tp.trace(net, X, layer="stem", target=target, gradients=False)
    maps = [each.detach() for each in net(X)]
    for n in range(2):
        corners, scores = [], []
        for stride, scale in zip(dense.STRIDES, maps, strict=True):
            for i in range(scale.shape[2]):
                for j in range(scale.shape[3]):
                    cell = scale[n, :, i, j]
                    sides = [
                        float((cell[side * bins : (side + 1) * bins].softmax(0) * torch.arange(bins)).sum())
                        if bins > 1
                        else float(cell[side])
                        for side in range(4)
                    ]
                    x, y = (j + 0.5) * stride, (i + 0.5) * stride
                    left, top, right, bottom = (side * stride for side in sides)
                    corners.append([x - left, y - top, x + right, y + bottom])
                    scores.append(cell[4 * bins :].sigmoid().tolist())
        all_corners, all_scores = torch.tensor(corners).double(), torch.tensor(scores).double()
        numbers = trace.question.numbers[n]
        torch.testing.assert_close(trace.question.boxes[n], all_corners[numbers])
        torch.testing.assert_close(trace.scores[n], all_scores[numbers, trace.question.labels[n]])
        assert float(trace.scores[n, 0]) == pytest.approx(float(all_scores[numbers[0]].max()))
    assert tuple(trace.question.grids) == ((8, 12), (4, 6), (2, 3))


def test_label_and_at() -> None:
    net = dense_detector(dense.yolov8)
    corners, scores = (each.detach() for each in by_hand(net, X[:1], "yolov8"))
    mine = (scores[0].argmax(1) == 1).nonzero().flatten()
    best = mine[scores[0, mine, 1].argmax()]
    question = tp.trace(net, X[:1], layer="stem", target=Box(label=1), gradients=False).question
    assert question.numbers.tolist() == [[int(best)]]
    at = corners[0, 40].tolist()
    near = tp.trace(net, X[:1], layer="stem", target=Box(at=at, least_iou=0.9), gradients=False).question
    weights = [iou(each.tolist(), at) * float(row.max()) for each, row in zip(corners[0], scores[0], strict=True)]
    allowed = [n for n, each in enumerate(corners[0]) if iou(each.tolist(), at) >= 0.9]
    assert near.numbers.tolist() == [[max(allowed, key=weights.__getitem__)]]


def test_class_names_tell_the_columns() -> None:
    net = dense_detector(lambda net, maps: dense.yolov8(net, maps).mT)
    loaded = tp.LoadedModel(net, tp.Preprocess(None, None), ["ant", "bee", "cat"])
    named = tp.explain(loaded, X, layer="stem", target=Box(label="cat"))
    given = tp.explain(net, X, layer="stem", target=Box(label=2, classes=3))
    assert torch.equal(named.values, given.values)


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        (
            lambda net, maps: dense.yolov8(net, maps)[..., :50],
            {},
            r"may be \(N, 4 \+ 3 classes, boxes\), or .*classes=",
        ),
        (lambda net, maps: dense.yolov8(net, maps).mT[:, :50], {}, r"\(N, boxes, 5 \+ 2 classes\).*classes="),
        (lambda net, maps: dense.yolov8(net, maps), {"classes": 7}, "with 7 classes"),
        (lambda net, maps: dense.yolox(net, maps) / 100, {}, r"\(N, boxes, 4 \+ 4 classes\)"),  # in fractions
        (dense.yolo_nas, {}, r"Box\(format='xyxy'\)"),
        (lambda net, maps: -5 * dense.yolov8(net, maps), {}, "are no probabilities"),
        (
            lambda net, maps: torch.cat([-net.decoded(maps)[0], net.decoded(maps)[2].sigmoid()], dim=2).mT,
            {},
            "not decoded yet",
        ),
        (
            lambda net, maps: (dense.yolov8(net, maps), dense.yolox(net, maps)),
            {},
            r"Box\(part=...\): '0' \(1, 7, 126\)",
        ),
        (lambda net, maps: dense.yolov5(net, maps)[1], {}, "relative to anchors"),
        (dense.raw_scales, {}, r"Give the number of classes, Box\(classes=...\)"),
        (dense.raw_scales, {"classes": 2}, "not four times a number of bins"),
        (dense.yolov8, {"part": "1"}, "nothing at path '1'"),
        (dense.yolov8, {"label": 9}, "has no detection of class 9"),
        (lambda net, maps: maps[0].mean((2, 3)), {}, "Box reads what a detector returns"),
    ],
)
def test_bad_requests(form: Any, options: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        tp.explain(dense_detector(form), X[:1], layer="stem", target=Box(**options))


def test_part_chooses_the_boxes() -> None:
    net = dense_detector(lambda net, maps: {"one": dense.yolov8(net, maps), "many": dense.yolox(net, maps)})
    heatmap = tp.explain(net, X, layer="stem", target=Box(part="one"))
    assert heatmap.provenance.score == "score of a detected box, from 'one'"
    expected = tp.explain(dense_detector(dense.yolov8), X, layer="stem", target=Box())
    torch.testing.assert_close(heatmap.values, expected.values)


@pytest.mark.parametrize("make", [lambda: Box(format="xy"), lambda: Box(classes=0), lambda: Box(classes="cat")])
def test_bad_arguments(make: Any) -> None:
    with pytest.raises(TargetError, match="Box"):
        make()


@pytest.mark.parametrize("name", ["yolov8", "yolov5", "end to end"])
def test_the_totals_of_all_boxes(name: str) -> None:
    """Sums with weights cos(0), cos(1), ...: of coordinates, and of the scores of every second class."""
    form, options = FORMS[name]
    net = dense_detector(form)
    with torch.no_grad():
        output = net(X)
    question = Box(**options).for_pictures(X.shape).bind(output)
    if name == "end to end":
        boxes, scores = [each[:-1, :4] for each in output], [each[:-1, 4:5] for each in output]  # without the padding
    else:
        corners, all_scores = by_hand(net, X, name)
        boxes, scores = list(corners.detach()), list(all_scores.detach())

    def total(tensors: list[Tensor]) -> float:
        return sum(math.cos(i) * each for t in tensors for i, each in enumerate(t.flatten().tolist()))

    expected = [total(boxes), *(total([each[:, half::2] for each in scores]) for half in (0, 1))]
    assert [float(each) for each in question.box_totals(output)] == pytest.approx(expected, rel=1e-4)


def test_queries_say_what_was_assumed() -> None:
    """Of DETR's own dict nothing tells a softmax from RT-DETR's sigmoid."""

    def queries(net: DenseDetector, maps: list[Tensor]) -> Any:
        boxes, _, classes = net.decoded(maps)
        return {"pred_logits": classes, "pred_boxes": boxes / boxes.new_tensor([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])}

    net = dense_detector(queries)
    heatmap = tp.explain(net, X, layer="stem", target=Box())
    assert heatmap.provenance.score.endswith("by a softmax with 'no object' as its last class")
    sigmoid = tp.explain(net, X, layer="stem", target=Box(scores="sigmoid"))
    assert sigmoid.provenance.score == "score of a detected box"
    torch.testing.assert_close(sigmoid.scores[:, 0], net(X)["pred_logits"].sigmoid().amax((1, 2)).detach())


def test_with_a_frozen_model_in_train_mode_and_without_gradients() -> None:
    net = DenseDetector(dense.yolov8).double().train().requires_grad_(False)
    expected = tp.explain(dense_detector(dense.yolov8), X, layer="stem", target=Box())
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            heatmap = tp.explain(net, torch.cat([X, X[:1]]), layer="stem", target=Box())
        torch.testing.assert_close(heatmap.values[:2], expected.values)
        assert net.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in net.parameters())
    one, two = tp.explain(net, [X[:1], X[1:, :, :, :64]], layer="stem", target=Box())
    torch.testing.assert_close(one.values, expected.values[:1])
    assert two.question.grids == ((8, 8), (4, 4), (2, 2))
    measured = tp.evaluate(net, X, expected, metrics=["average-drop"])
    assert measured["average-drop"].values.isfinite().all()

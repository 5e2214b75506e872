"""One detected box as the target: against a slow replica, finite differences, and what the libraries themselves say."""

from __future__ import annotations

import importlib
import math
from collections import UserDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.engine.targets.boxes import overlaps
from torchpeek.errors import ClassNotFound, NotFinite, TargetError

Box = tp.targets.Box
WHAT = ["score", "left", "top", "right", "bottom"]
KEYS = ["boxes", "labels", "scores"]
ROWS = torch.arange(2)


class Cells(nn.Module):
    """A smooth detector: one box for each cell of the grid, of a class that the cell has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def cells(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, size (N, Q, 2), and class logits (N, Q, 4)."""
        a = self.conv(x).flatten(2).movedim(1, 2)  # (N, Q, 8)
        rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
        places = torch.stack([columns, rows], dim=2).reshape(-1, 2) + 0.5  # (Q, 2)
        size = places.new_tensor([x.shape[3], x.shape[2]])
        centre = (places + 0.2 * torch.tanh(a[..., 0:2])) / size
        return centre, (1.2 + 0.5 * torch.tanh(a[..., 2:4])) / size, 3 * a[..., 4:]


class Listing(Cells):
    """As torchvision has it: a list of dicts, boxes by their corners, of the likely ones only."""

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        centre, size, logits = self.cells(x)
        boxes = 8 * torch.cat([centre - size / 2, centre + size / 2], dim=2)
        scores, labels = logits.softmax(2)[..., :-1].max(2)
        order = [each.argsort(descending=True)[: 9 - n % 2] for n, each in enumerate(scores)]
        return [
            {"boxes": boxes[n, kept], "labels": labels[n, kept] + 1, "scores": scores[n, kept], "masks": boxes[n, kept]}
            for n, kept in enumerate(order)
        ]


class Queries(Cells):
    """As DETR has it: class logits, the last of no object, and centres and sizes."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        centre, size, logits = self.cells(x)
        return {"logits": logits, "pred_boxes": torch.cat([centre, size], dim=2)}


X = torch.randn(2, 3, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def detector(kind: type[Cells]) -> Cells:
    torch.manual_seed(0)
    return kind().double().eval()


# ---- the replica: lists of numbers, one detection at a time ----


def listed(output: Any, sigmoid: bool = False) -> list[list[dict[str, Any]]]:
    """For each picture its detections: the box by its corners, and the score of each class."""
    if isinstance(output, list):
        return [
            [
                {"box": box, "label": label, "scores": {label: score}}
                for box, label, score in zip(*(each[key].tolist() for key in KEYS), strict=True)
            ]
            for each in output
        ]
    pictures = []
    for boxes, logits in zip(output["pred_boxes"].tolist(), output["logits"].tolist(), strict=True):
        pictures.append([])
        for (x, y, w, h), row in zip(boxes, logits, strict=True):
            if sigmoid:
                scores = {c: 1 / (1 + math.exp(-z)) for c, z in enumerate(row)}
            else:
                total = sum(math.exp(z) for z in row)
                scores = {c: math.exp(z) / total for c, z in enumerate(row[:-1])}
            box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            pictures[-1].append({"box": box, "label": max(scores, key=scores.__getitem__), "scores": scores})
    return pictures


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def ranked(picture: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(picture, key=lambda each: -each["scores"][each["label"]])


def found_again(clean: dict[str, Any], picture: list[dict[str, Any]], what: str, least: float) -> float:
    label, sure = clean["label"], clean["scores"][clean["label"]]
    best, answer = 0.0, 0.0 if what == "score" else clean["box"][WHAT.index(what) - 1]
    for each in picture:
        if label not in each["scores"]:
            continue
        near = iou(each["box"], clean["box"])
        weight = near * min(each["scores"][label], sure)
        if near >= least and weight > best:
            best = weight
            answer = each["scores"][label] if what == "score" else each["box"][WHAT.index(what) - 1]
    return answer


@pytest.mark.parametrize("kind", [Listing, Queries])
@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("least", [0.3, 0.8])
def test_is_the_replica(kind: type[Cells], what: Any, least: float) -> None:
    """Of changed pictures, several of each sample, some far enough from the clean one that boxes are gone."""
    model = detector(kind)
    with torch.no_grad():
        clean = model(X)
        question = Box([0, 3, 1], what=what, least_iou=least).bind(clean)
        rows = torch.tensor([1, 0, 0, 1, 0, 1])
        amount = torch.tensor([0, 0.3, 1, 2, 3, 9])[:, None, None, None]
        noise = amount * torch.randn(6, *X.shape[1:], dtype=torch.float64)
        changed = model(X[rows] + noise)
        scores = question(changed, rows)
    asked = [[ranked(picture)[rank] for rank in (0, 3, 1)] for picture in listed(clean)]
    assert question.labels.tolist() == [[each["label"] for each in row] for row in asked]
    torch.testing.assert_close(question.boxes, torch.tensor([[each["box"] for each in row] for row in asked]).double())
    expected = [
        [found_again(each, picture, what, least) for each in asked[row]]
        for row, picture in zip(rows.tolist(), listed(changed), strict=True)
    ]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))
    gone = scores == (0 if what == "score" else question.values[rows])
    assert gone.any() or least == 0.3
    assert not gone.all()


def test_sigmoid_is_the_replica() -> None:
    model, target = detector(Queries), Box([2, 0], scores="sigmoid")
    output = model(X)
    question = target.bind(output)
    expected = [[ranked(picture)[rank] for rank in (2, 0)] for picture in listed(output, sigmoid=True)]
    assert question.labels.tolist() == [[each["label"] for each in row] for row in expected]
    scores = [[each["scores"][each["label"]] for each in row] for row in expected]
    torch.testing.assert_close(question(output, ROWS), torch.tensor(scores, dtype=torch.float64))


@pytest.mark.parametrize("kind", [Listing, Queries])
@pytest.mark.parametrize("what", WHAT)
def test_gradients_are_finite_differences(kind: type[Cells], what: Any) -> None:
    """With respect to the input, of samples in another order and repeated."""
    model = detector(kind)
    question, rows = Box([0, 2], what=what).bind(model(X)), torch.tensor([1, 0, 1])
    given = X[rows].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: question(model(x), rows), given, fast_mode=True)
    (gradient,) = torch.autograd.grad(question(model(given), rows).sum(), given)
    assert gradient.flatten(1).any(1).all()


@pytest.mark.parametrize("kind", [Listing, Queries])
@pytest.mark.parametrize("what", WHAT)
def test_on_the_clean_pass_each_box_finds_itself(kind: type[Cells], what: Any) -> None:
    """Also the unlikely ones that lie below surer ones of the same class, and one in the very same place."""
    model = detector(kind)
    with torch.no_grad():
        model.conv.weight[:4] *= 0.1
        output = model(X)
    if kind is Queries:
        output = {name: each.repeat(1, 20, 1) for name, each in output.items()}
        output["pred_boxes"] = output["pred_boxes"] + 1e-3 * torch.rand_like(output["pred_boxes"])
        output["logits"] = output["logits"] + torch.randn_like(output["logits"])
        for sure, less in ((3, 7), (11, 9)):
            for each in output.values():
                each[:, less] = each[:, sure]
            output["logits"][:, less, -1] += 1
    count = 240 if kind is Queries else 8
    question = Box(range(count), what=what).bind(output)
    torch.testing.assert_close(question(output, ROWS), question.values, rtol=0, atol=0)
    assert torch.equal(question.confidences, question.confidences.sort(dim=1, descending=True).values)


class TestFoundAgain:
    """By hand: two cats and a dog, of which the surer cat is asked for."""

    BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [0.0, 0.0, 10.0, 12.0]])
    OUTPUT = [{"boxes": BOXES, "labels": torch.tensor([1, 1, 2]), "scores": torch.tensor([0.8, 0.7, 0.9])}]  # noqa: RUF012

    @staticmethod
    def ask(what: Any, boxes: Any, labels: Any, scores: Any) -> float:
        question = Box(label=1, what=what).bind(TestFoundAgain.OUTPUT)
        given = {"boxes": torch.tensor(boxes).view(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}
        return float(question([given | {"scores": torch.tensor(scores)}], ROWS[:1]))

    def test_in_another_order(self) -> None:
        order = [2, 1, 0]
        boxes, labels = self.BOXES[order].tolist(), [2, 1, 1]
        assert self.ask("score", boxes, labels, [0.9, 0.7, 0.6]) == pytest.approx(0.6)
        assert self.ask("bottom", boxes, labels, [0.9, 0.7, 0.6]) == 10

    def test_a_box_that_moved(self) -> None:
        """By 3 of its 10: an IoU of 70 / 130; by 4: of 60 / 140, which is below a half."""
        assert self.ask("score", [[3.0, 0.0, 13.0, 10.0]], [1], [0.4]) == pytest.approx(0.4)
        assert self.ask("left", [[3.0, 0.0, 13.0, 10.0]], [1], [0.4]) == 3
        assert self.ask("score", [[4.0, 0.0, 14.0, 10.0]], [1], [0.4]) == 0
        assert self.ask("left", [[4.0, 0.0, 14.0, 10.0]], [1], [0.4]) == 0
        assert self.ask("right", [[4.0, 0.0, 14.0, 10.0]], [1], [0.4]) == 10

    def test_a_box_of_another_class_in_its_place(self) -> None:
        assert self.ask("score", [[0.0, 0.0, 10.0, 10.0]], [2], [0.9]) == 0

    def test_no_box_left(self) -> None:
        assert self.ask("score", [], [], []) == 0
        assert self.ask("right", [], [], []) == 10

    def test_overlap_and_score_count(self) -> None:
        """An IoU of 0.9, or of 0.6, and several scores; one above the clean one counts no more than that."""
        boxes = [[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 6.0]]
        assert self.ask("score", boxes, [1, 1], [0.1, 0.5]) == pytest.approx(0.5)
        assert self.ask("score", boxes, [1, 1], [0.5, 0.7]) == pytest.approx(0.5)
        assert self.ask("score", boxes, [1, 1], [0.8, 0.99]) == pytest.approx(0.8)

    @pytest.mark.parametrize("what", WHAT)
    @pytest.mark.parametrize("count", [0, 1])
    def test_what_is_gone_has_a_gradient_of_zero(self, what: Any, count: int) -> None:
        """And not none, which would say that the model does not depend on its layer."""
        question = Box(label=1, what=what).bind(self.OUTPUT)
        boxes = torch.full((count, 4), 50.0).requires_grad_()
        scores = torch.full((count,), 0.5).requires_grad_()
        answer = question([{"boxes": boxes, "scores": scores, "labels": torch.ones(count).long()}], ROWS[:1])
        asked = scores if what == "score" else boxes
        (gradient,) = torch.autograd.grad(answer.sum(), asked)
        assert not gradient.any()

    def test_a_query_that_leans_to_another_class(self) -> None:
        """It goes on having a score as the clean class; so the answer does not jump where the likeliest one does."""
        boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4]]])
        question = Box().bind({"logits": torch.tensor([[[2.0, 1.0, 0.0]]]), "pred_boxes": boxes})
        moved = torch.tensor([[[1.0, 3.0, 0.0]]])
        assert float(question({"logits": moved, "pred_boxes": boxes}, ROWS[:1])) == float(moved.softmax(2)[0, 0, 0])


class TestWhichBox:
    LISTING = [  # noqa: RUF012
        {
            "boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 8.0], [9.0, 9.0, 12.0, 10.0]]),
            "labels": torch.tensor([3, 1, 3]),
            "scores": torch.tensor([0.5, 0.9, 0.7]),
            "keypoints": torch.zeros(3, 17, 3),
        },
        {
            "boxes": torch.tensor([[0.0, 0.0, 5.0, 4.0], [2.0, 2.0, 6.0, 6.0], [8.0, 9.0, 12.0, 10.0], [0.0, 0, 4, 4]]),
            "labels": torch.tensor([3, 3, 3, 1]),
            "scores": torch.tensor([0.4, 0.2, 0.3, 0.1]),
        },
    ]

    @pytest.mark.parametrize(
        ("target", "scores"),
        [
            (Box(), [[0.9], [0.4]]),
            (Box(1), [[0.7], [0.3]]),
            (Box([2, 0]), [[0.5, 0.9], [0.2, 0.4]]),
            (Box(torch.tensor([1])), [[0.7], [0.3]]),
            (Box(np.int64(2)), [[0.5], [0.2]]),
            (Box(label=3), [[0.7], [0.4]]),
            (Box([1, 0], label=3), [[0.5, 0.7], [0.3, 0.4]]),
            (Box(at=(0, 0, 4, 4)), [[0.5], [0.1]]),
            (Box([1, 0], at=torch.tensor([0.0, 0.0, 4.0, 4.0])), [[0.9, 0.5], [0.4, 0.1]]),
            (Box(at=np.array([0, 0, 4, 4]), label=3), [[0.5], [0.4]]),
            (Box(at=(0, 0, 4, 40), label=1, least_iou=0.05), [[0.9], [0.1]]),
        ],
    )
    def test_by_hand(self, target: Any, scores: list[list[float]]) -> None:
        question = target.bind(self.LISTING)
        torch.testing.assert_close(question.confidences, torch.tensor(scores))
        torch.testing.assert_close(question(self.LISTING, ROWS), torch.tensor(scores))

    def test_scores_and_samples_can_be_taken_apart(self) -> None:
        question = Box([2, 0, 1]).bind(self.LISTING)
        part = question.select(torch.tensor([1, 1, 0]), slice(1, None))
        assert part.labels.tolist() == [[3, 3], [3, 3], [1, 3]]
        torch.testing.assert_close(
            part([self.LISTING[n] for n in (1, 1, 0)], torch.arange(3)),
            torch.tensor([[0.4, 0.3], [0.4, 0.3], [0.9, 0.7]]),
        )

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            (Box(3), "picture 0 has 3 detections; asked for number 3, counted from 0. Ask for 0 to 2, or lower"),
            (Box([0, 5], label=3), "picture 0 has 2 detections of class 3; asked for number 5"),
            (Box(1, label=1), "has 1 detection of class 1; asked for number 1, counted from 0. Ask for 0, or"),
            (Box(label=2), "picture 0 has no detection of class 2; it has some of 1, 3"),
            (Box(at=(5, 0, 9, 4)), r"no detection that overlaps \(5.0, 0.0, 9.0, 4.0\) by 0.5 IoU or more"),
            (Box(at=(0, 0, 4, 5), least_iou=0.9), r"the nearest, class 3 at \(0, 0, 4, 4\), has 0.80. Coordinates are"),
            (Box(2, at=(0, 0, 4, 4)), r"2 detections that overlap \(0.0, 0.0, 4.0, 4.0\) enough; asked for number 2"),
        ],
    )
    def test_what_is_not_there(self, target: Any, message: str) -> None:
        with pytest.raises(TargetError, match=message):
            target.bind(self.LISTING)

    def test_a_picture_without_detections(self) -> None:
        empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
        message = "picture 1 has no detections, .* Give another, or lower the model's score threshold .*box_score_th"
        with pytest.raises(TargetError, match=message):
            Box().bind([self.LISTING[0], empty])

    def test_a_box_without_an_area(self) -> None:
        flat = self.LISTING[0] | {"boxes": torch.tensor([[0.0, 0, 4, 4], [3, 3, 3, 9], [9, 9, 12, 10]])}
        with pytest.raises(TargetError, match=r"picture 0: .* class 1 at \(3, 3, 3, 9\), has no area"):
            Box([1, 0]).bind([flat])
        assert float(Box(1).bind([flat]).confidences) == pytest.approx(0.7)

    @pytest.mark.parametrize("name", ["boxes", "scores"])
    def test_numbers_that_are_none(self, name: str) -> None:
        broken = self.LISTING[0] | {name: torch.full_like(self.LISTING[0][name], torch.nan)}
        with pytest.raises(NotFinite, match="boxes or their scores have NaN"):
            Box().bind([broken])
        with pytest.raises(NotFinite):
            Box().bind(self.LISTING[:1])([broken], ROWS[:1])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"of": "dog"}, r"Box\('dog'\): .* a class is label='dog'"),
            ({"of": (1.5, 2, 3, 4)}, r"coordinates are at=\(left, top, right, bottom\)"),
            ({"of": []}, "give a rank"),
            ({"of": True}, "give a rank"),
            ({"of": -1}, "count from 0"),
            ({"what": "width"}, "what='width'.*allowed: 'score', 'left', 'top', 'right', 'bottom'"),
            ({"at": (1, 2, 3)}, "give four numbers"),
            ({"at": "1234"}, "give four numbers"),
            ({"at": (1, 2, math.inf, 3)}, "give four numbers"),
            ({"at": torch.ones(2, 4)}, "give four numbers"),
            ({"at": (0.5, 0.5, 0.2, 0.2)}, "these are corners, not a centre and a size"),
            ({"least_iou": 0}, "an overlap is above 0"),
            ({"least_iou": "half"}, "give a number"),
            ({"scores": "relu"}, "allowed: 'softmax', 'sigmoid'"),
        ],
    )
    def test_what_is_no_box(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(TargetError, match=message):
            Box(**options)

    def test_names_of_classes(self) -> None:
        names = ["background", "cat", "person", "dog"]
        assert Box(label="dog", what="top").named(names) == Box(label=3, what="top")
        assert Box(2).named(None) == Box(2)
        with pytest.raises(ClassNotFound, match="no class 'dgo' among 4; closest: 'dog'"):
            Box(label="dgo").named(names)
        with pytest.raises(ClassNotFound, match="comes without class names"):
            Box(label="dog").bind(self.LISTING)


class TestFormats:
    LOGITS, BOXES = torch.randn(2, 5, 4), torch.rand(2, 5, 4)

    @pytest.mark.parametrize(
        ("output", "got"),
        [
            (torch.ones(2, 3), r"a tensor of shape \(2, 3\)"),
            ((LOGITS, BOXES), "a tuple of Tensor"),
            ([], "a list of nothing"),
            ([{"boxes": BOXES[0], "scores": BOXES[0, :, 0]}], "a list of dict"),
            ([{"boxes": BOXES[0], "scores": BOXES[0, :, 0], "labels": torch.ones(4)}], "a list of dict"),
            ({"logits": LOGITS}, "a dict of 'logits'"),
            ({"logits": LOGITS[:, 0], "pred_boxes": BOXES}, "a dict of 'logits', 'pred_boxes'"),
            (SimpleNamespace(), "a SimpleNamespace"),
        ],
    )
    def test_what_is_not_taken(self, output: Any, got: str) -> None:
        with pytest.raises(TargetError, match=f"got {got}. Allowed are a list of one dict .* 'pred_boxes'"):
            Box().bind(output)

    def test_the_same_under_other_names(self) -> None:
        expected = Box([0, 1]).bind({"logits": self.LOGITS, "pred_boxes": self.BOXES})
        for output in (
            {"pred_logits": self.LOGITS, "pred_boxes": self.BOXES},
            UserDict(logits=self.LOGITS, pred_boxes=self.BOXES),
            SimpleNamespace(logits=self.LOGITS, pred_boxes=self.BOXES, loss=None),
        ):
            question = Box([0, 1]).bind(output)
            assert torch.equal(question(output, ROWS), expected.confidences)

    def test_half_precision_is_read_in_float32(self) -> None:
        half = {"logits": self.LOGITS.bfloat16(), "pred_boxes": self.BOXES.bfloat16()}
        full = {name: each.float() for name, each in half.items()}
        question = Box([0, 1], what="left").bind(half)
        assert question.boxes.dtype == torch.float32
        assert torch.equal(question(half, ROWS), Box([0, 1], what="left").bind(full).values)

    def test_one_class_and_no_other(self) -> None:
        output = {"logits": self.LOGITS[..., :1], "pred_boxes": self.BOXES}
        with pytest.raises(TargetError, match="give Box\\(scores='sigmoid'\\)"):
            Box().bind(output)
        best = self.LOGITS[..., 0].sigmoid().amax(1, keepdim=True)
        assert torch.equal(Box(scores="sigmoid").bind(output).confidences, best)

    def test_of_other_pictures(self) -> None:
        output = {"logits": self.LOGITS, "pred_boxes": self.BOXES}
        with pytest.raises(TargetError, match="detections of 2 pictures for 3 samples"):
            Box().bind(output)(output, torch.tensor([0, 0, 1]))


def test_overlaps_are_those_of_torchvision() -> None:
    ops = pytest.importorskip("torchvision.ops")
    corners = torch.rand(2, 40, 2, 2, dtype=torch.float64).sort(dim=2).values.flatten(2)  # (2, 40, 4)
    one, other = corners[0], corners[1, :30]
    torch.testing.assert_close(overlaps(one, other), ops.box_iou(one, other), rtol=1e-12, atol=0)
    assert torch.equal(overlaps(one.float(), one.float()).diag(), torch.ones(40))
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert float(overlaps(point, point)) == 0  # and not NaN


class TestInTheHouse:
    """Through trace and explain, on the small detectors."""

    @pytest.mark.parametrize("kind", [Listing, Queries])
    @pytest.mark.parametrize("what", ["score", "right"])
    def test_a_trace_has_the_gradients_of_autograd(self, kind: type[Cells], what: Any) -> None:
        model = detector(kind)
        trace = tp.trace(model, X, layer="conv", target=Box([0, 2], what=what))
        kept: list[Tensor] = []
        handle = model.conv.register_forward_hook(lambda module, args, out: kept.append(out))
        scores = trace.question(model(X), ROWS)
        handle.remove()
        torch.testing.assert_close(trace.scores, scores.detach())
        for k in range(2):
            (gradient,) = torch.autograd.grad(scores[:, k].sum(), kept[0], retain_graph=True)
            torch.testing.assert_close(trace.gradients[:, k], gradient)

    @pytest.mark.parametrize("method", ["gradcam", "hirescam", "scorecam", "recipro-cam"])
    @pytest.mark.filterwarnings("ignore:whole passes for each change")
    def test_heatmaps_are_of_their_box(self, method: str, tmp_path: Any) -> None:
        """A heatmap of several boxes is that of each; it is named, and written."""
        loaded = tp.LoadedModel(detector(Listing), tp.Preprocess(None, None), ["none", "ant", "bee", "cat"])
        heatmap = tp.explain(loaded, X, method=method, layer="conv", target=Box([0, 1]))
        alone = tp.explain(loaded, X[1:], method=method, layer="conv", target=Box(1))
        torch.testing.assert_close(heatmap.values[1:, 1:], alone.values)
        label = int(heatmap.question.labels[0, 0])
        assert heatmap.provenance.class_name(label) == ["none", "ant", "bee", "cat"][label]
        assert heatmap.provenance.score == "score of a detected box"
        tp.save(heatmap, tmp_path / "map.safetensors")
        again = tp.load(tmp_path / "map.safetensors")
        assert again.provenance.score == heatmap.provenance.score
        assert torch.equal(again.question.labels, heatmap.question.labels)

    def test_by_name(self) -> None:
        model = detector(Listing)
        names = ["none", "ant", "bee", "cat"]
        label = int(model(X[:1])[0]["labels"][0])
        loaded = tp.LoadedModel(model, tp.Preprocess(None, None), names)
        by_name = tp.explain(loaded, X[:1], layer="conv", target=Box(label=names[label]))
        assert torch.equal(by_name.values, tp.explain(model, X[:1], layer="conv", target=Box(0)).values)

    def test_of_a_classifier(self, net: nn.Module) -> None:
        with pytest.raises(TargetError, match="Box reads what a detector returns; got a tensor"):
            tp.explain(net, torch.rand(2, 3, 8, 6).double(), layer="prefix", target=Box())


# ---- the detectors that people use, at a small size and with random weights ----

SMALL = {"weights": None, "weights_backbone": None, "num_classes": 4}
DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (
        {"box_score_thresh": 0.0, "box_detections_per_img": 12, "min_size": 64, "max_size": 96},
        "backbone.fpn.layer_blocks.0",
        "roi_heads.box_predictor",
    ),
    "ssdlite320_mobilenet_v3_large": (
        {"score_thresh": 0.0, "detections_per_img": 12, "topk_candidates": 50},
        "backbone.features.0",
        "head.classification_head",
    ),
}


@pytest.fixture(scope="module", params=DETECTORS)
def torchvision_detector(request: pytest.FixtureRequest) -> tuple[nn.Module, str]:
    detection = pytest.importorskip("torchvision.models.detection")
    options, layer, head = DETECTORS[request.param]
    torch.manual_seed(0)
    model = getattr(detection, request.param)(**SMALL, **options).eval()
    for parameter in model.get_submodule(head).parameters():
        parameter.data *= 20  # so that the scores of random weights differ
    return model, layer


PICTURES = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(2))


class TestTorchvision:
    def test_values_are_the_models_own(self, torchvision_detector: tuple[nn.Module, str]) -> None:
        model, _ = torchvision_detector
        with torch.no_grad():
            output = model(PICTURES)
        for what in WHAT:
            question = Box([0, 3], what=what).bind(output)
            own = [each["scores"] if what == "score" else each["boxes"][:, WHAT.index(what) - 1] for each in output]
            torch.testing.assert_close(question(output, ROWS), torch.stack([each[[0, 3]] for each in own]))
            assert torch.equal(question.labels, torch.stack([each["labels"][[0, 3]] for each in output]))

    @pytest.mark.parametrize("what", ["score", "left"])
    def test_the_gradient_reaches_the_picture(self, torchvision_detector: tuple[nn.Module, str], what: Any) -> None:
        model, _ = torchvision_detector
        given = PICTURES[[1, 0]].clone().requires_grad_()
        output = model(given)
        # An edge that was clipped to the picture has no gradient.
        inside = [int((each["boxes"][:, 0] > 1).float().argmax()) for each in output]
        for n, rank in enumerate(inside):
            question = Box(rank, what=what).bind(output)
            (gradient,) = torch.autograd.grad(question(output, ROWS)[n, 0], given, retain_graph=True)
            assert gradient[n].any()
            assert not gradient[1 - n].any()

    def test_found_again_in_changed_pictures(self, torchvision_detector: tuple[nn.Module, str]) -> None:
        model, _ = torchvision_detector
        rows = torch.tensor([1, 0, 1])
        with torch.no_grad():
            clean, changed = model(PICTURES), model(PICTURES[rows] + 0.02 * torch.randn(3, 3, 64, 80))
        question = Box([0, 1, 2]).bind(clean)
        expected = [
            [found_again(each, picture, "score", 0.5) for each in ranked(listed(clean)[row])[:3]]
            for row, picture in zip(rows.tolist(), listed(changed), strict=True)
        ]
        scores = question(changed, rows)
        torch.testing.assert_close(scores, torch.tensor(expected))
        assert scores.any()

    def test_heatmaps(self, torchvision_detector: tuple[nn.Module, str]) -> None:
        model, layer = torchvision_detector
        heatmap = tp.explain(model, PICTURES, layer=layer, target=Box([0, 1]))
        assert heatmap.values.shape[:2] == (2, 2)
        torch.testing.assert_close(heatmap.scores, Box([0, 1]).bind(model(PICTURES)).values, rtol=1e-4, atol=1e-5)
        assert heatmap.values.flatten(2).any(2).all()


@pytest.fixture(scope="module")
def detr() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    sizes = {f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, d_model=16, num_queries=7, num_labels=4, **sizes, **heads
    )
    model = transformers.DetrForObjectDetection(config).double().eval()
    for parameter in (*model.bbox_predictor.parameters(), *model.class_labels_classifier.parameters()):
        parameter.data *= 3  # so that the queries of random weights differ
    return model


class TestTransformers:
    GIVEN = torch.randn(2, 3, 32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def test_detections_are_those_of_its_processor(self, detr: nn.Module) -> None:
        module = pytest.importorskip("transformers.models.detr.image_processing_detr")
        with torch.no_grad():
            output = detr(self.GIVEN)
        question = Box(range(7)).bind(output)
        theirs = module.DetrImageProcessor().post_process_object_detection(output, threshold=0.0)
        for n, each in enumerate(theirs):
            order = each["scores"].argsort(descending=True)
            torch.testing.assert_close(question.confidences[n], each["scores"][order])
            torch.testing.assert_close(question.boxes[n], each["boxes"][order])
            assert torch.equal(question.labels[n], each["labels"][order])
        torch.testing.assert_close(question(output, ROWS), question.confidences, rtol=0, atol=0)

    @pytest.mark.parametrize("what", ["score", "top"])
    def test_gradients_are_finite_differences(self, detr: nn.Module, what: Any) -> None:
        with torch.no_grad():
            question = Box([0, 2], what=what).bind(detr(self.GIVEN))
        given = self.GIVEN[[1, 0]].clone().requires_grad_()
        scores = question(detr(given), torch.tensor([1, 0]))
        (gradient,) = torch.autograd.grad(scores.sum(), given)
        step = 1e-6 * torch.randn_like(given)
        with torch.no_grad():
            above, below = (question(detr(given + sign * step), torch.tensor([1, 0])).sum() for sign in (1, -1))
        assert float((gradient * step).sum()) == pytest.approx(float(above - below) / 2, rel=1e-5)

    def test_heatmaps(self, detr: nn.Module) -> None:
        layer = "model.backbone.model.encoder.stages.1"
        heatmap = tp.explain(detr, self.GIVEN, layer=layer, target=Box([0, 1]))
        with torch.no_grad():
            expected = Box([0, 1]).bind(detr(self.GIVEN)).confidences
        torch.testing.assert_close(heatmap.scores, expected)
        assert heatmap.values.flatten(2).any(2).all()

    @pytest.mark.parametrize(
        ("family", "name", "processor"),
        [
            ("yolos", "Yolos", "yolos"),
            ("table_transformer", "TableTransformer", "detr"),
            ("conditional_detr", "ConditionalDetr", "conditional_detr"),
            ("deformable_detr", "DeformableDetr", "deformable_detr"),
            ("rt_detr", "RTDetr", "rt_detr"),
            ("d_fine", "DFine", "rt_detr"),
        ],
    )
    def test_the_output_says_how_scores_are_made(self, family: str, name: str, processor: str) -> None:
        """The surest detection is the one that the family's own processor puts first."""
        pytest.importorskip("transformers")
        made = getattr(importlib.import_module(f"transformers.models.{family}"), f"{name}ForObjectDetection")
        kind = getattr(importlib.import_module(made.__module__), f"{name}ObjectDetectionOutput")
        output = kind(logits=torch.randn(2, 9, 4), pred_boxes=torch.rand(2, 9, 4))
        module = importlib.import_module(f"transformers.models.{processor}.image_processing_{processor}")
        (process,) = [
            getattr(module, each)
            for each in vars(module)
            if each.endswith("ImageProcessor") and getattr(module, each).__module__ == module.__name__
        ]
        theirs = process().post_process_object_detection(output, threshold=0.0, target_sizes=torch.ones(2, 2))
        question = Box().bind(output)
        for n, each in enumerate(theirs):
            first = int(each["scores"].argmax())
            assert float(question.confidences[n, 0]) == pytest.approx(float(each["scores"][first]))
            assert int(question.labels[n, 0]) == int(each["labels"][first])
            torch.testing.assert_close(question.boxes[n, 0], each["boxes"][first])


class TestSuggested:
    """Each box hangs on one level of a pyramid; a layer that was right for another box would give a map of zeros."""

    def test_the_layer_is_of_the_box(self) -> None:
        torch.manual_seed(0)
        models = pytest.importorskip("torchvision.models.detection")
        model = models.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, box_score_thresh=0.0, min_size=160, max_size=200
        ).eval()
        picture = torch.rand(3, 150, 110)
        with torch.no_grad():
            count = len(model([picture])[0]["boxes"])
        for of in (0, count // 2, count - 1, [0, count // 2, count - 1]):
            heatmap = tp.explain(model, [picture], target=Box(of))[0]
            assert (heatmap.values.flatten(2).abs().amax(2) > 0).all()
            assert heatmap.provenance.layer.startswith("backbone.")

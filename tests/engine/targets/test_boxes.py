"""One detected box as the target: scores and gradients against a replica and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torchpeek as tp
from networks.detectors import ROWS, WHAT, Cells, Listing, Queries, X, detector
from replicas.boxes import found_again, listed, ranked
from torchpeek.engine.targets.boxes import overlaps

Box = tp.targets.Box


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


class TestMatching:
    """By hand: two cats and a dog, of which the surer cat is asked for."""

    BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [0.0, 0.0, 10.0, 12.0]])
    OUTPUT = [{"boxes": BOXES, "labels": torch.tensor([1, 1, 2]), "scores": torch.tensor([0.8, 0.7, 0.9])}]  # noqa: RUF012

    @staticmethod
    def ask(what: Any, boxes: Any, labels: Any, scores: Any) -> float:
        question = Box(label=1, what=what).bind(TestMatching.OUTPUT)
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


def test_overlaps_are_those_of_torchvision() -> None:
    ops = pytest.importorskip("torchvision.ops")
    corners = torch.rand(2, 40, 2, 2, dtype=torch.float64).sort(dim=2).values.flatten(2)  # (2, 40, 4)
    one, other = corners[0], corners[1, :30]
    torch.testing.assert_close(overlaps(one, other), ops.box_iou(one, other), rtol=1e-12, atol=0)
    assert torch.equal(overlaps(one.float(), one.float()).diag(), torch.ones(40))
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert float(overlaps(point, point)) == 0  # and not NaN

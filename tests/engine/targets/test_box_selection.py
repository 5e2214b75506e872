"""Which box a target selects, and which output formats are read."""

from __future__ import annotations

import math
from collections import UserDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import torchpeek as tp
from networks.detectors import ROWS
from torchpeek.errors import ClassNotFound, NotFinite, TargetError

Box = tp.targets.Box


class TestBoxSelection:
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
            (Box(3), "picture 0 has 3 detections; the requested rank is 3, counted from 0. Choose 0 to 2, or lower"),
            (Box([0, 5], label=3), "picture 0 has 2 detections of class 3; the requested rank is 5"),
            (Box(1, label=1), "has 1 detection of class 1; the requested rank is 1, counted from 0. Choose 0, or"),
            (Box(label=2), "picture 0 has no detection of class 2; it has some of 1, 3"),
            (Box(at=(5, 0, 9, 4)), r"no detection that overlaps \(5.0, 0.0, 9.0, 4.0\) by 0.5 IoU or more"),
            (Box(at=(0, 0, 4, 5), least_iou=0.9), r"the nearest, class 3 at \(0, 0, 4, 4\), has 0.80. Coordinates are"),
            (
                Box(2, at=(0, 0, 4, 4)),
                r"2 detections that overlap \(0.0, 0.0, 4.0, 4.0\) enough; the requested rank is 2",
            ),
        ],
    )
    def test_what_is_not_there(self, target: Any, message: str) -> None:
        with pytest.raises(TargetError, match=message):
            target.bind(self.LISTING)

    @pytest.mark.parametrize("options", [{"of": int}, {"of": [int]}, {"classes": int}, {"at": (0, 0, 10**400, 3)}])
    def test_what_is_no_number(self, options: dict[str, Any]) -> None:
        with pytest.raises(TargetError, match=r"^Box\("):
            Box(**options)

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

"""The question about detected boxes: how they are found again on later passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from torchpeek.engine.numerics import weighted_sum
from torchpeek.engine.targets.detections import (
    Detections,
    NamedReader,
    Reader,
    ScoreActivation,
    finite_detections,
    overlaps,
)
from torchpeek.errors import TargetError
from torchpeek.hooks import containers
from torchpeek.keywords import checked_methods

BoxQuantity: TypeAlias = Literal["score", "left", "top", "right", "bottom"]
"""The score of a box, or one of its coordinates."""

_EDGES = ("left", "top", "right", "bottom")  # in the order of a box's four numbers


@checked_methods
@dataclass(frozen=True, eq=False)
class BoxScores:
    """Scores, or coordinates, of boxes that were selected on the clean pass and are matched again on every later pass.

    A box is matched to the detection with the greatest product of two factors: the IoU with the clean box, and the
    score of the clean box's class. The IoU has to reach `least_iou`. A score above the clean box's own counts as that,
    so that on the clean pass each box matches itself, even if a box with a higher score lies almost on top of it.

    The match has no gradient; the score or coordinate of the matched box does. A box without a match has the score 0
    and the clean coordinates, both with a gradient of zero.

    A dense detector returns a box for each cell of its grids. There a box is matched to the one with the same number,
    which belongs to the same cell.

    Args:
        labels: (N, K), int64: the class index of each box.
        boxes: (N, K, 4): left, top, right, bottom on the clean pass.
        confidences: (N, K): the scores on the clean pass.
        what: The quantity: "score", "left", "top", "right" or "bottom".
        least_iou: The IoU that a match needs, above 0 and at most 1.
        scored: For models that return logits: what turns these into scores, "softmax" or "sigmoid".
        reader: How the output is read; None for one with named parts, as torchvision and transformers return it.
        numbers: (N, K), int64: the number of each box among the detections of its picture; None where a box is matched
            by overlap.
        part: The path of the boxes in the model's output; "" for the whole output.

    Source: D-RISE, arXiv:2006.03204, weighs detections by IoU, class and score, too, but takes that weight as the
    score.

    Example:
        >>> detections = [{"boxes": torch.tensor([[0.0, 0, 4, 4]]), "scores": torch.tensor([0.9]),
        ...                "labels": torch.tensor([1])}]
        >>> tp.targets.Box(0).bind(detections)(detections, torch.tensor([0]))
        tensor([[0.9000]])
    """

    labels: Tensor  # (N, K), int64
    boxes: Tensor  # (N, K, 4)
    confidences: Tensor  # (N, K)
    what: BoxQuantity = "score"
    least_iou: float = 0.5
    positional: ClassVar[bool] = True
    separate_branches: ClassVar[bool] = True
    scored: ScoreActivation = "softmax"
    reader: Reader | None = None
    numbers: Tensor | None = None
    part: str = ""

    @property
    def kind(self) -> str:
        """What a score is, for a heatmap's provenance."""
        if self.what != "score":
            return f"{self.what} edge of a detected box"
        return f"score of a detected box{self.reader.words if self.reader else ''}"

    @property
    def several_scales(self) -> bool:
        """Whether the boxes may come from several scales, each with layers of its own."""
        return self.reader is not None and self.reader.several_scales

    @property
    def grids(self) -> Sequence[tuple[int, int]]:
        """The grids (h, w) whose cells the boxes belong to, from fine to coarse; empty where these are not known."""
        return self.reader.grids if self.reader else ()

    @property
    def relative(self) -> bool:
        """Whether boxes are in fractions of the picture, 0 to 1, and not in pixels."""
        return self.reader is not None and self.reader.relative

    @property
    def values(self) -> Tensor:
        """(N, K): the scores or coordinates on the clean pass."""
        return self.confidences if self.what == "score" else self.boxes[..., _EDGES.index(self.what)]

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        """Match the boxes in an output, and read their scores or coordinates.

        Args:
            output: What the detector returned for n samples.
            rows: (n,), int64: the clean sample that each of them is a version of.

        Returns:
            (n, K), at least float32.

        Raises:
            TargetError: When the output is not that of a detector, or not of n samples.
            NotFinite: When a box or a score is NaN or infinite.

        Example:
            >>> detections = [{"boxes": torch.tensor([[0.0, 0, 4, 4]]), "scores": torch.tensor([0.9]),
            ...                "labels": torch.tensor([1])}]
            >>> question = tp.targets.Box(0, what="right").bind(detections)
            >>> question([detections[0] | {"boxes": torch.tensor([[0.0, 0, 5, 4]])}], torch.tensor([0]))
            tensor([[5.]])
        """
        reader = self.reader or NamedReader(self.scored)
        detections = finite_detections(reader(containers.at(output, self.part)))
        if len(detections) != len(rows):
            raise TargetError(f"the model returned detections of {len(detections)} pictures for {len(rows)} samples")
        by_row = self.select(rows.to(self.labels.device), slice(None))
        return torch.stack([by_row._values_in_sample(index, each) for index, each in enumerate(detections)])

    def select(self, rows: slice | Tensor, columns: slice) -> BoxScores:
        """Select some of the samples and of the boxes.

        Args:
            rows: Which of the N samples.
            columns: Which of the K boxes.

        Returns:
            The question of these samples and boxes.

        Example:
            >>> question = tp.targets.BoxScores(torch.ones(2, 3), torch.rand(2, 3, 4), torch.rand(2, 3))
            >>> question.select(slice(0, 1), slice(1, 3)).boxes.shape
            torch.Size([1, 2, 4])
        """
        return replace(
            self,
            labels=self.labels[rows][:, columns],
            boxes=self.boxes[rows][:, columns],
            confidences=self.confidences[rows][:, columns],
            numbers=None if self.numbers is None else self.numbers[rows][:, columns],
        )

    def box_totals(self, output: Any) -> Sequence[Tensor]:
        """Sum up all boxes, to find the layers that they are read from.

        Args:
            output: What the detector returned for n samples.

        Returns:
            Sums, each with one number: of the coordinates of all boxes, of the scores of classes 0, 2, 4, ..., and of
            those of classes 1, 3, 5, .... They are weighted, so that probabilities that add up to 1 do not cancel.

        Raises:
            TargetError: When the output is not that of a detector.

        Example:
            >>> rows = torch.cat([torch.full((1, 2, 84), 32.0), torch.ones(1, 2, 84), torch.rand(1, 3, 84)], 1)
            >>> question = tp.targets.Box().for_pictures((1, 3, 64, 64)).bind(rows)
            >>> [total.shape for total in question.box_totals(rows)]
            [torch.Size([]), torch.Size([]), torch.Size([])]
        """
        reader = self.reader or NamedReader(self.scored)
        detections = reader(containers.at(output, self.part))
        scores = [each.scores[:, None] if each.by_class is None else each.by_class for each in detections]
        halves = [weighted_sum(each[:, start::2] for each in scores) for start in (0, 1)]
        return [weighted_sum(each.boxes for each in detections), *halves]

    def _values_in_sample(self, index: int, detections: Detections) -> Tensor:
        """(K,): the score or coordinate of each box, matched among the Q detections of one sample."""
        if self.numbers is not None:
            numbers = self.numbers[index].to(detections.labels.device)
            if int(numbers.max()) >= len(detections.boxes):
                raise TargetError(
                    f"the model returned {len(detections.boxes)} boxes, fewer than on the clean pass. A dense detector "
                    "returns the same number for pictures of the same size"
                )
            if self.what != "score":
                return detections.boxes[numbers, _EDGES.index(self.what)]
            by_label = detections.scores_of(self.labels[index].to(numbers.device))  # (Q, K)
            return by_label.gather(0, numbers[None]).squeeze(0)
        boxes, clean_scores = self.boxes[index].to(detections.boxes), self.confidences[index].to(detections.boxes)
        scores = detections.scores_of(self.labels[index].to(detections.labels.device))  # (Q, K)
        iou = overlaps(detections.boxes.detach(), boxes)  # (Q, K)
        weights = iou * scores.detach().minimum(clean_scores)
        weights = weights.where((iou >= self.least_iou) & (scores > 0), -1)
        # One more detection of weight 0 stands for a box without a match. So the result stays on the graph.
        weights = torch.cat([weights, torch.zeros_like(clean_scores)[None]])  # (Q + 1, K)
        if self.what == "score":
            values, unmatched = scores, torch.zeros_like(clean_scores)
        else:
            edge = _EDGES.index(self.what)
            values, unmatched = detections.boxes[:, edge, None].expand(-1, len(clean_scores)), boxes[:, edge]
        # Among boxes in the very same place, the one with the nearest score: on the clean pass that is the box itself.
        distances = torch.cat([(scores.detach() - clean_scores).abs(), torch.zeros_like(clean_scores)[None]])
        matches = distances.where(weights == weights.amax(0), torch.inf).argmin(0, keepdim=True)  # (1, K)
        return torch.cat([values, unmatched[None]]).gather(0, matches).squeeze(0)

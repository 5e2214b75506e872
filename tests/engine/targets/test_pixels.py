"""Pixels of a segmentation of one class, and of outputs without an axis of classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks.outputs import ROWS, Returns, X
from torchpeek.errors import ClassNotFound, Notice, TargetError

Pixels = tp.targets.Pixels


class Foreground(nn.Module):
    """A layer and a convolution to one logit for each position, in the shape that `shaped` makes of it."""

    def __init__(self, axes: int = 2, shaped: Any = lambda z: z) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        torch.manual_seed(0)
        self.conv, self.head, self.shaped = conv(2, 3, 3, padding=1), conv(3, 1, 3, padding=1), shaped
        nn.init.zeros_(self.head.bias)

    def logits(self, grid: Tensor) -> Tensor:
        return self.head(torch.tanh(grid))  # (N, 1, *grid)

    def forward(self, x: Tensor) -> Any:
        return self.shaped(self.logits(self.conv(x)))


def gradcam(model: Foreground, x: Tensor) -> Tensor:
    """By autograd: of the mean logit over the pixels where it is above 0."""
    grid = model.conv(x)
    logits = model.logits(grid)
    score = torch.stack([each[each > 0].mean() for each in logits])
    (gradient,) = torch.autograd.grad(score.sum(), grid)
    axes = tuple(range(2, x.ndim))
    return (gradient.mean(axes, keepdim=True) * grid).sum(1, keepdim=True).detach()


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    "shaped",
    [
        lambda z: z,
        lambda z: z.squeeze(1),
        lambda z: {"out": z, "aux": -z},
        lambda z: [z, z.sum()],
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_foreground_is_where_the_logit_is_above_zero(axes: int, shaped: Any, batch: int) -> None:
    model = Foreground(axes, shaped).double().eval()
    shape, seed = (batch, 2, 7, *[6, 5][: axes - 1]), torch.Generator().manual_seed(0)
    x = 3 * torch.randn(shape, dtype=torch.float64, generator=seed)
    # Of signals, (N, L) may also be (N, classes).
    class_axis = False if axes == 1 and isinstance(model(x), Tensor) and model(x).ndim == 2 else None
    for target in (Pixels(class_axis=class_axis), Pixels(0, class_axis=class_axis)):
        heatmap = tp.explain(model, x, layer="conv", target=target)
        torch.testing.assert_close(heatmap.values, gradcam(model, x))
        assert heatmap.provenance.score.startswith("mean logit of the foreground, where the logit is above 0")
        assert heatmap.question.labels.tolist() == [[0]] * batch
    logits = model.logits(model.conv(x))
    assert torch.equal(heatmap.question.masks, logits > 0)
    assert not heatmap.question.masks.all()
    for method in ("scorecam", "ablationcam"):  # further passes have the same pixels
        assert tp.explain(model, x, layer="conv", target=target, method=method).values.any()


def test_the_pixels_stay_on_later_passes() -> None:
    logits = torch.tensor([[[[-1.0, 2.0, 4.0]]], [[[3.0, -2.0, -5.0]]]])
    question = Pixels().bind(logits)
    assert question(logits, ROWS).tolist() == [[3.0], [3.0]]
    assert question(-logits, ROWS).tolist() == [[-3.0], [-3.0]]
    assert question.shares(logits).tolist() == [[pytest.approx(2 / 3)], [pytest.approx(1 / 3)]]


def test_a_mask_is_used_as_it_is() -> None:
    mask = torch.zeros(7, 6, dtype=torch.bool)
    mask[1:3, 2:5] = True
    x = torch.randn(2, 2, 7, 6, dtype=torch.float64)
    for shaped in (lambda z: z, lambda z: z.squeeze(1)):
        model = Foreground(2, shaped).double().eval()
        trace = tp.trace(model, x, layer="conv", target=Pixels(mask=mask))
        torch.testing.assert_close(trace.scores[:, 0], model.logits(model.conv(x))[:, 0, mask].mean(1).detach())
        assert trace.question.kind == "mean logit of the masked pixels"
        question = Pixels(mask=mask).bind(model(x))  # the mask alone tells (N, H, W) from (N, classes, L)
        torch.testing.assert_close(question(model(x), ROWS), trace.scores)


def test_two_channels_are_as_before() -> None:
    logits = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    question = Pixels(1).bind(logits)
    assert torch.equal(question.masks[:, 0], logits[:, 1] > logits[:, 0])
    most = (logits.argmax(1).flatten(1).sum(1) > 10).long()
    assert Pixels().bind(logits).labels[:, 0].tolist() == most.tolist()
    assert question.kind == "mean logit of the masked pixels"


def test_probabilities_need_a_threshold() -> None:
    model = Returns(lambda a: torch.sigmoid(a[:, :1] - 0.7)).double().eval()
    with pytest.raises(TargetError, match=r"may be probabilities.*Pixels\(threshold=0.5\)"):
        tp.explain(model, X, layer="conv", target=Pixels())
    heatmap = tp.explain(model, X, layer="conv", target=Pixels(threshold=0.5))
    assert torch.equal(heatmap.question.masks, model(X) > 0.5)
    assert heatmap.provenance.score == "mean value of the foreground, where the value is above 0.5"


@pytest.mark.parametrize(
    ("make", "target", "error", "message"),
    [
        (lambda a: a[:, :1] - 1, Pixels(threshold="0"), TargetError, "give a number"),
        (lambda a: a[:, :1], Pixels(1), ClassNotFound, "has one class, class 0"),
        (lambda a: -1 - a[:, :1], Pixels(), TargetError, "in sample 0 no pixel is foreground: the largest value is -1"),
        (lambda a: a[:, :1], Pixels(mask=torch.zeros(8, 6)), TargetError, "the mask is empty"),
        (lambda a: a[:, 0], Pixels(mask=torch.ones(4, 4)), TargetError, r"allowed: \(8, 6\)"),
        (lambda a: a.mean((2, 3)), Pixels(), TargetError, "Pixels reads outputs"),
    ],
)
def test_bad_requests(make: Any, target: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        tp.explain(Returns(make).double(), X, layer="conv", target=target)


def test_a_notice_where_every_pixel_is_foreground() -> None:
    with pytest.warns(Notice, match="every pixel of sample 0 is foreground: all values are above 0"):
        tp.explain(Returns(lambda a: 2 + a[:, :1]).double(), X, layer="conv", target=Pixels())


@pytest.mark.parametrize(
    ("picture", "output", "class_axis"),
    [
        ((2, 3, 8, 6), (2, 8, 6), False),
        ((2, 3, 8, 6), (2, 4, 3), False),
        ((2, 3, 8, 6), (2, 6, 4), False),  # unpadded layers
        ((2, 3, 8, 6), (2, 1, 4, 3), True),
        ((2, 3, 8, 6), (2, 5, 9), None),  # classes of columns, perhaps
        ((2, 1, 4, 8, 6), (2, 4, 8, 6), False),
        ((2, 1, 4, 8, 6), (2, 5, 8, 6), None),  # classes of a projected volume, perhaps
        ((2, 1, 4, 8, 6), (2, 5, 4, 8, 6), True),
        ((2, 3, 20), (2, 5, 20), True),
        ((2, 8, 6), (2, 8, 6), None),
    ],
)
def test_the_axis_of_classes_follows_from_the_pictures(picture: Any, output: Any, class_axis: Any) -> None:
    target = Pixels().for_pictures(picture)
    logits = torch.randn(output, generator=torch.Generator().manual_seed(0))
    if class_axis is None:
        with pytest.raises(TargetError, match="Give Pixels"):
            target.bind(logits)
    else:
        assert target.bind(logits).class_axis == class_axis


def test_the_axis_of_classes_is_asked_for_where_it_is_unknown() -> None:
    """Of grey pictures (N, H, W) an output (N, H, W) looks as one of signals (N, C, L) does."""

    class Grey(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.conv(x.unsqueeze(1)))).squeeze(1)

    torch.manual_seed(0)
    model, x = Grey().double().eval(), torch.randn(2, 6, 5, dtype=torch.float64)
    with pytest.raises(TargetError, match=r"Pixels\(class_axis=True\)"):
        tp.explain(model, x, layer="conv", target=Pixels())
    question = tp.explain(model, x, layer="conv", target=Pixels(class_axis=False)).question
    assert torch.equal(question.masks[:, 0], model(x) > 0)

"""Targets that are not logits of classes: by hand, against finite differences, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, SplitNet
from networks.outputs import MASK, ROWS, Returns, X, detections, embedding, regression, segmentation
from torchpeek.errors import NotConnected, TargetError

CASES = [
    (regression, tp.targets.Output(0)),
    (embedding, tp.targets.Output([1, 3])),
    (detections, tp.targets.Output([2], part="scores")),
    (segmentation, tp.targets.Pixels(2, MASK)),
    (segmentation, tp.targets.Pixels()),
    (embedding, tp.targets.Similarity(torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, 0.0, 0.0]]))),
    (
        detections,
        tp.targets.Computed(lambda output, rows: output["scores"][:, :2] * output["boxes"].mean((1, 2))[:, None]),
    ),
    (embedding, tp.targets.ClassLogOdds(tp.targets.Classes([0, 2]))),
]


@pytest.mark.parametrize(("make", "target"), CASES, ids=[type(target).__name__ for _, target in CASES])
def test_gradients_are_finite_differences(make: Callable[[Tensor], Any], target: Any) -> None:
    """Of every score with respect to the layer, a few entries of it, in float64."""
    model = Returns(make).double().eval()
    trace = tp.trace(model, X, layer="conv", target=target)
    question, step = trace.question, 1e-6
    assert trace.scores.shape == question.labels.shape
    for n, c, i, j in [(0, 0, 2, 3), (1, 3, 3, 1), (0, 2, 7, 5)]:

        def moved(given: Tensor, rows: Tensor, trials: Tensor, at: tuple[int, ...] = (n, c, i, j)) -> Tensor:
            for entry in range(len(rows)):
                if int(rows[entry]) == at[0]:
                    given[entry, at[1], at[2], at[3]] += step if int(trials[entry]) == 0 else -step
            return given

        scores = trace.ablate(moved, 2)
        slope = (scores[n, 0] - scores[n, 1]) / (2 * step)
        torch.testing.assert_close(trace.gradients[n, :, c, i, j], slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("make", "target"), CASES, ids=[type(target).__name__ for _, target in CASES])
@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam"])
@pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")
def test_methods_and_files(make: Callable[[Tensor], Any], target: Any, method: str, tmp_path: Any) -> None:
    model = Returns(make).double().eval()
    heatmap = tp.explain(model, X, method=method, layer="conv", target=target)
    assert heatmap.values.shape == (*heatmap.question.labels.shape, 8, 6)
    assert heatmap[1].scores.shape[0] == 1
    tp.save(heatmap, tmp_path / "map.safetensors")
    again = tp.load(tmp_path / "map.safetensors")
    assert torch.equal(again.values, heatmap.values)
    assert torch.equal(again.question.labels, heatmap.question.labels)
    assert again.provenance.score == heatmap.provenance.score


class TestLogOdds:
    def test_by_hand(self) -> None:
        logits = torch.tensor([[0.0, 1.0, 2.0], [40.0, 0.0, -40.0]], dtype=torch.float64)
        scores = tp.targets.ClassLogOdds([[1], [0]]).bind(logits)(logits, ROWS)
        p = torch.softmax(logits[0], 0)[1]
        assert float(scores[0]) == pytest.approx(float(torch.log(p / (1 - p))))
        assert float(scores[1]) == pytest.approx(40.0)  # 1 - p is below float64's rounding of p

    def test_of_two_classes_it_is_the_difference(self) -> None:
        logits = torch.tensor([[3.0, 1.0], [0.5, 2.0]])
        assert tp.targets.ClassLogOdds(0).bind(logits)(logits, ROWS).tolist() == [[2.0], [-1.5]]

    def test_all_logits_moved_together_do_not_matter(self, net: SplitNet) -> None:
        target = tp.targets.ClassLogOdds(2)
        before = tp.explain(net, X, layer="prefix", target=target)
        with torch.no_grad():
            net.head.bias.add_(5)
        after = tp.explain(net, X, layer="prefix", target=target)
        torch.testing.assert_close(after.values, before.values)
        assert after.provenance.score == "log-odds"

    def test_probabilities_are_those_of_softmax(self) -> None:
        logits = torch.randn(2, 5, dtype=torch.float64)
        found = tp.targets.ClassProbability([[0, 3], [4, 1]]).bind(logits)(logits, ROWS)
        torch.testing.assert_close(found, logits.softmax(1).gather(1, torch.tensor([[0, 3], [4, 1]])))


class TestOutput:
    def test_names_are_no_classes(self) -> None:
        loaded = tp.LoadedModel(Returns(embedding).double(), tp.Preprocess(None, None), ["ant", "bee", "cat", "dog"])
        heatmap = tp.explain(loaded, X, layer="conv", target=tp.targets.Output(1))
        assert heatmap.provenance.class_name(1) == "output 1"
        assert heatmap.provenance.score == "output entry"

    @pytest.mark.parametrize(
        ("make", "target", "message"),
        [
            (regression, tp.targets.Output(1), "no output entry 1: the model returns 1 for each sample"),
            (regression, tp.targets.Output([]), "give the index of an entry"),
            (
                detections,
                tp.targets.Output(0),
                r"the target does not name one; allowed for part=: 'boxes' \(2, 4, 4\)",
            ),
            (detections, tp.targets.Output(0, part="score"), "no tensor at 'score'"),
        ],
    )
    def test_bad_requests(self, make: Callable[[Tensor], Any], target: Any, message: str) -> None:
        with pytest.raises(TargetError, match=message):
            tp.explain(Returns(make).double(), X, layer="conv", target=target)


class TestPixels:
    LOGITS = torch.tensor([[[[1.0, 5.0]], [[3.0, 2.0]]], [[[0.0, 1.0]], [[7.0, 9.0]]]])  # (2, 2 classes, 1, 2)

    def test_by_hand(self) -> None:
        mine = tp.targets.Pixels(0, torch.tensor([[True, False]])).bind(self.LOGITS)
        assert mine(self.LOGITS, ROWS).tolist() == [[1.0], [0.0]]
        everywhere = tp.targets.Pixels(1, torch.tensor([[True, True]])).bind(self.LOGITS)
        assert everywhere(self.LOGITS, ROWS).tolist() == [[2.5], [8.0]]

    def test_the_pixels_of_the_clean_pass_stay(self) -> None:
        """However the segmentation moves later: class 1 wins both pixels of the second sample, and one of the first."""
        question = tp.targets.Pixels(1).bind(self.LOGITS)
        assert question.masks.flatten().tolist() == [True, False, True, True]
        assert question(-self.LOGITS, ROWS).tolist() == [[-3.0], [-8.0]]

    def test_by_name(self) -> None:
        loaded = tp.LoadedModel(Returns(segmentation).double(), tp.Preprocess(None, None), ["ant", "bee", "cat", "dog"])
        by_name = tp.explain(loaded, X, layer="conv", target=tp.targets.Pixels("cat", MASK))
        by_index = tp.explain(loaded, X, layer="conv", target=tp.targets.Pixels(2, MASK))
        assert torch.equal(by_name.values, by_index.values)
        assert by_name.provenance.class_name(2) == "cat"

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            (tp.targets.Pixels(0, torch.ones(4, 4)), r"mask has shape \(4, 4\); allowed: \(8, 6\), or \(2, 8, 6\)"),
            (tp.targets.Pixels(0, torch.zeros(8, 6)), "the mask is empty"),
            (tp.targets.Pixels(9), "the model has 4 classes"),
        ],
    )
    def test_bad_requests(self, target: Any, message: str) -> None:
        with pytest.raises(TargetError, match=message):
            tp.explain(Returns(segmentation).double(), X, layer="conv", target=target)

    def test_of_a_classifier(self) -> None:
        with pytest.raises(TargetError, match="Pixels reads outputs"):
            tp.explain(PooledNet().double(), X, target=tp.targets.Pixels(0))


class TestSimilarity:
    def test_to_the_picture_itself_it_is_one(self) -> None:
        model = Returns(embedding).double().eval()
        target = tp.targets.Similarity(model(X[:1])[0].detach())
        scores = tp.trace(model, X, layer="conv", target=target).scores
        assert float(scores[0, 0]) == pytest.approx(1.0)
        assert float(scores[1, 0]) < 1
        heatmap = tp.explain(model, X[1:], layer="conv", target=target)
        assert heatmap.provenance.class_name(0) == "embedding 0"

    @pytest.mark.parametrize("count", [1, 3])
    def test_pairs(self, count: int) -> None:
        """Each picture and its own embedding: by autograd, as a list, and in further passes."""
        model = Returns(embedding).double().eval()
        x = torch.randn(count, 3, 8, 6, dtype=torch.float64)
        to = torch.randn(count, 4, dtype=torch.float64)
        heatmap = tp.explain(model, x, layer="conv", target=tp.targets.Similarity(to, pairs=True))
        grid = model.conv(x)
        score = torch.cosine_similarity(embedding(torch.nn.functional.softplus(grid)), to)
        (gradient,) = torch.autograd.grad(score.sum(), grid)
        expected = (gradient.mean((2, 3), keepdim=True) * grid).sum(1, keepdim=True)
        torch.testing.assert_close(heatmap.values, expected)
        torch.testing.assert_close(heatmap.scores[:, 0], score)
        assert heatmap.provenance.score == "cosine similarity of its pair"
        assert heatmap.question.labels.tolist() == [[n] for n in range(count)]
        together = tp.explain(model, x, layer="conv", target=tp.targets.Similarity(to)).values  # (N, N, h, w)
        torch.testing.assert_close(heatmap.values[:, 0], together[torch.arange(count), torch.arange(count)])
        of_list = tp.explain(model, list(x.split(1)), layer="conv", target=tp.targets.Similarity(to, pairs=True))
        torch.testing.assert_close(torch.cat([each.values for each in of_list]), heatmap.values)
        for n in range(count):
            target = tp.targets.Similarity(to[n])
            alone = tp.explain(model, x[n : n + 1], layer="conv", method="ablationcam", target=target).values
            pairs = tp.explain(
                model, x, layer="conv", method="ablationcam", target=tp.targets.Similarity(to, pairs=True)
            ).values
            torch.testing.assert_close(pairs[n : n + 1], alone)

    def test_bad_pairs(self) -> None:
        for to in (torch.ones(3, 4), torch.ones(4)):
            with pytest.raises(TargetError, match=r"takes an embedding for each picture, \(N, D\): got"):
                tp.explain(Returns(embedding).double(), X, layer="conv", target=tp.targets.Similarity(to, pairs=True))

    def test_bad_requests(self) -> None:
        for to in (torch.ones(5), torch.ones(2, 2, 4), [1.0, 2.0, 3.0, 4.0]):
            with pytest.raises(TargetError, match="with D = 4; got"):
                tp.explain(Returns(embedding).double(), X, layer="conv", target=tp.targets.Similarity(to))


class TestComputed:
    def test_is_the_class_score_if_that_is_what_it_computes(self, net: SplitNet) -> None:
        target = tp.targets.Computed(lambda output, rows: output[:, [2, 0]])
        for method in ("gradcam", "scorecam", "recipro-cam"):
            got = tp.explain(net, X, method=method, layer="prefix", target=target).values
            expected = tp.explain(net, X, method=method, layer="prefix", target=tp.targets.Classes([2, 0])).values
            torch.testing.assert_close(got, expected)

    def test_what_was_decided_for_each_sample(self, net: SplitNet) -> None:
        wanted = torch.tensor([3, 1])
        target = tp.targets.Computed(lambda output, rows: output.gather(1, wanted[rows][:, None])[:, 0])
        got = tp.explain(net, X, method="ablationcam", layer="prefix", target=target).values
        torch.testing.assert_close(got, tp.explain(net, X, method="ablationcam", layer="prefix", target=[3, 1]).values)

    @pytest.mark.parametrize(
        "function", [lambda output, rows: output.sum(), lambda output, rows: output[:1], lambda output, rows: 3.0]
    )
    def test_bad_requests(self, net: SplitNet, function: Any) -> None:
        with pytest.raises(TargetError, match="the function returned"):
            tp.explain(net, X, layer="prefix", target=tp.targets.Computed(function))
        with pytest.raises(TargetError, match="takes a function"):
            tp.explain(net, X, layer="prefix", target=tp.targets.Computed(3))  # type: ignore[arg-type]

    def test_one_that_does_not_depend_on_the_layer(self, net: SplitNet) -> None:
        constant = torch.ones(2, dtype=torch.float64, requires_grad=True)
        with pytest.raises(NotConnected):
            tp.explain(net, X, layer="prefix", target=tp.targets.Computed(lambda output, rows: constant * 2))


def test_a_question_from_a_file_cannot_be_asked_again(tmp_path: Any) -> None:
    heatmap = tp.explain(Returns(regression).double(), X, layer="conv", target=tp.targets.Output(0))
    tp.save(heatmap, tmp_path / "map.safetensors")
    with pytest.raises(TargetError, match="does not hold how to compute"):
        tp.load(tmp_path / "map.safetensors").question(X, ROWS)


Neuron = tp.targets.Neuron


def test_similarity_of_two_pictures_by_hand() -> None:
    """The gradient of the cosine of u to v: (v / |v| - cos u / |u|) / |u|."""
    model = Returns(lambda a: {"image_embeds": a.mean((2, 3)), "hidden": a}).double().eval()
    with torch.no_grad():
        other = model(X[1:])["image_embeds"]
        activation = model.conv(X[:1])
    trace = tp.trace(model, X[:1], layer="conv", target=tp.targets.Similarity(other))
    u, v = torch.nn.functional.softplus(activation).mean((2, 3))[0], other[0]
    cosine = (u @ v) / (u.norm() * v.norm())
    slope = (v / v.norm() - cosine * u / u.norm()) / u.norm()  # (4,)
    expected = slope[:, None, None] * torch.sigmoid(activation[0]) / 48  # softplus, and the mean over 8 x 6
    torch.testing.assert_close(trace.scores[0, 0], cosine)
    torch.testing.assert_close(trace.gradients[0, 0], expected)


@pytest.mark.parametrize(
    "target",
    [
        tp.targets.Output(0, part="other"),
        tp.targets.Pixels(0, torch.ones(2, 2), part="map"),
        tp.targets.Similarity(torch.ones(12), part="other"),
        tp.targets.Computed(lambda output, rows: output["other"][:, 0]),
        tp.targets.Box(),
        1,
        tp.targets.ClassLogOdds(1),
        tp.targets.Contrast(1, 2),
    ],
    ids=lambda target: type(target).__name__,
)
@pytest.mark.filterwarnings("ignore:the model turns gradients off")
def test_a_layer_that_the_score_does_not_depend_on(target: Any) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aside = nn.Conv2d(3, 12, 3, stride=4), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> dict[str, Any]:
            a, b = torch.tanh(self.used(x)), self.aside(x)
            flat, boxes = a.flatten(2).mean(2), a[:, :4].flatten(2)
            found = {"logits": flat, "other": flat, "map": a[:, :, :2, :2], "aside": b}
            if isinstance(target, tp.targets.Box):
                return {"logits": boxes.mT, "pred_boxes": boxes.mT.sigmoid(), "aside": b}
            return found

    with pytest.raises(NotConnected, match="the score does not depend on 'aside'"):
        tp.explain(Branches().double().eval(), torch.cat([X, X], dim=3), layer="aside", target=target)

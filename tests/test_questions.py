"""Scores that are not of classes, or not their logits: by hand, against finite differences, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet, SplitNet
from torchpeek.errors import AmbiguousCall, LayerNotFound, NotConnected, NotFired, Notice, TargetError

X = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ROWS = torch.arange(2)


class Returns(nn.Module):
    """A convolution, and whatever `make` makes of it."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.make = nn.Conv2d(3, 4, 3, padding=1), make

    def forward(self, x: Tensor) -> Any:
        return self.make(torch.nn.functional.softplus(self.conv(x)))


def regression(a: Tensor) -> Tensor:
    return a.square().mean((1, 2, 3))  # (N,)


def segmentation(a: Tensor) -> dict[str, Tensor]:
    return {"out": torch.tanh(a)}  # (N, 4 classes, 8, 6)


def embedding(a: Tensor) -> Tensor:
    return torch.tanh(a).flatten(2).mean(2)  # (N, 4)


def detections(a: Tensor) -> dict[str, Any]:
    return {"boxes": a.flatten(2)[..., :4], "scores": torch.sigmoid(a.amax((2, 3))), "size": 8}


MASK = torch.zeros(8, 6, dtype=torch.bool)
MASK[2:4, 1:5] = True

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


class UpTo(nn.Module):
    """What a SplitNet says at one of its layers, and nothing after it."""

    def __init__(self, net: SplitNet, layer: str) -> None:
        super().__init__()
        self.net, self.layer = net, layer

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.net.mix(self.net.prefix(x))
        return mixed if self.layer == "mix" else self.net.head(torch.tanh(mixed).flatten(1))


class Reads(nn.Module):
    """Tokens (N, 1 + 12, 4), of which the score reads the first alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(13, 13), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = torch.tanh(self.conv(x)).flatten(2).mT
        tokens = torch.cat([patches.mean(1, keepdim=True), patches], dim=1)
        return self.head(tokens + self.mixed(tokens))[:, 0]

    def mixed(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.mix(tokens.mT).mT)


Neuron = tp.targets.Neuron


class TestNeuron:
    """Against the same network cut off at the neuron's layer, of whose output the score is any function."""

    CASES = (
        (Neuron("mix", 2), lambda out: out[:, 2].mean((1, 2))),
        (Neuron("mix", [2, 0]), lambda out: out[:, [2, 0]].mean((2, 3))),
        (Neuron("mix", 5, position=(2, 1)), lambda out: out[:, 5, 2, 1]),
        (Neuron("mix", [1, 4], position=[0, 0]), lambda out: out[:, [1, 4], 0, 0]),
        (Neuron("head", torch.tensor([3, 1])), lambda out: out[:, [3, 1]]),  # type: ignore[arg-type]
    )

    @pytest.mark.parametrize(("target", "score"), CASES, ids=[str(number) for number in range(len(CASES))])
    @pytest.mark.parametrize(
        "method", ["gradcam", "layercam", "scorecam", "ablationcam", "recipro-cam", "integrated-gradcam", "shapleycam"]
    )
    @pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")
    def test_is_the_network_up_to_there(self, net: SplitNet, method: str, target: Any, score: Any) -> None:
        expected = tp.explain(
            UpTo(net, target.layer).eval(),
            X,
            method=method,
            layer="net.prefix",
            target=tp.targets.Computed(lambda output, rows: score(output)),
        )
        got = tp.explain(net, X, method=method, layer="prefix", target=target)
        torch.testing.assert_close(got.values, expected.values)
        torch.testing.assert_close(got.scores, expected.scores)
        assert got.provenance.score.startswith(f"channel of {target.layer!r}, ")

    def test_of_the_layer_itself(self, net: SplitNet) -> None:
        """The gradient of a mean over the grid is 1 / 12 everywhere: the map is the channel's own, a twelfth of it."""
        activation = net.prefix(X)
        got = tp.explain(net, X, layer="prefix", target=Neuron("prefix", [1, 3]))
        torch.testing.assert_close(got.values, activation[:, [1, 3]] / 12)
        # Without another channel it says what it did; without itself nothing.
        ablated = tp.explain(net, X, method="ablationcam", layer="prefix", target=Neuron("prefix", 1))
        torch.testing.assert_close(ablated.values, activation[:, [1]])

    def test_tokens(self) -> None:
        model = Reads().double().eval()
        x = X[:, :, :, :6]
        tokens = torch.tanh(model.conv(x)).flatten(2).mT
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        mixed = model.mix(tokens.mT)  # (N, 4, 13), which is no grid
        assert tp.trace(model, x, layer="conv", target=Neuron("conv", 2, (3, 1))).scores.flatten().tolist() == (
            model.conv(x)[:, 2, 3, 1].tolist()
        )
        said = model.head(tokens + torch.tanh(mixed).mT)  # (N, 13, 3): a class token, and a grid of 4 x 3
        trace = tp.trace(model, x, layer="conv", target=Neuron("head", [0, 2], (1, 2)))
        torch.testing.assert_close(trace.scores, said[:, 1 + 1 * 3 + 2, [0, 2]])
        means = tp.trace(model, x, layer="conv", target=Neuron("head", 1)).scores
        torch.testing.assert_close(means[:, 0], said[:, 1:, 1].mean(1))  # of the grid alone

    def test_names_are_channels(self, net: SplitNet, tmp_path: Any) -> None:
        heatmap = tp.explain(net, X, layer="prefix", target=Neuron("mix", [2, 0], (1, 1)))
        assert heatmap.provenance.score == "channel of 'mix', at 1, 1"
        assert heatmap.provenance.class_name(2) == "channel 2"
        tp.save(heatmap, tmp_path / "map.safetensors")
        assert tp.load(tmp_path / "map.safetensors").provenance == heatmap.provenance

    def test_a_trace_is_asked_again(self, net: SplitNet) -> None:
        trace = tp.trace(net, X, layer="prefix", target=Neuron("mix", 1))
        for method in ("gradcam", "ablationcam", "scorecam"):
            for target in (Neuron("mix", [0, 2], (1, 0)), 3, [[0, 1], [2, 3]]):
                got = tp.explain(trace, method=method, target=target)
                expected = tp.explain(net, X, method=method, layer="prefix", target=target)
                torch.testing.assert_close(got.values, expected.values)

    def test_which_layers_a_trace_kept(self, net: SplitNet) -> None:
        for target in (None, Neuron("head", 0)):
            trace = tp.trace(net, X, layer="prefix", target=target)
            with pytest.raises(TargetError, match=r"Neuron\('mix'\) reads a layer that this pass did not record"):
                tp.explain(trace, target=Neuron("mix", 0))

    @pytest.mark.parametrize("method", ["gradcam", "groupcam", "scorecam", "ablationcam", "recipro-cam", "eigencam"])
    @pytest.mark.parametrize(("layer", "neuron"), [("prefix", "prefix.0"), ("mix", "prefix"), ("mix", "prefix.0")])
    @pytest.mark.filterwarnings("ignore:the model turns gradients off")
    def test_not_after_the_layer_that_is_looked_at(self, net: SplitNet, method: str, layer: str, neuron: str) -> None:
        """Inside of it, or before it: whether or not the method needs gradients."""
        with pytest.raises(NotConnected, match=f"the score does not depend on '{layer}'"):
            tp.explain(net, X, method=method, layer=layer, target=Neuron(neuron, 1))

    def test_the_suggested_layer_is_not_after_it(self, net: SplitNet) -> None:
        """Whatever was suggested for another one before."""
        for layer, suggested in [("head", "mix"), ("mix", "mix"), ("prefix.0", "prefix.0"), ("head", "mix")]:
            assert tp.explain(net, X, target=Neuron(layer, 1)).provenance.layer == suggested

    @pytest.mark.parametrize(
        ("target", "error", "message"),
        [
            (Neuron("mixed"), LayerNotFound, "no layer 'mixed' in SplitNet; closest: 'mix'"),
            (
                Neuron("prefix*"),
                AmbiguousCall,
                r"'prefix\*', which selects 3 layers \('prefix', 'prefix.0', 'prefix.1'\)",
            ),
            (Neuron("mix", 6), TargetError, "no channel 6: layer 'mix' has 6, counted from 0"),
            (Neuron("mix", -1), TargetError, "no channel -1"),
            (Neuron("mix", []), TargetError, "give the index of a channel, or a list of these"),
            (Neuron("mix", True), TargetError, "give the index of a channel"),
            (Neuron("mix", "a"), TargetError, "give the index of a channel"),  # type: ignore[arg-type]
            (Neuron("mix", 0, (3, 0)), TargetError, r"position \(3, 0\): layer 'mix' has a grid of 3 x 2"),
            (Neuron("mix", 0, (-1, 0)), TargetError, "has a grid of 3 x 2, counted from 0"),
            (Neuron("mix", 0, 1), TargetError, "position 1: layer 'mix' has a grid of 3 x 2"),
            (Neuron("mix", 0, ("a", 1)), TargetError, "has a grid of 3 x 2"),  # type: ignore[arg-type]
            (Neuron("head", 0, (0,)), TargetError, "layer 'head' has no grid; leave it out"),
            (tp.targets.Contrast(Neuron("mix")), TargetError, "Contrast takes a target that names classes"),
            (tp.targets.ClassProbability(Neuron("mix")), TargetError, "ClassProbability takes a target that names"),
            (tp.targets.ClassLogOdds(Neuron("mix")), TargetError, "ClassLogOdds takes a target that names"),
        ],
    )
    def test_bad_requests(self, net: SplitNet, target: Any, error: type[Exception], message: str) -> None:
        for method in ("gradcam", "ablationcam"):
            with pytest.raises(error, match=message):
                tp.explain(net, X, method=method, layer="prefix", target=target)

    def test_a_position_of_one_axis_may_be_a_number(self) -> None:
        class Signal(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.next = nn.Conv1d(2, 3, 3, padding=1), nn.Conv1d(3, 4, 3, padding=1)

            def forward(self, x: Tensor) -> Tensor:
                return self.next(torch.tanh(self.conv(x))).mean(2)

        model, x = Signal().double().eval(), torch.randn(2, 2, 9, dtype=torch.float64)
        maps = [tp.explain(model, x, method="hirescam", layer="conv", target=Neuron("next", 3, at)) for at in (7, (7,))]
        assert torch.equal(maps[0].values, maps[1].values)
        assert not maps[0].values[..., :6].any()  # what a kernel of 3 does not reach
        assert maps[0].values[..., 6:].all()

    def test_a_layer_that_is_not_called(self, net: SplitNet) -> None:
        net.unused = nn.Conv2d(5, 6, 2).double()
        with pytest.raises(NotFired, match="layer 'unused', which the target reads, was not called"):
            tp.explain(net, X, layer="prefix", target=Neuron("unused"))


class TestWhichPart:
    """Of a container the part that is meant is found where only one makes sense, and the provenance names it."""

    @pytest.mark.parametrize(
        ("make", "target", "score"),
        [
            (lambda a: {"logits": embedding(a)}, 2, "logit, from 'logits'"),
            (lambda a: (embedding(a), 3), 2, "logit, from '0'"),
            (embedding, 2, "logit"),
            (lambda a: {"logits": embedding(a)}, tp.targets.ClassProbability(2), "probability, from 'logits'"),
            (
                lambda a: {"logits": embedding(a)},
                tp.targets.Contrast(2),
                "logit less 0.6 times the mean logit of 3 other classes, from 'logits'",
            ),
            (lambda a: {"logits": embedding(a), "x": a}, tp.targets.Output(1), "output entry, from 'logits'"),
            (
                lambda a: {"aux": a, "out": torch.tanh(a)},
                tp.targets.Pixels(),
                "mean logit of the masked pixels, from 'out'",
            ),
            (
                lambda a: {"last_hidden_state": a, "pooler_output": embedding(a)},
                tp.targets.Similarity(torch.ones(4)),
                "cosine similarity, from 'pooler_output'",
            ),
            (
                lambda a: SimpleNamespace(image_embeds=embedding(a), text_embeds=a[0, 0]),
                tp.targets.Similarity(torch.ones(4)),
                "cosine similarity, from 'image_embeds'",
            ),
        ],
    )
    def test_is_named(self, make: Callable[[Tensor], Any], target: Any, score: str, tmp_path: Any) -> None:
        for method in ("gradcam", "ablationcam"):
            heatmap = tp.explain(Returns(make).double().eval(), X, method=method, layer="conv", target=target)
            assert heatmap.provenance.score == score
        assert heatmap.values.any()

    def test_out_is_not_aux(self) -> None:
        model = Returns(lambda a: {"aux": -a, "out": a}).double().eval()
        maps = [
            tp.explain(model, X, layer="conv", target=tp.targets.Pixels(1, MASK, part=part)) for part in ("", "out")
        ]
        assert torch.equal(maps[0].values, maps[1].values)
        aux = tp.explain(model, X, layer="conv", target=tp.targets.Pixels(1, MASK, part="aux"))
        torch.testing.assert_close(aux.values, -maps[0].values)

    @pytest.mark.parametrize(
        ("make", "target", "message"),
        [
            (
                lambda a: {"a": a, "b": a},
                tp.targets.Pixels(1),
                r"the target does not name one; .* 'a' \(2, 4, 8, 6\)",
            ),
            (embedding, tp.targets.Output(0, part="1"), "returns one tensor, and no part '1'; leave part= out"),
            (lambda a: None, tp.targets.Output(0), "returned a NoneType of no floating-point tensor"),
            (lambda a: a.sum(), tp.targets.Output(0), "a Tensor of one number for all the samples"),
            (lambda a: SimpleNamespace(x="y"), tp.targets.Computed(lambda o, rows: rows), "how many there are cannot"),
            (lambda a: [{"boxes": a.flatten(2)[0, :, :4]}] * 2, None, "Box for a detector"),
            (lambda a: {"pred_boxes": a.flatten(2)[0]}, None, "Box for a detector"),
        ],
    )
    def test_bad_requests(self, make: Callable[[Tensor], Any], target: Any, message: str) -> None:
        with pytest.raises(TargetError, match=message):
            tp.explain(Returns(make).double(), X, layer="conv", target=target)

    def test_attributes_of_an_object_of_the_models_own(self) -> None:
        got = tp.explain(
            Returns(lambda a: SimpleNamespace(mine=embedding(a))).double().eval(),
            X,
            layer="conv",
            target=tp.targets.Computed(lambda output, rows: output.mine[:, 2]),
        )
        torch.manual_seed(0)
        model = Returns(lambda a: SimpleNamespace(logits=embedding(a))).double().eval()
        assert got.values.any()
        assert tp.explain(model, X, layer="conv", target=2).provenance.score == "logit, from 'logits'"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (tp.targets.Pixels(0, [[1]]), r"mask has shape \(1, 1\)"),  # type: ignore[arg-type]
        (tp.targets.Pixels(0, "mask"), "mask is a str"),  # type: ignore[arg-type]
        (tp.targets.Pixels(0, torch.full((8, 6), 0.5)), "other values than 0 and 1"),
        (tp.targets.Pixels(0, torch.full((8, 6), torch.nan)), "other values than 0 and 1"),
        (tp.targets.Pixels(0, torch.ones(2, 1, 8, 6)), r"mask has shape \(2, 1, 8, 6\)"),
        (tp.targets.Output("a", part="out"), "give the index of an entry"),  # type: ignore[arg-type]
        (tp.targets.Output(1.5, part="out"), "give the index of an entry"),  # type: ignore[arg-type]
        (tp.targets.Output(None, part="out"), "give the index of an entry"),  # type: ignore[arg-type]
        (tp.targets.Similarity(torch.ones(0, 192)), r"got shape \(0, 192\)"),
        (tp.targets.Similarity(torch.zeros(192)), "an embedding that is zero, which has no direction"),
        (tp.targets.Similarity(torch.full((192,), torch.inf)), "has NaN or infinity"),
    ],
)
def test_odd_requests(target: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        tp.explain(Returns(segmentation).double(), X, layer="conv", target=target)


def test_masks_and_entries_from_numpy() -> None:
    model = Returns(segmentation).double().eval()
    for given in (MASK.numpy(), MASK.numpy().astype("uint8"), MASK.tolist()):
        got = tp.explain(model, X, layer="conv", target=tp.targets.Pixels(1, given))
        assert torch.equal(got.values, tp.explain(model, X, layer="conv", target=tp.targets.Pixels(1, MASK)).values)
    for entries in (torch.tensor(5), torch.tensor([5]).numpy(), range(5, 6)):
        question = tp.trace(model, X, layer="conv", target=tp.targets.Output(entries)).question  # type: ignore[arg-type]
        assert question.labels.tolist() == [[5], [5]]


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


class TestOfPlacesAndSamples:
    """What is asked has to move with the samples of a list, and must not with a mirrored picture."""

    def test_a_function_is_told_the_samples_of_the_whole_list(self) -> None:
        model, x = SplitNet().double().eval(), torch.randn(4, 3, 8, 6, dtype=torch.float64)
        wanted = torch.tensor([0, 1, 2, 3])
        target = tp.targets.Computed(lambda output, rows: output[torch.arange(len(rows)), wanted[rows]])
        together = tp.explain(model, x, layer="prefix", target=target).values
        apart = tp.explain(model, [x[:1], x[1:2], x[2:]], layer="prefix", target=target)
        torch.testing.assert_close(torch.cat([each.values for each in apart]), together)
        alone = tp.targets.Computed(lambda output, rows: output[:, 3])
        torch.testing.assert_close(together[3:], tp.explain(model, x[3:], layer="prefix", target=alone).values)

    def test_in_runs_of_their_own(self) -> None:
        model = PooledNet().double().eval()
        inputs = [torch.randn(1, 3, size, size, dtype=torch.float64) for size in (6, 8, 6)]
        wanted = torch.tensor([4, 0, 2])
        target = tp.targets.Computed(lambda output, rows: output[torch.arange(len(rows)), wanted[rows]])
        for n, heatmap in enumerate(tp.explain(model, inputs, layer="act", target=target)):
            expected = tp.explain(model, inputs[n], layer="act", target=int(wanted[n])).values
            torch.testing.assert_close(heatmap.values, expected)

    def test_masks_of_each_sample_in_a_list(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)).double()
        x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
        masks = torch.rand(3, 6, 6) > 0.5
        together = tp.explain(model, x, layer="1", target=tp.targets.Pixels(1, masks)).values
        apart = tp.explain(model, [x[:2], x[2:]], layer="1", target=tp.targets.Pixels(1, masks))
        torch.testing.assert_close(torch.cat([each.values for each in apart]), together)

    def test_a_place_is_not_mirrored(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)).double()
        mask = torch.zeros(8, 8, dtype=torch.bool)
        mask[:, :2] = True
        x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
        with pytest.warns(Notice, match="not mirrored: mean logit of the masked pixels is of a place"):
            found = tp.explain(model, x, layer="1", target=tp.targets.Pixels(0, mask), smooth=tp.Smoothing())
        assert found.provenance.steps == ("the mean over inputs times 0.9, 1, 1.1",)
        gradients = tp.trace(model, x, layer="1", target=tp.targets.Pixels(0, mask)).gradients
        assert (gradients[..., 3:] == 0).all()

    @pytest.mark.parametrize("part", ["pooler_output", "image_embeds"])
    def test_an_embedding_is_no_class(self, part: str) -> None:
        with pytest.raises(TargetError, match="Similarity for an embedding"):
            tp.targets.Predicted().bind({part: torch.randn(1, 7), "last_hidden_state": torch.randn(1, 5, 7)})

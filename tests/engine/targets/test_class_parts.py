"""Class targets of models that return several tensors: which one is read, and when that has to be said."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import TargetError
from torchpeek.hooks import containers

t = tp.targets
X = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Returning(nn.Module):
    """A convolution and a linear head on its mean, and whatever `make` makes of map, features and logits."""

    def __init__(self, make: Callable[[Tensor, Tensor, Tensor], Any], classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.make = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, classes), make

    def forward(self, x: Tensor) -> Any:
        grid = torch.tanh(self.conv(x))
        features = grid.mean((2, 3))
        return self.make(grid, features, self.head(features))


def model(make: Callable[[Tensor, Tensor, Tensor], Any], classes: int = 3) -> Returning:
    return Returning(make, classes).double().eval()


def plain_gradcam(net: Returning, x: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """(N, 1, h, w): by autograd alone, of a score (N,) of the logits (N, classes)."""
    grid = net.conv(x)
    gradient = torch.autograd.grad(score(net.head(torch.tanh(grid).mean((2, 3)))).sum(), grid)[0]
    return (gradient.mean((2, 3), keepdim=True) * grid).sum(1, keepdim=True).detach()


class Fields(NamedTuple):
    features: Any
    scores: Any


@dataclass
class Record:
    features: Any
    scores: Any
    name: str = "net"


Torchvision = namedtuple("Torchvision", ["logits", "aux_logits2", "aux_logits1"])

AMBIGUOUS = {
    "one logit, features": lambda a, f, z: (z[:, 0], f),
    "column, features": lambda a, f, z: (z[:, :1], f),
    "one logit, attention": lambda a, f, z: (z[:, 0], a.mean(1).flatten(1)),
    "map, embedding": lambda a, f, z: (a, f),
    "embedding, logits": lambda a, f, z: (f, z),
    "logits, maps": lambda a, f, z: (z, a),
    "list in a list": lambda a, f, z: [z, [f, a]],
    "dict": lambda a, f, z: {"embedding": f, "class": z},
    "named tuple": lambda a, f, z: Fields(f, z),
    "dataclass": lambda a, f, z: Record(f, z),
    "dataclass in a tuple": lambda a, f, z: (Record(f, z), 3),
    "two heads": lambda a, f, z: {"student": {"logits": z}, "teacher": {"logits": -z}},
}


@pytest.mark.parametrize("make", AMBIGUOUS.values(), ids=AMBIGUOUS)
@pytest.mark.parametrize(
    "target",
    [
        None,
        0,
        t.TopClasses(1),
        [[0], [0]],
        t.ClassProbability(0),
        t.ClassLogOdds(),
        t.Contrast(0),
        t.SigmoidProbability(),
    ],
    ids=lambda each: type(each).__name__,
)
def test_more_than_one_could_be_meant(make: Any, target: Any) -> None:
    with pytest.raises(TargetError, match=r"more than one could be meant.*Choose it with part=.*\(2, .*part='"):
        tp.explain(model(make), X, layer="conv", target=target)


@pytest.mark.parametrize(
    ("make", "part", "named"),
    [
        (AMBIGUOUS["embedding, logits"], "1", "1"),
        (AMBIGUOUS["logits, maps"], "0", "0"),
        (AMBIGUOUS["list in a list"], "0", "0"),
        (AMBIGUOUS["dict"], "class", "class"),
        (AMBIGUOUS["named tuple"], "scores", "1"),
        (AMBIGUOUS["named tuple"], "1", "1"),
        (AMBIGUOUS["dataclass"], "scores", "scores"),
        (AMBIGUOUS["dataclass"], "1", "scores"),
        (AMBIGUOUS["dataclass in a tuple"], "0.scores", "0.scores"),
        (AMBIGUOUS["dataclass in a tuple"], "0.1", "0.scores"),
        (AMBIGUOUS["two heads"], "student.logits", "student.logits"),
    ],
)
def test_part_chooses(make: Any, part: str, named: str) -> None:
    net = model(make)
    expected = plain_gradcam(net, X, lambda z: z[:, 2])
    for target in (
        t.Classes([2], part=part),
        t.ClassesPerSample(torch.tensor([2, 2]), part=part),
        t.Contrast(2, strength=0.0, part=part),
        t.SigmoidLogOdds(2, part=part),
        t.SigmoidLogOdds(t.Classes([2], part=part)),
    ):
        heatmap = tp.explain(net, X, layer="conv", target=target)
        torch.testing.assert_close(heatmap.values, expected)
        assert heatmap.provenance.score.endswith(f"from {named!r}")
    best = net.head(torch.tanh(net.conv(X)).mean((2, 3))).argmax(1).tolist()
    assert tp.trace(net, X, layer="conv", target=t.Predicted(part=part)).question.labels[:, 0].tolist() == best
    assert tp.trace(net, X, layer="conv", target=t.TopClasses(1, part=part)).question.labels[:, 0].tolist() == best
    probable = tp.explain(net, X, layer="conv", target=t.ClassProbability(1, part=part)).values
    torch.testing.assert_close(probable, plain_gradcam(net, X, lambda z: z.softmax(1)[:, 1]))
    odds = tp.explain(net, X, layer="conv", target=t.ClassLogOdds(1, part=part)).values
    torch.testing.assert_close(odds, plain_gradcam(net, X, lambda z: torch.logit(z.softmax(1)[:, 1])))
    for method in ("scorecam", "ablationcam"):  # further passes read the same part
        got = tp.explain(net, X, layer="conv", method=method, target=t.Classes([2], part=part)).values
        logits_alone = model(lambda a, f, z: z)
        torch.testing.assert_close(got, tp.explain(logits_alone, X, layer="conv", method=method, target=2).values)


@pytest.mark.parametrize("make", [AMBIGUOUS["one logit, features"], AMBIGUOUS["column, features"]])
def test_one_logit(make: Any) -> None:
    net = model(make)
    for target in (t.Predicted(part="0"), t.Classes([0], part="0"), t.SigmoidLogOdds(part="0"), t.Output(part="0")):
        got = tp.explain(net, X, layer="conv", target=target).values
        torch.testing.assert_close(got, plain_gradcam(net, X, lambda z: z[:, 0]))


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda a, f, z: z, ""),
        (lambda a, f, z: (z,), "0"),
        (lambda a, f, z: [[z]], "0.0"),
        (lambda a, f, z: (z.sum(), z), "1"),
        (lambda a, f, z: (z, torch.tensor(0.7), "words", None), "0"),
        (lambda a, f, z: (z, torch.ones(7, dtype=z.dtype)), "0"),  # the same for all samples
        (lambda a, f, z: (z, z.argmax(1)), "0"),
        (lambda a, f, z: Torchvision(z, -z, 2 * z), "0"),
        (lambda a, f, z: {"logits": z, "features": f, "map": a}, "logits"),
        (lambda a, f, z: {"out": z, "aux": -z}, "out"),
        (lambda a, f, z: {"main": z, "aux": -z, "loss": z.sum(1)}, "main"),
        (lambda a, f, z: {"features": f, "head": {"logits": z}}, "head.logits"),
        (lambda a, f, z: {"pooler_output": f, "probabilities": z}, "probabilities"),
        (lambda a, f, z: {"logits_per_image": z, "logits_per_text": z.mT, "image_embeds": f}, "logits_per_image"),
        (lambda a, f, z: {"logits": z[:, 2], "features": f}, "logits"),
    ],
)
def test_exactly_one_can_be_meant(make: Any, part: str) -> None:
    net = model(make)
    single = part == "logits" and "map" not in net(X)
    heatmap = tp.explain(net, X, layer="conv", target=0 if single else 2)
    torch.testing.assert_close(heatmap.values, plain_gradcam(net, X, lambda z: z[:, 2]))
    assert heatmap.provenance.score == (f"logit, from {part!r}" if part else "logit")


def test_a_model_output_of_transformers() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    net = model(lambda a, f, z: outputs.ImageClassifierOutput(logits=z, hidden_states=(a, a), attentions=(f,)))
    heatmap = tp.explain(net, X, layer="conv", target=2)
    torch.testing.assert_close(heatmap.values, plain_gradcam(net, X, lambda z: z[:, 2]))
    by_position = tp.explain(net, X, layer="conv", target=t.Classes([2], part="0"))
    assert torch.equal(by_position.values, heatmap.values)
    assert by_position.provenance.score == "logit, from 'logits'"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (t.Predicted(part="score"), r"no tensor at 'score'; closest: 'scores'; .*'0' or 'features' \(2, 5\)"),
        (t.Classes([7], part="scores"), "the model has 3 classes"),
        (t.ClassProbability(t.Predicted(part="0"), part="1"), "give part= once"),
    ],
)
def test_bad_parts(target: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        tp.explain(model(AMBIGUOUS["named tuple"]), X, layer="conv", target=target)
    with pytest.raises(TargetError, match="leave part= out"):
        tp.explain(model(lambda a, f, z: z), X, layer="conv", target=t.Predicted(part="1"))


def test_the_part_is_not_class_logits() -> None:
    with pytest.raises(TargetError, match="and part '1' is none"):
        tp.explain(model(AMBIGUOUS["logits, maps"]), X, layer="conv", target=t.Predicted(part="1"))


def test_other_targets_know_the_names_too() -> None:
    net = model(AMBIGUOUS["named tuple"])
    by_name = tp.explain(net, X, layer="conv", target=t.Output(2, part="scores"))
    torch.testing.assert_close(by_name.values, plain_gradcam(net, X, lambda z: z[:, 2]))
    assert by_name.provenance.score == "output entry, from '1'"
    similar = t.Similarity(torch.ones(5), part="features")
    assert tp.trace(net, X, layer="conv", target=similar).question.part == "0"


def test_saved_and_loaded(tmp_path: Any) -> None:
    net = model(AMBIGUOUS["embedding, logits"])
    for target in (t.Classes([2], part="1"), t.Contrast(2, part="1"), t.SigmoidProbability(2, absent=True, part="1")):
        heatmap = tp.explain(net, X, layer="conv", target=target)
        tp.save(heatmap, tmp_path / "map.safetensors")
        question = tp.load(tmp_path / "map.safetensors").question
        assert (question.part, question.kind) == ("1", heatmap.question.kind)
        torch.testing.assert_close(question(net(X), torch.arange(2)), heatmap.scores)


def test_spellings_of_paths() -> None:
    value = {"a": Fields(X, (X, Record(X, 3))), "b": torch.max(X, 0)}
    assert containers.spellings(value) == {
        "a.0": ("a.0", "a.features"),
        "a.1.0": ("a.1.0", "a.scores.0"),
        "a.1.1.features": ("a.1.1.features", "a.1.1.0", "a.scores.1.features", "a.scores.1.0"),
        "b.0": ("b.0", "b.values"),
        "b.1": ("b.1", "b.indices"),
    }
    assert containers.spellings(X) == {"": ("",)}


def test_the_metrics_read_the_same_part() -> None:
    net = model(AMBIGUOUS["embedding, logits"])
    heatmap = tp.explain(net, X, layer="conv", target=t.Classes([2], part="1"))
    got = tp.evaluate(net, X, heatmap, metrics=["average-drop", "random-class"])
    net.make = lambda a, f, z: z
    expected = tp.evaluate(net, X, tp.explain(net, X, layer="conv", target=2), metrics=["average-drop", "random-class"])
    for name in ("average-drop", "random-class"):
        torch.testing.assert_close(got[name].values, expected[name].values)


def test_cam_reads_the_head_of_the_part() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Any:
            features = self.conv(x).mean((2, 3))
            return features, self.head(features)

    net = Head().double().eval()
    target = t.Contrast(2, [0], 0.5, part="1")
    heatmap = tp.explain(net, X, layer="conv", method="cam", target=target)
    weight = net.head.weight.detach()
    expected = torch.einsum("c,nchw->nhw", weight[2] - 0.5 * weight[0], net.conv(X).detach())
    torch.testing.assert_close(heatmap.values[:, 0], expected)


class TestPartsByNumber:
    """`part=0` is the first tensor, and not the default."""

    @pytest.mark.parametrize("make", [lambda grid, features, logits: (logits, features), lambda g, f, x: Fields(x, f)])
    @pytest.mark.parametrize(
        "target",
        [
            t.Predicted(part=0),
            t.Contrast(part=0),
            t.ClassProbability(t.Predicted(part=0)),
            t.ClassProbability(t.Predicted(), part=0),
            t.ClassProbability(t.Predicted(part="0"), part=0),
            t.Output(0, part=0),
        ],
        ids=str,
    )
    def test_number(self, make: Callable[..., Any], target: Any) -> None:
        question = target.bind(make(None, torch.randn(2, 9), torch.tensor([[0.1, 0.7, 0.2], [0.9, 0.0, 0.1]])))
        assert question.part == "0"

    def test_two_parts(self) -> None:
        with pytest.raises(TargetError, match="give part= once"):
            t.ClassProbability(t.Predicted(part=1), part=0).bind((torch.zeros(2, 3), torch.zeros(2, 4)))

    def test_the_example_of_the_error_is_the_single_number(self) -> None:
        for output in ((torch.zeros(2), torch.zeros(2, 64)), (torch.zeros(2, 64), torch.zeros(2))):
            number = str([each.ndim for each in output].index(1))
            with pytest.raises(TargetError, match=rf"Predicted\(part='{number}'\)"):
                t.Predicted().bind(output)

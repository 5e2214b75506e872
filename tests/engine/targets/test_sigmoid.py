"""Probabilities and log-odds under a sigmoid: each class by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchpeek as tp
from networks import PooledNet
from networks.split import X
from torchpeek.errors import MetricNotApplicable, TargetError

t = tp.targets


def gradcam(net: PooledNet, score: Any) -> Tensor:
    """By autograd, of a score (N,) of the logits."""
    grid = net.act(net.features(X)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(net.head(grid.mean((2, 3)))).sum(), grid)
    return (gradient.mean((2, 3), keepdim=True) * grid).sum(1, keepdim=True).detach()


CASES = [
    (t.SigmoidProbability(2), lambda z: 1 / (1 + torch.exp(-z[:, 2])), "sigmoid probability"),
    (t.SigmoidProbability(2, absent=True), lambda z: 1 / (1 + torch.exp(z[:, 2])), "sigmoid probability of absence"),
    (t.SigmoidLogOdds(2), lambda z: torch.logit(torch.sigmoid(z[:, 2])), "sigmoid log-odds"),
    (
        t.SigmoidLogOdds(t.Classes([2]), absent=True),
        lambda z: torch.logit(1 - torch.sigmoid(z[:, 2])),
        "sigmoid log-odds of absence",
    ),
    (t.SigmoidProbability([2, 2]), lambda z: torch.sigmoid(z[:, 2]), "sigmoid probability"),
    (t.SigmoidProbability(), lambda z: torch.sigmoid(z.amax(1)), "sigmoid probability"),
]


@pytest.mark.parametrize(("target", "score", "words"), CASES)
def test_is_autograd(target: Any, score: Any, words: str) -> None:
    net = PooledNet().double().eval()
    heatmap = tp.explain(net, X, layer="act", target=target)
    torch.testing.assert_close(heatmap.values, gradcam(net, score))
    torch.testing.assert_close(heatmap.scores[:, 0], score(net(X)).detach())
    assert heatmap.provenance.score == words


def test_other_classes_do_not_matter() -> None:
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    question = t.SigmoidProbability(3).bind(logits)
    (gradient,) = torch.autograd.grad(question(logits, torch.arange(2)).sum(), logits)
    assert gradient[:, [0, 1, 2, 4]].eq(0).all()
    p = torch.sigmoid(logits[:, 3]).detach()
    torch.testing.assert_close(gradient[:, 3], p * (1 - p))


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
def test_of_a_model_that_squeezes_its_logit(absent: bool, samples: int) -> None:
    class Squeezed(torch.nn.Module):
        def __init__(self, inside: torch.nn.Module) -> None:
            super().__init__()
            self.inside = inside

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x)[:, 2]  # (N,)

    net, x = PooledNet().double().eval(), torch.rand(samples, 3, 8, 8, dtype=torch.float64)
    squeezed, target = Squeezed(net), t.SigmoidProbability(absent=absent)
    for method, options in (("gradcam", {}), ("occlusion", {}), ("rise", {"samples": 5})):
        heatmap = tp.explain(squeezed, x, method=method, target=target, **options)
        plain = tp.explain(net, x, method=method, target=t.SigmoidProbability(2, absent=absent), **options)
        assert torch.equal(heatmap.values, plain.values)
        torch.testing.assert_close(heatmap.scores, (-net(x) if absent else net(x)).detach()[:, 2:3].sigmoid())
        metrics = {"deletion": {"steps": 4}, "relative-output-stability": {"samples": 2}}
        measured = tp.evaluate(squeezed, x, heatmap, metrics=metrics)
        assert torch.equal(measured["deletion"].values, tp.evaluate(net, x, plain, metrics=metrics)["deletion"].values)
    with pytest.raises(TargetError, match=r"SigmoidProbability for a single logit \(N,\)"):
        tp.explain(squeezed, x)


def test_of_one_logit() -> None:
    """A binary classifier: both sides, and no saturation of the log-odds."""
    logits = torch.tensor([[2.0], [-40.0]], dtype=torch.float64)
    rows = torch.arange(2)
    torch.testing.assert_close(t.SigmoidProbability().bind(logits)(logits, rows), logits.sigmoid())
    torch.testing.assert_close(t.SigmoidProbability(absent=True).bind(logits)(logits, rows), (-logits).sigmoid())
    assert t.SigmoidLogOdds(absent=True).bind(logits)(logits, rows).tolist() == [[-2.0], [40.0]]
    with pytest.raises(TargetError, match="SigmoidProbability"):
        t.ClassProbability().bind(logits)
    with pytest.raises(TargetError, match="SigmoidLogOdds"):
        t.ClassLogOdds().bind(logits)


def test_by_name_and_in_a_list() -> None:
    net = PooledNet().double().eval()
    loaded = tp.LoadedModel(net, tp.Preprocess(None, None), [f"class {name}" for name in "abcdefgh"][: net(X).shape[1]])
    by_name = tp.explain(loaded, X, layer="act", target=t.SigmoidProbability("class b"))
    assert torch.equal(by_name.values, tp.explain(net, X, layer="act", target=t.SigmoidProbability(1)).values)
    one, two = tp.explain(net, [X[:1], X[1:, :, :5]], layer="act", target=t.SigmoidProbability(torch.tensor([1, 2])))
    torch.testing.assert_close(one.values, tp.explain(net, X[:1], layer="act", target=t.SigmoidProbability(1)).values)
    assert two.question.labels.tolist() == [[2]]
    assert t.innermost(t.SigmoidProbability(t.TopClasses(2))) == t.TopClasses(2)


def test_cam_of_log_odds() -> None:
    net = PooledNet().double().eval()
    plain = tp.explain(net, X, layer="act", method="cam", target=2).values
    torch.testing.assert_close(tp.explain(net, X, layer="act", method="cam", target=t.SigmoidLogOdds(2)).values, plain)
    absent = tp.explain(net, X, layer="act", method="cam", target=t.SigmoidLogOdds(2, absent=True)).values
    torch.testing.assert_close(absent, -plain)


def test_metrics_take_the_probability_under_the_sigmoid() -> None:
    net = PooledNet().double().eval()
    net.head = torch.nn.Linear(net.head.in_features, 1).double()
    heatmap = tp.explain(net, X, layer="act", target=t.SigmoidLogOdds())
    measured = tp.evaluate(net, X, heatmap, metrics=["average-drop"])
    same = tp.explain(net, X, layer="act", target=t.SigmoidProbability())
    torch.testing.assert_close(
        measured["average-drop"].values, tp.evaluate(net, X, same, metrics=["average-drop"])["average-drop"].values
    )
    with pytest.raises(MetricNotApplicable, match="SigmoidProbability"):
        tp.evaluate(net, X, tp.explain(net, X, layer="act"), metrics=["average-drop"])

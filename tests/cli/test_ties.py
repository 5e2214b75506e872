"""Classes of equal scores: the lowest index is the prediction everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import torchpeek as tp
from cli_runner import run, strict
from torchpeek.explanation.predictions import Labels, picture_predictions

MODEL = """
import torch, torchpeek as tp

class Tie(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, len(logits))
        self.head.weight.data[:] = self.head.weight.data[0].clone()
        self.head.bias.data = torch.tensor(logits)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))

def made(logits):
    torch.manual_seed(0)
    names = [f"name {n}" for n in range(len(logits))]
    return tp.LoadedModel(Tie(logits), tp.Preprocess(8, (8, 8)), names)

def tie():
    return made([0.0] * 3 + [2.0] * 60)

def nearly():
    return made([0.0, 40.0, 60.0, 200.0, 200.00002])
"""


@pytest.mark.parametrize(("name", "winner"), [("tie", 3), ("nearly", 4)])
class TestPredictions:
    def test_of_cam(self, name: str, winner: int, place: Path) -> None:
        (place / "ties.py").write_text(MODEL)
        assert run("cam", "pictures/a.png", "--model", f"ties:{name}", "--out", "out") == 0
        picture = strict((place / "out" / "results.json").read_text())["pictures"][0]
        assert picture["predictions"][0]["class"] == winner
        assert [each["class"] for each in picture["maps"]] == [winner]
        assert f"name-{winner}" in picture["maps"][0]["overlay"]

    def test_of_evaluate(self, name: str, winner: int, place: Path) -> None:
        (place / "ties.py").write_text(MODEL)
        words = ["evaluate", "pictures/a.png", "--model", f"ties:{name}", "--metric", "sparseness", "--out", "out"]
        assert run(*words) == 0
        picture = strict((place / "out" / "results.json").read_text())["pictures"][0]
        assert [each["class"] for each in picture["asked"]] == [winner]

    def test_the_best_classes_begin_with_it(self, name: str, winner: int, place: Path) -> None:
        (place / "ties.py").write_text(MODEL)
        loaded = tp.load_model(f"ties:{name}")
        picture = loaded.read("pictures/a.png")
        trace = tp.trace(loaded, picture)
        top = tp.trace(loaded, picture, target=tp.targets.TopClasses(3)).question.labels[0].tolist()
        best = picture_predictions(trace, 0, picture, Labels(loaded.class_names)).best
        assert trace.question.labels[0].tolist() == [winner]
        assert top[0] == winner
        assert [each.label for each in best[:3]] == top


def test_saturated_probabilities_are_ranked_by_their_logits() -> None:
    """A sigmoid of 30 and of 40 is 1 in float32, and the classes differ."""
    logits = torch.tensor([[30.0, 40.0, 35.0]])
    target = tp.targets.SigmoidProbability(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.copy_(logits[0])
    loaded = tp.LoadedModel(network, tp.Preprocess(8, (8, 8)))
    from PIL import Image

    picture = loaded.read(Image.new("RGB", (8, 8), "red"))
    trace = tp.trace(loaded, picture, target=target, layer="0")
    best = picture_predictions(trace, 0, picture, Labels()).best
    assert [each.label for each in best] == [1, 2, 0]


def test_top_classes_of_a_long_tie_are_in_order() -> None:
    labels = tp.targets.TopClasses(40).bind(torch.zeros(2, 500)).labels
    assert labels.tolist() == [list(range(40))] * 2

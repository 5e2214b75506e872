"""torchpeek cam with --part, --score, foregrounds and dense detectors, against the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import torchpeek as tp
from cli_models import binary, dense, foreground, pooled, several
from cli_runner import run, strict

t = tp.targets


@pytest.fixture
def place(in_folder: Path) -> Path:
    """A folder with one picture, 64 x 64."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(in_folder / "a.png")
    return in_folder


def explained(name: str, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run("cam", "a.png", "--model", f"cli_models:{name}", *words, "--overwrite", "-o", "peek", "--json") == 0
    row: dict[str, Any] = strict(capsys.readouterr().out)["pictures"][0]
    return row


def check(loaded: tp.LoadedModel, target: Any, **options: Any) -> tp.Heatmap:
    expected = tp.explain(loaded, "a.png", target=target, **options)
    torch.testing.assert_close(tp.load("peek/a/gradcam.safetensors").values, expected.values)
    return expected


def test_part(place, capsys) -> None:
    assert run("cam", "a.png", "--model", "cli_models:several") == 2
    assert "--part 0" in " ".join(capsys.readouterr().err.split())
    for words, target in (
        ([], t.Predicted(part="1")),
        (["--class", "cat"], t.Classes([2], part="1")),
        (["--class", "cat", "--contrast", "2"], t.Contrast(2, 2, part="1")),
        (["--top", "2"], t.TopClasses(2, part="1")),
    ):
        row = explained("several", capsys, "--part", "1", *words)
        heatmap = check(several(), target)
        assert heatmap.provenance.score.endswith("from '1'")
    probabilities = several().module(several().read("a.png").tensor)[1].detach().softmax(1)[0]
    assert row["predictions"][0]["probability"] == pytest.approx(float(probabilities.max()))


@pytest.mark.parametrize(
    ("score", "target"),
    [
        ("probability", t.ClassProbability(2)),
        ("log-odds", t.ClassLogOdds(2)),
        ("sigmoid-probability", t.SigmoidProbability(2)),
        ("sigmoid-log-odds", t.SigmoidLogOdds(2)),
    ],
)
def test_score(score: str, target: Any, place, capsys) -> None:
    row = explained("pooled", capsys, "--class", "cat", "--score", score)
    logits = pooled().module(pooled().read("a.png").tensor)[0].detach()
    shown = logits.sigmoid() if score.startswith("sigmoid") else logits.softmax(0)
    assert row["maps"][0]["probability"] == pytest.approx(float(shown[2]))
    assert check(pooled(), target).provenance.score == score.replace("sigmoid-", "sigmoid ")


def test_score_of_one_logit(place, capsys) -> None:
    row = explained("binary", capsys, "--score", "sigmoid-probability")
    heatmap = check(binary(), t.SigmoidProbability())
    assert row["maps"][0]["probability"] == pytest.approx(float(heatmap.scores))


def test_foreground(place, capsys) -> None:
    row = explained("foreground", capsys, "--layer", "1")
    heatmap = check(foreground(), t.Pixels(), layer="1")
    share = float(heatmap.question.masks.double().mean())
    assert 0 < share < 1
    assert row["maps"][0]["share"] == pytest.approx(share)
    assert row["predictions"][0]["share"] == pytest.approx(share)


def test_a_dense_detector(place, capsys) -> None:
    row = explained("dense", capsys, "--box", "0", "--box", "1", "--layer", "stem")
    heatmap = check(dense(), t.Box([0, 1]), layer="stem")
    assert [each["class_name"] for each in row["maps"]] == [
        ["ant", "bee", "cat"][label] for label in heatmap.question.labels[0].tolist()
    ]
    assert row["maps"][0]["box"] == pytest.approx(heatmap.question.boxes[0, 0].tolist(), rel=1e-4)
    explained("dense", capsys, "--box", "0", "--class", "bee", "--layer", "stem", "--part", "0")
    check(dense(), t.Box(label="bee", part="0"), layer="stem")


def test_the_layers_of_all_scales(place, capsys) -> None:
    row = explained("dense", capsys, "--box", "0", "--box", "1", "--method", "gradcam", "--method", "refinecam")
    heatmap = check(dense(), t.Box([0, 1]))
    assert heatmap.provenance.layer == "neck.0, neck.1, neck.2"
    assert {each["layer"] for each in row["maps"] if each["method"] == "gradcam"} == {heatmap.provenance.layer}
    assert all("head" not in each["layer"] for each in row["maps"])
    explained("dense", capsys, "--box", "0", "--fuse", "mean")
    check(dense(), t.Box(), fuse="mean")
    assert "each of the 3 scales that the boxes are read from" in Path("peek/report.html").read_text()


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("pooled", ["--score", "probability", "--contrast", "2"], "give one"),
        ("foreground", ["--pixels", "--score", "probability"], "is for models that return class scores"),
        ("foreground", ["--class", "1"], "has one class, class 0"),
        ("binary", ["--score", "probability"], "SigmoidProbability"),
        ("pooled", ["--part", "scores"], "leave part= out"),
    ],
)
def test_bad_requests(name: str, words: list[str], message: str, place, capsys) -> None:
    assert run("cam", "a.png", "--model", f"cli_models:{name}", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())

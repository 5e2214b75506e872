"""The estimate of evaluate, and progress within a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import torchpeek as tp
from cli_runner import run
from networks import PooledNet
from torchpeek.cli import console
from torchpeek.cli.estimate import passes_per_picture
from torchpeek.metrics import METRICS
from torchpeek.progress import progress, reported_to

COUNTED = ["deletion", "insertion", "average-drop", "aopc", "sufficiency", "sensitivity-n", "sparseness"]


class Counting(PooledNet):
    """Counts the samples that it sees."""

    samples = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Counting.samples += len(x)  # in the class: what forward writes into the model is taken back
        return super().forward(x)


@pytest.mark.parametrize("metric", COUNTED)
@pytest.mark.parametrize(("methods", "classes"), [(["gradcam"], [0]), (["gradcam", "layercam"], [0, 2])])
def test_the_number_of_passes(metric: str, methods: list[str], classes: list[int]) -> None:
    """Counted in the model, with the clean pass and a few checks. The unchanged input needs no pass of its own."""
    torch.manual_seed(0)
    model, x = Counting().eval(), torch.rand(1, 3, 16, 16)
    heatmaps = tp.compare(model, x, methods=methods, target=[classes])
    Counting.samples = 0
    tp.evaluate(model, x, heatmaps, metrics=[metric], batch=1)
    expected = passes_per_picture({metric: {}}, len(methods), len(classes))
    assert 0.95 * expected <= Counting.samples <= expected + 3


def test_options_count() -> None:
    assert passes_per_picture({"deletion": {"steps": 10}}, 1) == 10 * 12
    assert passes_per_picture({"deletion": {"steps": 10}}, 3) == 10 * 14
    assert passes_per_picture({"deletion": {"steps": 10}, "insertion": {"steps": 5}}, 1, 2) == 15 * 24
    assert passes_per_picture({"sparseness": {}}, 1) == 0
    assert METRICS["infidelity"].shared == (
        passes_per_picture({"infidelity": {}}, 1) == passes_per_picture({"infidelity": {}}, 5)
    )


def test_it_is_said_before_the_first_picture(place: Path, capsys) -> None:
    assert run("evaluate", "pictures", "--model", "my_nets:make", "--metric", "deletion") == 0
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("evaluating 3 pictures: about 600 forward passes each, about ")
    assert err[0].endswith(" in all")
    assert err[1] == "evaluating: 1 of 3"


def test_methods_with_passes_of_their_own_are_named(place: Path, capsys) -> None:
    words = ["--method", "occlusion", "--metric", "average-drop"]
    assert run("evaluate", "pictures/a.png", "--model", "my_nets:make", *words) == 0
    assert "besides those of the methods (occlusion 1 for each window)" in capsys.readouterr().err


def test_nothing_is_said_of_metrics_without_passes(place: Path, capsys) -> None:
    assert run("evaluate", "pictures", "--model", "my_nets:make", "--metric", "sparseness") == 0
    assert "forward passes" not in capsys.readouterr().err


def test_lines_within_a_picture(capsys, monkeypatch) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    with console.progress("evaluating", 2, steps=10) as advance:
        for _ in range(2):
            with progress("changed inputs", 4) as steps:
                steps(4)
            with progress("changed inputs", 20) as steps:  # more than was estimated
                steps(20)
            advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 40 % of picture 1 of 2",
        "evaluating: 90 % of picture 1 of 2",
        "evaluating: 1 of 2",
        "evaluating: 40 % of picture 2 of 2",
        "evaluating: 90 % of picture 2 of 2",
        "evaluating: 2 of 2",
    ]


def test_a_listener_gets_all_steps() -> None:
    seen: list[int] = []
    with reported_to(seen.append), progress("one", 3) as first, progress("two", 2) as second:
        first(1)
        second(2)
    with progress("three", 2) as third:  # after the block there is no listener
        third(1)
    assert seen == [1, 2]

"""make evaluate: what is planned and kept, when it fails, and that the page has the numbers that were measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from conftest import ROOT

pytest.importorskip("timm")
pytest.importorskip("torchvision")
sys.path.append(str(ROOT / "bench"))


import leaderboard
from evaluation import page, scoring
from evaluation.models import MODELS
from evaluation.pictures import Labelled

pytestmark = pytest.mark.usefixtures("one_thread")


def photographs(count: int) -> list[Labelled]:
    return [
        Labelled(f"p{n}", Path(f"p{n}.jpg"), n // 2 * 2 if n < 2 else n, "somewhere==1", "MIT", ((0, 0, 1, 1),))
        for n in range(count)
    ]


def row_of(job: leaderboard.Job, value: float) -> dict[str, Any]:
    """As a job leaves it: gradcam better than both baselines in insertion, worse in deletion."""
    rows = [["gradcam", "insertion", value, value - 0.2, value - 0.1], ["gradcam", "deletion", value, 0.0, 0.1]]
    return {
        "key": job.key,
        "model": job.model,
        "kind": job.kind,
        "names": list(job.names),
        "rows": rows if job.kind == "photograph" else [],
        "method_seconds": {"gradcam": 0.5},
        "seconds": 1.0,
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(leaderboard, "KEPT", tmp_path / "kept.jsonl")
    monkeypatch.setattr(leaderboard, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(leaderboard, "ROOT", tmp_path)
    monkeypatch.setattr(leaderboard, "_SOURCE", ["the same"])
    monkeypatch.setattr(sys, "argv", ["leaderboard"])
    return tmp_path


def keep(photos: list[Labelled], *, failed: int = 0) -> None:
    lines = []
    for job in leaderboard.planned(photos):
        row = row_of(job, 0.5 + 0.01 * int(job.names[0][1:]))
        if job.kind == "photograph" and int(job.names[0][1:]) < failed:
            row = {**row, "failed": "broken"}
        lines.append(json.dumps(row))
    leaderboard.KEPT.write_text("\n".join(lines) + "\n")


def test_what_is_planned() -> None:
    jobs = list(leaderboard.planned(photographs(9)))
    for model in MODELS:
        of_model = [job for job in jobs if job.model == model]
        assert [job.names for job in of_model if job.kind == "dear"] == [("p0",), ("p1",), ("p2",), ("p3",)]
        assert [job.names[0] for job in of_model if job.kind == "photograph"] == [f"p{n}" for n in range(9)]
        # The first four show one class twice, which would have no cell of its own.
        assert [job.names for job in of_model if job.kind == "mosaic"] == [("p4", "p5", "p6", "p7")]
    assert len({job.key for job in jobs}) == len(jobs)


def test_every_method_is_scored_but_those_that_read_attention() -> None:
    assert set(scoring.CHEAP) | set(scoring.DEAR) == set(scoring.ALL)
    assert set(scoring.FEW) < set(scoring.CHEAP)
    assert {"gradcam", "scorecam", "sscam"} <= set(scoring.ALL)
    grouped = [name for names in page.GROUPS.values() for name in names]
    assert set(grouped) == set(page.METRICS), "each metric has its place on the page"
    assert len(grouped) == len(set(grouped))


def test_what_was_kept_is_not_done_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = photographs(20)
    monkeypatch.setattr(leaderboard, "labelled", lambda: photos)
    monkeypatch.setattr(leaderboard, "scored", None)  # whoever calls it fails
    keep(photos)
    with leaderboard.KEPT.open("a") as file:
        file.write('{"key": "cut of')  # killed as it wrote
    assert leaderboard.main() == 0
    count = len(list(leaderboard.planned(photos)))
    assert f"{count} jobs, {count} of them done before" in capsys.readouterr().out
    text = (place / "page.md").read_text()
    # 0.5, 0.51 ... 0.69: their mean is 0.595.
    line = next(line for line in text.splitlines() if line.startswith("| gradcam | 20 |"))
    deletion, insertion = line.split("|")[3:5]
    assert deletion.strip().startswith("0.595 [")
    assert deletion.strip().endswith("r c"), "higher than both baselines, where lower is better"
    assert insertion.strip().startswith("0.595 [")
    assert insertion.strip().endswith("]"), "better than both, and nothing to say"
    centre = next(line for line in text.splitlines() if line.startswith("| (centre) |"))
    assert centre.split("|")[4].strip().startswith("0.495 [")
    assert "`insertion`: all 1 methods are better than both baselines with both networks" in text
    assert "| gradcam | 1 forward, 1 backward to the layer | 0.50 |" in text


@pytest.mark.parametrize(("count", "failed", "said"), [(19, 0, "19 labelled"), (20, 1, "only 19 photographs")])
def test_it_fails_where_fewer_than_twenty_were_scored(
    count: int,
    failed: int,
    said: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = photographs(count)
    monkeypatch.setattr(leaderboard, "labelled", lambda: photos)
    monkeypatch.setattr(sys, "argv", ["leaderboard", "--page-only"])
    keep(photos, failed=failed)
    assert leaderboard.main() == 1
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    assert not (place / "page.md").exists()


def test_it_says_first_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many jobs take twice as long, and two processes half."""

    class Loaded:
        module = nn.Flatten()

    monkeypatch.setattr(leaderboard, "MODELS", {"one": Loaded})
    monkeypatch.setattr(leaderboard.time, "perf_counter", iter(range(100)).__next__)  # each measurement takes 1 s
    job = leaderboard.Job("one", "photograph", ("p0",))
    alone = leaderboard.estimated([job], 1)
    assert alone == pytest.approx(leaderboard._PASSES / 32 / 60)
    assert leaderboard.estimated([job, job], 1) == pytest.approx(2 * alone)
    assert leaderboard.estimated([job], 2) == pytest.approx(alone / 2)

"""make evaluate: which jobs it plans, what it keeps after an interrupt, when it fails, and the page it writes."""

from __future__ import annotations

import copy
import json
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paths import IMAGES

pytest.importorskip("timm")
pytest.importorskip("torchvision")
import leaderboard
from evaluation import page, scoring
from evaluation.models import MODELS, folded
from evaluation.pictures import Labelled
from real_models import lite0

pytestmark = pytest.mark.usefixtures("one_thread")


def photographs(count: int) -> list[Labelled]:
    return [
        Labelled(f"p{n}", Path(f"p{n}.jpg"), n // 2 * 2 if n < 2 else n, "somewhere==1", "MIT", ((0, 0, 1, 1),))
        for n in range(count)
    ]


def row_of(job: leaderboard.Job, value: float) -> dict[str, Any]:
    """As a job leaves it: gradcam better than both baselines in insertion, worse in deletion; sscam better in both."""
    better, cells = [value, value - 0.2, value - 0.1], [0.1, 0.2, 0.3, 0.4]
    rows = {
        "photograph": [["gradcam", "insertion", *better], ["gradcam", "deletion", value, 0.0, 0.1]],
        "expensive": [["sscam", "insertion", *better], ["sscam", "deletion", 0.0, 0.1, value]],
        "mosaic": [["gradcam", "grid-pointing-game", value + each, 0.25, 0.25] for each in cells],
    }
    return {
        "key": job.key,
        "model": job.model,
        "kind": job.kind,
        "names": list(job.names),
        "rows": rows[job.kind],
        "method_seconds": {"gradcam": 0.5} if job.kind == "photograph" else {},
        "seconds": 1.0,
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(leaderboard, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(leaderboard, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(leaderboard, "ROOT", tmp_path)
    monkeypatch.setattr(leaderboard, "_SOURCE", ["the same"])
    monkeypatch.setattr(sys, "argv", ["leaderboard"])
    return tmp_path


def keep(photos: list[Labelled], *, failed: int = 0) -> None:
    lines = []
    for job in leaderboard.all_jobs(photos, photos):
        row = row_of(job, 0.5 + 0.01 * int(job.names[0][1:]))
        if job.kind == "photograph" and int(job.names[0][1:]) < failed:
            row = {**row, "failed": "broken"}
        lines.append(json.dumps(row))
    leaderboard.RESULTS.write_text("\n".join(lines) + "\n")


def test_what_is_planned() -> None:
    jobs = list(leaderboard.all_jobs(photographs(9)[:5], photographs(9)))
    for model in MODELS:
        of_model = [job for job in jobs if job.model == model]
        assert [job.names for job in of_model if job.kind == "expensive"] == [("p0",), ("p1",), ("p2",), ("p3",)]
        assert [job.names[0] for job in of_model if job.kind == "photograph"] == [f"p{n}" for n in range(5)]
        # p0 and p1 show one class, which would have no cell of its own: four different ones, and each once.
        of_mosaics = [job.names for job in of_model if job.kind == "mosaic"]
        assert of_mosaics == [("p0", "p2", "p3", "p4"), ("p1", "p5", "p6", "p7")]
    assert len({job.key for job in jobs}) == len(jobs)


def test_every_method_is_scored_but_those_that_read_attention() -> None:
    assert set(scoring.CHEAP) | set(scoring.EXPENSIVE) == set(scoring.ALL)
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
    with leaderboard.RESULTS.open("a") as file:
        file.write('{"key": "cut of')  # killed as it wrote
    assert leaderboard.main() == 0
    count = len(list(leaderboard.all_jobs(photos, photos)))
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


def test_of_a_few_nothing_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four photographs, of which no one can tell whether a method is better: not that it is not."""
    photos = photographs(24)
    monkeypatch.setattr(leaderboard, "labelled", lambda: photos)
    keep(photos)
    assert leaderboard.main() == 0
    text = (place / "page.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| sscam | 4 |"))
    assert all(cell.strip().endswith("]") for cell in line.split("|")[3:5]), "no marks"
    said = text.partition("## What this says")[2].partition("\n## ")[0]
    assert "sscam" not in "".join(line for line in said.splitlines() if line.startswith("- `"))


def test_a_mosaic_is_one_sample(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its four cells are not independent of each other."""
    photos = photographs(24)
    monkeypatch.setattr(leaderboard, "labelled", lambda: photos)
    keep(photos)
    assert leaderboard.main() == 0
    rows = [json.loads(line) for line in leaderboard.RESULTS.read_text().splitlines()]
    mosaics = [row for row in rows if row["kind"] == "mosaic" and row["model"] == "MobileNetV2"]
    means = [sum(each[2] for each in row["rows"]) / 4 for row in mosaics]
    table = (place / "page.md").read_text().partition("shows the class")[2]
    line = next(line for line in table.splitlines() if line.startswith("| gradcam |"))
    assert line.split("|")[2].strip() == str(len(mosaics))
    assert "| p23 | 23 | somewhere==1 | MIT |" in (place / "page.md").read_text(), "it is in a mosaic alone"
    assert line.split("|")[3].strip().startswith(f"{sum(means) / len(means):.3f} [")


def test_what_was_cut_off_spoils_nothing_after_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = photographs(20)
    monkeypatch.setattr(leaderboard, "labelled", lambda: photos)
    keep(photos)
    lines = leaderboard.RESULTS.read_text().splitlines()
    leaderboard.RESULTS.write_text("\n".join([*lines[:-1], lines[-1][:20]]))

    class Pool:
        """Does what it is given at once."""

        def __init__(self, *_: object, **__: object) -> None: ...

        def submit(self, _: object, job: leaderboard.Job) -> Future[dict[str, Any]]:
            future: Future[dict[str, Any]] = Future()
            future.set_result({"rows": [], "method_seconds": {}, "seconds": 1.0})
            return future

        def shutdown(self, **_: object) -> None: ...

    monkeypatch.setattr(leaderboard, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(leaderboard, "estimated", lambda jobs, processes: 1.0)
    assert leaderboard.main() == 0
    assert leaderboard.main() == 0
    count = len(lines)
    said = capsys.readouterr().out
    assert f"{count} jobs, {count - 1} of them done before" in said
    assert f"{count} jobs, {count} of them done before" in said


@pytest.mark.parametrize("name", MODELS)
def test_folded_networks_say_the_same(name: str, request: pytest.FixtureRequest) -> None:
    """With every batch normalisation in the convolution before it, on a real photograph."""
    loaded = lite0() if name == "EfficientNet-Lite0" else request.getfixturevalue("mobilenet")
    given = loaded.read(IMAGES / "chelsea.png").tensor
    network = copy.deepcopy(loaded.module)
    with torch.no_grad():
        expected = network(given)
        found = folded(network)(given)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in network.modules())
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


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

"""torchpeek run: what it computes and says, how it goes on, and its exit status."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

import torchpeek as tp
from cli_runner import asked, environment, run

MAKE = ("--model", "my_nets:make")
HERE = ("--workers", "0", "--batch", "2")


def rows(place: str, query: str) -> list[tuple]:
    return tp.open_run(place).sql(query).fetchall()


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(*words) == 2
    return capsys.readouterr().err


def test_a_run_is_what_explain_gives(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--method", "gradcam", "--method", "layercam", "--keep", "act=whole", "--class", "cat")
    assert run("run", "pictures", *MAKE, *words, "--out", "runs/v1", *HERE) == 0
    printed = capsys.readouterr().out
    assert "3 samples computed in" in printed
    assert printed.endswith("run: runs/v1\n")
    sys.path.insert(0, str(place))
    try:
        loaded = tp.load_model("my_nets:make")
    finally:
        sys.path.remove(str(place))
    found = tp.open_run("runs/v1")
    for key in ("a.png", "b.png", "c.png"):
        direct = tp.explain(loaded, f"pictures/{key}", target="cat")
        stored = found.heatmap(key, "gradcam")
        assert torch.allclose(stored.values, direct.values, rtol=1e-3, atol=1e-6)
        assert torch.allclose(stored.scores, direct.scores)
    assert rows("runs/v1", "select distinct class from heatmaps") == [("cat",)]
    keys, values = found.activations("act")
    assert keys == ["a.png", "b.png", "c.png"]
    assert values.ndim == 4


def test_it_goes_on_and_adds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "pictures", *MAKE, "--method", "gradcam", "-o", "v1", *HERE, "--seed", "3", "--limit", "2") == 0
    assert rows("v1", "select count(*) from heatmaps") == [(2,)]
    assert run("run", "v1", *MAKE, "--workers", "0") == 0
    assert "1 samples computed" in capsys.readouterr().out
    assert rows("v1", "select count(*), count(distinct method) from heatmaps") == [(3, 1)]
    assert asked(capsys, "run", "v1", *MAKE, "--workers", "0", "--method", "layercam")["computed"] == 3
    assert rows("v1", "select count(*), count(distinct method) from heatmaps") == [(6, 2)]
    assert run("run", "v1", *MAKE, "--workers", "0") == 0
    assert "nothing to compute" in capsys.readouterr().out
    assert tp.open_run("v1").spec.seed == 3


def test_a_run_of_torchvision_knows_its_model(place: Path) -> None:
    pytest.importorskip("torchvision")
    words = ("--model", "torchvision:squeezenet1_1", "--weights", "random", "--seed", "5", "--max-size", "32")
    assert run("run", "pictures", *words, "--out", "v1", *HERE, "--limit", "1") == 0
    assert run("run", "v1", "--method", "gradcam", "--workers", "0", "--limit", "1") == 0
    assert rows("v1", "select count(*) from heatmaps") == [(1,)]


def test_code_is_imported_only_where_the_user_names_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "evil.py").write_text("open('imported', 'w')\n")
    loaded = tp.LoadedModel(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)), spec="evil:make")
    tp.run(tp.LoadedModel(_net(), tp.Preprocess(16, (16, 16)), spec="evil:make"), "pictures", "v1", workers=0, batch=2)
    assert loaded.spec == tp.open_run("v1").spec.model
    error = error_of(capsys, "run", "v1", "--method", "gradcam")
    assert "no code is imported because a run names it" in error
    assert "--model evil:make" in error
    for words in (["query", "v1", "select 1"], ["verify", "v1"]):
        assert run(*words) == 0
    assert not (place / "imported").exists()


def _net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )


def test_a_bad_picture_is_status_1_until_it_is_repaired(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = (place / "pictures" / "b.png").read_bytes()
    (place / "pictures" / "b.png").write_bytes(good[:60])
    assert run("run", "pictures", *MAKE, "--method", "gradcam", "--out", "v1", *HERE) == 1
    assert 'failed: 1; torchpeek query v1 "select * from errors" names them' in capsys.readouterr().out
    assert run("run", "v1", *MAKE, "--workers", "0") == 1  # nothing new was computed, and it still is not whole
    assert rows("v1", "select key, stage from errors") == [("b.png", "decode")]
    (place / "pictures" / "b.png").write_bytes(good)
    assert run("run", "v1", *MAKE, "--workers", "0", "--retry-failed") == 0
    assert rows("v1", "select key from heatmaps order by 1") == [("a.png",), ("b.png",), ("c.png",)]


def test_max_errors(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        (place / "pictures" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    error = error_of(capsys, "run", "pictures", *MAKE, "--out", "v1", *HERE, "--max-errors", "1")
    assert "allowed: 1 (max_errors)" in error


def test_another_model_is_status_2(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "pictures", *MAKE, "--out", "v1", *HERE) == 0
    assert "this run was made with something else" in error_of(capsys, "run", "v1", "--model", "my_nets:slow")
    error = error_of(capsys, "run", "v1", *MAKE, "--input-size", "8")
    assert "preprocess" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "no data; allowed: DATA or --data"),
        (["run", "pictures", *MAKE], "--out is required"),
        (["run", "pictures", "--out", "v1"], "--model is required for a new run"),
        (["run", "pictures", "--data", "pictures", "--out", "v1"], "allowed: one of them"),
        (["run", "nowhere", *MAKE, "--out", "v1"], "nowhere"),
        (["run", "pictures", *MAKE, "--out", "v1", "--shard", "4/4"], "allowed: 0 to 3"),
        (["run", "pictures", *MAKE, "--out", "v1", "--shard", "a"], "--shard is a; allowed: I/N"),
        (["run", "pictures", *MAKE, "--out", "v1", "--sample", "1", "--limit", "1"], "--sample and --limit"),
        (["run", "pictures", *MAKE, "--out", "v1", "--keep", "act=all"], "allowed: 'whole', 'pooled', 'token <index>'"),
        (["run", "pictures", *MAKE, "--out", "v1", "--option", "samples=8"], "there is no --method"),
        (["run", "pictures", *MAKE, "--out", "v1", "--method", "gradcan"], "gradcam"),
        (["run", "pictures", *MAKE, "--out", "v1", "--executor", "slurm"], "allowed: local, ray"),
        (["run", "pictures", *MAKE, "--out", "v1", "--class", "cow"], "cow"),
    ],
    ids=lambda each: each if isinstance(each, str) else " ".join(each[1:4]),
)
def test_wrong_use(place: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert said in error_of(capsys, *words)
    assert not (place / "v1").exists()


class TestShards:
    @pytest.mark.parametrize(
        ("variables", "said"),
        [
            ({"JOB_COMPLETION_INDEX": "{i}", "JOB_COMPLETIONS": "2", "RANK": "7"}, "JOB_COMPLETION_INDEX"),
            (
                {
                    "SLURM_ARRAY_TASK_ID": "{slurm}",
                    "SLURM_ARRAY_TASK_COUNT": "2",
                    "SLURM_ARRAY_TASK_MIN": "10",
                    "SLURM_ARRAY_TASK_STEP": "5",
                },
                "SLURM_ARRAY_TASK_ID",
            ),
            ({"RANK": "{i}", "WORLD_SIZE": "2"}, "RANK"),
        ],
        ids=["Kubernetes", "SLURM", "torchrun"],
    )
    def test_by_variables(
        self,
        place: Path,
        variables: dict[str, str],
        said: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        for number in range(4):
            Image.new("RGB", (20, 20), (number, 0, 0)).save(place / "pictures" / f"{number}.png")
        monkeypatch.setattr("torchpeek.runs.api._SECONDS", 1e-6)  # a batch is a shard
        for index in (0, 1):
            for name, text in variables.items():
                monkeypatch.setenv(name, text.format(i=index, slurm=10 + 5 * index))
            assert run("run", "pictures", *MAKE, "--method", "gradcam", "--out", "v1", *HERE) == 0
            assert f"part {index} of 2, as {said} says" in capsys.readouterr().err
            done = rows("v1", "select count(*) from heatmaps")[0][0]
            assert done == (4 if index == 0 else 7)  # shards 0 and 2, then 1 and 3

    def test_half_of_the_variables(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
        error = error_of(capsys, "run", "pictures", *MAKE, "--out", "v1")
        assert "JOB_COMPLETION_INDEX is 1, and JOB_COMPLETIONS is missing" in error
        assert run("run", "pictures", *MAKE, "--out", "v1", "--shard", "0/1", *HERE) == 0


class TestJobFiles:
    JOB = """
data = "pictures"
model = "my_nets:make"
method = ["gradcam", "smoothgradcam++"]
out = "v1"
workers = 0
batch = 2
retry_failed = false
[keep]
act = "pooled"
[option]
samples = 2
"""

    def test_it_is_the_same_as_options(self, place: Path) -> None:
        (place / "job.toml").write_text(self.JOB)
        assert run("run", "job.toml") == 0
        options = (
            "--method",
            "gradcam",
            "--method",
            "smoothgradcam++",
            "--option",
            "samples=2",
            "--keep",
            "act=pooled",
        )
        assert run("run", "pictures", *MAKE, *options, "--out", "v2", *HERE) == 0
        one, two = (sorted(path.name for path in (place / each / "groups").iterdir()) for each in ("v1", "v2"))
        assert one == two

    def test_options_win(self, place: Path) -> None:
        (place / "job.toml").write_text(self.JOB)
        assert (
            run("run", "--json", "job.toml", "-o", "v3", "--method=layercam", "--option=samples=2", "--limit", "1") == 2
        )
        (place / "job.toml").write_text(self.JOB.partition("[option]")[0])
        assert run("run", "--json", "job.toml", "-o", "v3", "--method=layercam", "--limit", "1") == 0
        assert rows("v3", "select distinct method from heatmaps") == [("layercam",)]
        assert not (place / "v1").exists()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('metod = "gradcam"', "no key 'metod'; closest: 'method'"),
            ("smooth = 1", "smooth is 1; allowed: true or false"),
            ("limit = true", "limit is True; allowed: a text, a number, or a list of these"),
            ("limit = -1", "allowed: 1 or more"),
            ("o = 'v1'", "no key 'o'"),
            ("data = ", "job.toml: no TOML"),
        ],
    )
    def test_what_is_wrong(self, place: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
        (place / "job.toml").write_text(text)
        assert said in error_of(capsys, "run", "job.toml")

    def test_no_file(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "job.toml" in error_of(capsys, "run", "job.toml")


def test_estimate_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    found = asked(capsys, "run", "pictures", *MAKE, "--method", "gradcam", "--estimate", *HERE)
    assert found["samples"] == 3
    assert found["bytes"] > 0
    assert run("run", "pictures", *MAKE, "--method", "gradcam", "--estimate", *HERE) == 0
    assert capsys.readouterr().out.startswith("3 samples: ")
    assert [path for path in sorted(place.rglob("*")) if "__pycache__" not in path.parts] == [
        path for path in before if "__pycache__" not in path.parts
    ]


def test_prometheus_and_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = asked(capsys, "run", "pictures", *MAKE, "--out", "v1", *HERE, "--prometheus", "progress.prom")
    assert {key: printed[key] for key in ("run", "samples", "computed", "failed", "shard")} == {
        "run": "v1",
        "samples": 3,
        "computed": 3,
        "failed": 0,
        "shard": None,
    }
    text = (place / "progress.prom").read_text()
    assert "torchpeek_run_samples_done_total 3\n" in text
    assert {path.name for path in place.iterdir()} >= {"progress.prom", "v1"}
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


def test_a_line_every_ten_seconds(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torchpeek.cli.run_progress._SECONDS", 0.0)
    assert run("run", "pictures", *MAKE, "--out", "v1", *HERE) == 0
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "a new run: the samples are listed, and a few batches are measured"
    assert lines[0].startswith("2 of 3 samples, ")
    assert lines[1].startswith("3 of 3 samples, ")


def test_a_bar_on_a_terminal(place: Path) -> None:
    words = ["run", "pictures", *MAKE, "--method", "scorecam", "--metric", "deletion", "--out", "v1", *HERE]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "torchpeek", *words], cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the other end is closed
        while part := os.read(ours, 65536):
            shown += part
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert out.decode().startswith("3 samples computed")
    assert "of 3 samples" in shown.decode()
    assert "changed inputs" not in shown.decode()  # a bar of the engine


def test_ctrl_c_and_the_same_command_again(place: Path) -> None:
    for number in range(12):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(place / "pictures" / f"{number}.png")
    words = [sys.executable, "-m", "torchpeek", "run", "pictures", "--model", "my_nets:slow", "--out", "v1"]
    words += ["--workers", "1", "--batch", "2", "--json"]
    options = {"cwd": place, "env": environment(), "text": True, "start_new_session": True}
    started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    deadline = time.monotonic() + 60
    while not (place / "v1" / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal sends it: to the workers, too
    out, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "error: interrupted; the same command goes on where it stopped"
    assert "Traceback" not in err
    again = subprocess.run(words, capture_output=True, **options)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["samples"] == 15
    assert not list((place / "v1").rglob(".torchpeek-*"))

"""torchpeek evaluate when something fails: requests, pictures, interrupts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli_evaluation import BOXES, EVALUATE, REGION, table
from cli_runner import asked, environment, files, of, run, strict


class TestErrors:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--metric", "deletions"], "closest: 'deletion'"),
            (["--method", "gradcan"], "closest: 'gradcam'"),
            (["--metric-option", "deletion.step=3"], "deletion.steps, deletion.baseline, insertion.steps"),
            (["--metric-option", "steps=3"], "allowed are METRIC.NAME=VALUE"),
            (["--metric-option", "deletion.steps"], "allowed are METRIC.NAME=VALUE"),
            (["--metric-option", "aopc.steps=3"], "for these metrics: deletion.steps"),
            (["--metric-option", "deletion.steps=some"], "deletion.steps='some': allowed is a number, such as 50"),
            (["--metric-option", "deletion.steps=0"], "steps is 0"),
            (["--metric-option", "deletion.baseline=red"], "'zeros'"),
            (["--metric", "sparseness", "--metric-option", "sparseness.x=3"], "none, as they have no options"),
            (["--option", "k=3"], "--option 'k=3': allowed are NAME=VALUE"),
            (["--class", "bea"], "closest: 'bee'"),
            (["--class", "9"], "0 to 4"),
            (["--layer", "acts"], "closest: 'act'"),
            (["--layout", "tokens"], "name it with --layer"),
            (["--device", "quantum"], "--device 'quantum'"),
            (["--text", "a cat"], "has no text half"),
            (["--box", "0", "--pixels"], "are for models of different kinds"),
            (["none*"], "matches no file"),
        ],
    )
    def test_are_one_line_and_exit_with_2(self, place, capsys, words, message) -> None:
        assert run("evaluate", "pictures", *of("pooled"), *words, "-o", "out") == 2
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
        assert not (place / "out").exists()

    @pytest.mark.parametrize("text", ["deletion.steps=0", "deletion.baseline=red", "insertion.steps=-3"])
    def test_values_of_options_are_checked_before_the_model_is_loaded(self, place, capsys, text: str) -> None:
        assert run("evaluate", "pictures", "--model", "no_such_module:make", "--metric-option", text) == 2
        err = capsys.readouterr().err
        name = text.partition(".")[2].partition("=")[0]
        assert err.startswith(f"error: --metric-option {text}: option {name} is")
        assert err.count("\n") == 1

    def test_values_of_options_of_methods_too(self, place, capsys) -> None:
        words = ("--model", "no_such_module:make", "--method", "rise", "--option", "samples=0")
        for command in ("cam", "evaluate"):
            assert run(command, "pictures", *words) == 2
            assert capsys.readouterr().err.startswith(
                "error: --option samples=0: option samples is 0; allowed: a whole"
            )

    def test_no_pictures(self, place, capsys) -> None:
        assert run("evaluate", *of("pooled")) == 2
        assert "no pictures; give files" in capsys.readouterr().err

    def test_a_picture_that_cannot_be_read_is_named(self, place, capsys) -> None:
        (place / "pictures" / "b.png").write_bytes(b"broken")
        assert run(*EVALUATE, "-o", "out") == 1
        captured = capsys.readouterr()
        assert "skipped pictures/b.png: not a picture" in captured.out
        assert "1 of 3 pictures skipped" in captured.out
        assert "evaluating: 3 of 3" in captured.err
        assert {row["picture"] for row in table(place / "out")} == {"pictures/a.png", "pictures/c.png"}

    @pytest.mark.parametrize("name", ["0.png", "z.png"])
    def test_a_picture_that_is_too_small_is_named(self, place, capsys, name) -> None:
        """Also if it is the first, the others are measured."""
        (place / "tiny.py").write_text(
            "import torchpeek as tp\nfrom cli_models import pooled\nmake = lambda: pooled(tp.Preprocess(None, None))"
        )
        Image.new("RGB", (6, 6), "red").save(place / "pictures" / name)
        words = ("evaluate", "pictures", "--model", "tiny:make", "--metric", "aopc", "--metric-option", "aopc.steps=2")
        assert run(*words) == 1
        assert (
            f"skipped pictures/{name}: option cells is 8; allowed: up to 6, the shortest axis"
            in capsys.readouterr().out
        )
        assert run(*words, "--metric-option", "aopc.cells=99") == 2
        err = capsys.readouterr().err
        assert "none of the 4 pictures could be used: pictures/" in err
        assert "option cells is 99; allowed: up to 30, the shortest axis" in err

    def test_preprocessing_that_fails_for_one(self, place, capsys) -> None:
        Path("fails.py").write_text(
            "from cli_models import PREPROCESS, pooled\n"
            "def some(image):\n    assert image.size[0] != 41\n    return PREPROCESS(image)\n"
            "make = lambda: pooled(some)\n"
        )
        assert run("evaluate", "pictures", "--model", "fails:make", "--metric", "sparseness") == 1
        assert "skipped pictures/b.png: AssertionError" in capsys.readouterr().out

    def test_none_can_be_read(self, place, capsys) -> None:
        for stem in "abc":
            (place / "pictures" / f"{stem}.png").write_bytes(b"broken")
        assert run(*EVALUATE, "-o", "out") == 1  # as of cam
        assert "3 of 3 pictures skipped" in capsys.readouterr().out
        assert files(place / "out") == {"report.html", "results.json"}
        written = strict((place / "out" / "results.json").read_text())
        assert (written["pictures"], written["results"]) == ([], [])

    def test_none_can_be_measured(self, place, capsys) -> None:
        """The first one's error is said, and no folder is left."""
        (place / "boxes.json").write_text(json.dumps({name: [[900, 900, 901, 901]] for name in BOXES}))
        assert run(*REGION, "--boxes", "boxes.json", "-o", "out") == 2
        err = capsys.readouterr().err
        assert "none of the 3 pictures could be used: pictures/a.png: its box" in err
        assert "lies outside of the picture" in err
        assert not (place / "out").exists()

    @pytest.mark.parametrize("words", [["-o", "out"], []])
    def test_interrupted(self, place, capsys, monkeypatch, words) -> None:
        """What was done is written, as of those pictures alone."""

        from torchpeek.cli import evaluation_run

        measure, seen = evaluation_run.evaluate, []

        def until_the_third(*given: Any, **more: Any) -> Any:
            seen.append(None)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return measure(*given, **more)

        monkeypatch.setattr(evaluation_run, "evaluate", until_the_third)
        assert run(*EVALUATE, *words) == 130
        assert "interrupted" in capsys.readouterr().err
        if not words:
            assert not (place / "out").exists()
            return
        assert files(place / "out") == {"report.html", "results.json", "results.parquet", "curves.png"}
        monkeypatch.undo()
        monkeypatch.chdir(place)
        written = strict((place / "out" / "results.json").read_text())
        assert written["not_reached"] == ["pictures/c.png"]
        alone = asked(capsys, "evaluate", "pictures/a.png", "pictures/b.png", *EVALUATE[2:])
        assert (written["results"], written["pictures"]) == (alone["results"], alone["pictures"])

    def test_interrupted_before_the_first(self, place, monkeypatch) -> None:
        def interrupted(*given: Any, **more: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr("torchpeek.cli.evaluation_run.evaluate", interrupted)
        assert run(*EVALUATE, "-o", "out") == 130
        assert not (place / "out").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c(place, sent) -> None:
    """The real thing, in a process of its own; and what a cluster sends to a job whose time is over."""
    for n in range(40):
        (place / "pictures" / f"more{n}.png").write_bytes((place / "pictures" / "a.png").read_bytes())
    words = ["evaluate", "pictures", "--model", "my_nets:slow", "--metric", "sparseness", "-o", "out"]
    command = [sys.executable, "-c", "from torchpeek.cli import main; main()", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    deadline = time.monotonic() + 120
    said = ""
    while "evaluating: 2 of" not in said and "evaluating: 4 of" not in said and time.monotonic() < deadline:
        line = process.stderr.readline()
        assert line, f"it ended: {said}"
        said += line
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not [file for file in files(place / "out") if file.startswith(".")]
    done = strict((place / "out" / "results.json").read_text())
    assert 1 <= len(done["pictures"]) < 43
    assert done["results"][0]["pictures"] == len(done["pictures"])

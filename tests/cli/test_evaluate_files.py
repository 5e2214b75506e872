"""The files that torchpeek evaluate writes: JSON, parquet and the figure."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import pytest

import torchpeek as tp
from cli_evaluation import DEFAULT, EVALUATE, FEW, METHOD, METHODS, table
from cli_runner import asked, files, of, pixels, run, strict


class TestFiles:
    def test_json_and_parquet_hold_the_same_numbers(self, place, capsys) -> None:
        printed = asked(capsys, *EVALUATE, "--class", "bee", "--class", "3", "-o", "in/out")
        out = place / "in" / "out"
        assert files(out) == {"report.html", "results.json", "results.parquet", "curves.png"}
        assert strict((out / "results.json").read_text()) == printed
        assert (printed["curves"], printed["table"]) == ("in/out/curves.png", "in/out/results.parquet")
        found = {(row["picture"], row["metric"], row["method"], row["class"]): row for row in table(out)}
        assert len(found) == len(table(out)) == 3 * len(DEFAULT) * len(METHODS) * 2
        for picture in printed["pictures"]:
            for metric, by_method in picture["values"].items():
                for (method, each), (k, what) in (
                    (pair, answer) for pair in by_method.items() for answer in enumerate(picture["asked"])
                ):
                    row = found[picture["picture"], metric, method, what["class"]]
                    assert (row["value"], row["random"]) == (each["values"][k], each["random"][k])
                    assert (row["centre"], row["score"]) == (each["centre"][k], what["score"])
                    assert row["class_name"] == what["class_name"]
                    assert row["higher_is_better"] == tp.METRICS[metric].higher_is_better
                    assert json.loads(row["options"]) == printed["about"]["metrics"][metric]["options"]
                    assert row["steps"] == DEFAULT[metric].get("steps")
                    assert (row["model"], row["seed"]) == ("cli_models:pooled", 0)
        for row in printed["results"]:
            if "curve" in row:
                of_pictures = [
                    each for each in table(out) if (each["metric"], each["method"]) == (row["metric"], row["method"])
                ]
                for name in ("curve", "random_curve", "centre_curve"):
                    mean = np.mean([each[name] for each in of_pictures], axis=0)
                    assert row[name] == pytest.approx(mean.tolist())

    def test_the_tables_header_says_what_it_hangs_on(self, place, capsys) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        about = asked(capsys, *EVALUATE, "-o", "out")["about"]
        metadata = parquet.read_schema(place / "out" / "results.parquet").metadata
        assert json.loads(metadata[b"torchpeek"]) == about

    def test_the_figure(self, place, capsys, monkeypatch) -> None:
        pytest.importorskip("matplotlib")
        drawn: list[Any] = []
        monkeypatch.setattr("torchpeek.cli.evaluate.figure_bytes", lambda figure: drawn.append(figure) or b"")
        seeds: list[int] = []

        def noted(*given: Any, seed: int, **more: Any) -> Any:
            seeds.append(seed)
            return tp.render.curves(*given, seed=seed, **more)

        monkeypatch.setattr("torchpeek.cli.evaluate.curves", noted)
        words = ("--model", "cli_models:untrained", *METHOD, *FEW, "--metric", "insertion", "--metric", "deletion")
        printed = asked(capsys, "evaluate", "pictures", *words, "-o", "out", "--metric", "sparseness", "--seed", "3")
        (figure,) = drawn
        assert seeds == [3]
        assert "random weights" in figure.get_suptitle()
        assert "seed 3" in figure.get_suptitle()
        first, second = figure.axes
        assert first.get_title(loc="left").startswith("insertion")
        assert "probability" in first.get_ylabel()
        for axes, metric in ((first, "insertion"), (second, "deletion")):
            rows = {row["method"]: row for row in printed["results"] if row["metric"] == metric}
            lines = {line.get_label().split("  ")[1]: line for line in axes.lines}
            assert set(lines) == {*METHODS, "random, baseline", "centre, baseline"}
            for name in METHODS:
                assert list(lines[name].get_ydata()) == pytest.approx(rows[name]["curve"])
                assert lines[name].get_label().startswith(f"{rows[name]['mean']:.3f} ")
            assert list(lines["random, baseline"].get_ydata()) == pytest.approx(rows["gradcam"]["random_curve"])
            legend = [text.get_text().split("  ")[1] for text in axes.get_legend().get_texts()]
            assert legend[:3] == [row["method"] for row in printed["results"] if row["metric"] == metric]

    def test_methods_on_other_grids_have_baselines_of_their_own(self, place, capsys, monkeypatch) -> None:
        pytest.importorskip("matplotlib")
        drawn: list[Any] = []
        monkeypatch.setattr("torchpeek.cli.evaluate.figure_bytes", lambda figure: drawn.append(figure) or b"")
        model = ("--model", "cli_models:convolutional", "--method", "gradcam", "--method", "fullgrad")
        assert run("evaluate", "pictures", *model, "--metric", "deletion", *FEW[:2], "-o", "out") == 0
        names = {line.get_label().split("  ")[1] for line in drawn[0].axes[0].lines}
        dashed = {f"{name} (grid of {method}), baseline" for name in ("random", "centre") for method in METHODS[:1]}
        dashed |= {f"{name} (grid of fullgrad), baseline" for name in ("random", "centre")}
        assert names == {"gradcam", "fullgrad", *dashed}
        looks = {(line.get_color(), str(line._dash_pattern)) for line in drawn[0].axes[0].lines}
        assert len(looks) == len(names), "no two look alike"

    def test_no_figure_where_nothing_is_to_be_drawn(self, place, capsys) -> None:
        assert run("evaluate", "pictures", *of("pooled"), "--metric", "average-drop", "-o", "out") == 0
        assert files(place / "out") == {"report.html", "results.json", "results.parquet"}
        assert capsys.readouterr().out.splitlines()[-2] == "written to out/: results.parquet, results.json"

    def test_the_figure_can_be_opened(self, place, capsys) -> None:
        assert run(*EVALUATE, "-o", "out") == 0
        height, width, _ = pixels(place / "out" / "curves.png").shape
        assert 1200 < width < 2000
        assert 500 < height < 1500

    @pytest.mark.parametrize(
        ("package", "extra", "left_out", "key"),
        [("pyarrow", "data", "results.parquet", "table"), ("matplotlib", "plot", "curves.png", "curves")],
    )
    def test_without_an_extra_the_rest_is_written(
        self, place, capsys, monkeypatch, package, extra, left_out, key
    ) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Hidden(package), *sys.meta_path])
        assert run(*EVALUATE, "-o", "out") == 0
        captured = capsys.readouterr()
        assert f"{left_out} is left out: {package} is not installed; next: pip install 'torchpeek[{extra}]'" in (
            captured.err.replace("\n", " ")
        )
        assert files(place / "out") == {"report.html", "results.json", "results.parquet", "curves.png"} - {left_out}
        written = strict((place / "out" / "results.json").read_text())
        assert len(written["pictures"]) == 3
        assert key not in written
        assert left_out not in captured.out

    def test_what_goes_wrong_with_the_figure_loses_no_number(self, place, capsys, monkeypatch) -> None:
        def broken(*given: Any, **more: Any) -> Any:
            raise RuntimeError("no font")

        monkeypatch.setattr("torchpeek.cli.evaluate.curves", broken)
        assert run(*EVALUATE, "-o", "out") == 2
        captured = capsys.readouterr()
        assert "no font" in captured.err
        assert "layercam  deletion" in " ".join(captured.out.split("\n")), "the table is printed"
        assert len(strict((place / "out" / "results.json").read_text())["pictures"]) == 3
        assert len(table(place / "out")) == 3 * len(METHODS) * len(DEFAULT)

    def test_overwrite(self, place, capsys) -> None:
        words = ("evaluate", "pictures/a.png", *of("pooled"), "--metric", "sparseness", "-o", "out")
        assert run(*words) == 0
        assert run(*words) == 2
        assert "'out' is not empty" in capsys.readouterr().err
        assert run(*words, "--overwrite") == 0

    def test_nothing_of_an_earlier_run_is_left(self, place, capsys) -> None:
        words = ("evaluate", "pictures/a.png", *of("pooled"), "-o", "out", "--overwrite", "--metric")
        assert run(*words, "deletion", *FEW[:2]) == 0
        (place / "out" / "mine.txt").write_text("not a result")
        assert run(*words, "sparseness") == 0
        assert files(place / "out") == {"report.html", "results.json", "results.parquet", "mine.txt"}

    def test_a_full_disk_does_not_take_the_table(self, place, capsys, monkeypatch) -> None:
        def full(*given: Any, **more: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("torchpeek.store.folder.write_whole", full)
        assert run(*EVALUATE, "-o", "out") == 2
        captured = capsys.readouterr()
        assert "error: out/results.json: cannot be written (no space left on device)" in captured.err
        assert sum(line.startswith(tuple(METHODS)) for line in captured.out.splitlines()) == len(METHODS) * len(DEFAULT)

    @pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
    def test_names_that_are_no_text(self, place, capsys) -> None:
        """Bytes that are not UTF-8, as an old disk has them."""
        pytest.importorskip("pyarrow")
        name = os.fsdecode(b"caf\xe9.png")
        (place / "pictures" / name).write_bytes((place / "pictures" / "a.png").read_bytes())
        assert run("evaluate", "pictures", *of("pooled"), "--metric", "sparseness", "-o", "out") == 0
        written = strict((place / "out" / "results.json").read_text())
        assert f"pictures/{name}" in [row["picture"] for row in written["pictures"]], "the very file"
        assert "pictures/caf\\udce9.png" in [row["picture"] for row in table(place / "out")]
        assert run("cam", "pictures", *of("pooled"), "-o", "peek") == 0
        assert "caf\\udce9.png" in capsys.readouterr().out
        assert "caf\\udce9.png" in (place / "peek" / "report.html").read_text()


class Hidden:
    """An import finder for which a package is not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

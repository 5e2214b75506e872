"""torchpeek metrics and torchpeek evaluate as a user meets them, against what the library says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import test_cli
import torchpeek as tp
from cli_fixtures import asked, files, of, pixels, pooled, strict
from conftest import IMAGES
from test_cli import run

place = test_cli.place  # the working directory, with pictures/a.png, b.png and c.png

METHODS = ["gradcam", "layercam", "eigencam"]
METHOD = tuple(word for name in METHODS for word in ("--method", name))
FEW = ("--metric-option", "deletion.steps=4", "--metric-option", "insertion.steps=3")
DEFAULT = {"deletion": {"steps": 4}, "insertion": {"steps": 3}, "average-drop": {}, "average-gain": {}}
EVALUATE = ("evaluate", "pictures", *of("pooled"), *METHOD, *FEW)
REGION = ("evaluate", "pictures", *of("pooled"), "--metric", "iou")


def measured(loaded: tp.LoadedModel, metrics: Any, file: str, seed: int = 0, **where: Any) -> Any:
    """As the library has it, of one picture."""
    target = where.pop("target", None)
    picture = loaded.read(file)
    maps = tp.compare(loaded, picture, methods=METHODS, target=target, seed=seed)
    return tp.evaluate(loaded, picture, maps, metrics=metrics, seed=seed, **where)


@pytest.fixture
def six(place: Path) -> Path:
    """As many pictures as it takes to tell what is better."""
    for n, stem in enumerate("def"):
        noise = np.random.default_rng(n).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((48, 36)).save(place / "pictures" / f"{stem}.png")
    return place


def lists(tensor: torch.Tensor) -> list[float]:
    return tensor.double().tolist()


def table(folder: Path) -> list[dict[str, Any]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_table(folder / "results.parquet").to_pylist()


class TestMetrics:
    def test_table(self, capsys) -> None:
        assert run("metrics") == 0
        lines = capsys.readouterr().out.splitlines()[1:]
        assert [line.split()[:3] for line in lines] == [
            [each.name, "higher" if each.higher_is_better else "lower", each.needs] for each in tp.METRICS.values()
        ]
        for line, each in zip(lines, tp.METRICS.values(), strict=True):
            assert each.cost() in line
            assert each.paper in line
            assert line.endswith(each.summary)

    def test_json(self, capsys) -> None:
        assert run("metrics", "--json") == 0
        printed = strict(capsys.readouterr().out)
        assert [each["name"] for each in printed] == list(tp.METRICS)
        for row, each in zip(printed, tp.METRICS.values(), strict=True):
            assert row["options"] == dict(each.options)
            assert (row["needs"], row["cost"]) == (each.needs, each.cost())
            assert (row["higher_is_better"], row["paper"]) == (each.higher_is_better, each.paper)
            assert row["summary"] == each.summary


class TestNumbers:
    def test_they_are_those_of_the_library(self, six, capsys) -> None:
        printed = asked(capsys, *EVALUATE, "--seed", "3")
        parts = [measured(pooled(), DEFAULT, f"pictures/{stem}.png", seed=3) for stem in "abcdef"]
        assert [row["picture"] for row in printed["pictures"]] == [f"pictures/{stem}.png" for stem in "abcdef"]
        for row, part in zip(printed["pictures"], parts, strict=True):
            assert list(row["values"]) == list(DEFAULT)
            for metric, by_method in row["values"].items():
                assert by_method == {
                    method: {
                        "values": lists(part[method][metric].values[0]),
                        "random": lists(part[method][metric].baselines["random"][0]),
                        "centre": lists(part[method][metric].baselines["centre"][0]),
                    }
                    for method in METHODS
                }
        together = {name: tp.metrics.joined([part[name] for part in parts]) for name in METHODS}
        assert len(printed["results"]) == len(METHODS) * len(DEFAULT)
        for row in printed["results"]:
            each = together[row["method"]][row["metric"]]
            mean, low, high, pictures = each.interval()
            assert (row["mean"], row["low"], row["high"], row["pictures"]) == (mean, low, high, 6)
            assert pictures == 6
            for name in ("random", "centre"):
                assert row[name] == pytest.approx(float(each.baselines[name].double().mean()))
                ahead = each.ahead_of(name)
                assert list(row["ahead_of"][name].values()) == [ahead.mean, ahead.low, ahead.high, 6]
                assert (name in row["better_than"]) == each.beats(name)
            if each.curve is not None:
                assert row["curve"] == pytest.approx(lists(each.curve[:, 0].mean(0)), rel=1e-6)
                assert len(row["curve"]) == DEFAULT[row["metric"]]["steps"] + 1

    def test_what_they_hang_on(self, place, capsys) -> None:
        about = asked(capsys, *EVALUATE, "--seed", "3")["about"]
        assert about["model"] == "cli_fixtures:pooled"
        assert about["weights"] == "the model's own"
        assert about["layer"].startswith("act (")
        assert about["seed"] == 3
        assert list(about["methods"]) == METHODS
        assert about["metrics"]["deletion"] == {
            "higher_is_better": False,
            "options": {"steps": 4, "baseline": "zeros"},
        }
        assert about["metrics"]["insertion"]["options"] == {"steps": 3, "baseline": "blur"}
        for version in (f"torch {torch.__version__}", f"torchpeek {tp.__version__}"):
            assert version in about["computed"]

    def test_the_seed_counts(self, place, capsys) -> None:
        first, second = (asked(capsys, *EVALUATE, "--seed", seed)["pictures"][0]["values"] for seed in "01")
        for method in METHODS:
            assert first["deletion"][method]["random"] != second["deletion"][method]["random"]

    def test_what_is_asked(self, place, capsys) -> None:
        printed = asked(capsys, *EVALUATE, "--class", "bee", "--class", "3")
        row = printed["pictures"][1]
        assert [each["class_name"] for each in row["asked"]] == ["bee", "dog"]
        part = measured(pooled(), DEFAULT, "pictures/b.png", target=[[1, 3]])
        scores = tp.explain(pooled(), "pictures/b.png", target=[[1, 3]]).scores
        assert [each["score"] for each in row["asked"]] == pytest.approx(scores[0].tolist())
        values = row["values"]["insertion"]["layercam"]["values"]
        assert values == lists(part["layercam"]["insertion"].values[0])
        assert values[0] != values[1]

    def test_all_metrics(self, place, capsys) -> None:
        printed = asked(capsys, "evaluate", "pictures/a.png", *of("pooled"), "--metric", "all")
        alone = {name for name, each in tp.METRICS.items() if each.needs in ("heatmap", "passes")}
        assert set(printed["about"]["metrics"]) == alone
        assert {row["metric"] for row in printed["results"]} == alone
        assert "iou" not in alone

    def test_metrics_that_ask_the_method_again(self, place, capsys) -> None:
        options = ("max-sensitivity.samples=2", "randomisation.stages=2")
        words = [word for each in options for word in ("--metric", each.split(".")[0], "--metric-option", each)]
        printed = asked(capsys, "evaluate", "pictures/a.png", *of("pooled"), *METHOD, *words, "--metric", "adcc")
        metrics = {"max-sensitivity": {"samples": 2}, "randomisation": {"stages": 2}, "adcc": {}}
        part = measured(pooled(), metrics, "pictures/a.png")
        values = printed["pictures"][0]["values"]
        assert list(values) == list(metrics)
        for metric, method in ((metric, method) for metric in metrics for method in METHODS):
            assert values[metric][method]["values"] == lists(part[method][metric].values[0])

    def test_options_of_methods(self, place, capsys) -> None:
        words = ("evaluate", "pictures/a.png", *of("pooled"), "--method", "fem", "--metric", "sparseness")
        plain, wide = (asked(capsys, *words, *more) for more in ([], ["--option", "k=0.5"]))
        assert wide["about"]["methods"] == {"fem": {"k": 0.5}}
        assert plain["results"][0]["mean"] != wide["results"][0]["mean"]

    @pytest.mark.parametrize(
        ("model", "words", "names"),
        [
            ("queries", ["--box", "0", "--box", "1"], 2),
            ("listing", [], 1),
            ("segmenter", ["--pixels"], 1),
            ("embedder", ["--text", "cat", "--text", "a dog"], 2),
            ("attentive", ["--method", "rollout", "--method", "gradcam"], 1),
            ("convolutional", ["--method", "polycam", "--method", "gradcam"], 1),
        ],
    )
    def test_models_of_other_kinds(self, place, capsys, model, words, names) -> None:
        noise = np.random.default_rng(0).integers(100, 255, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save("pictures/a.png")
        metrics = ("--metric", "deletion", "--metric", "sparseness", *FEW[:2])
        base = ("evaluate", "pictures/a.png", "--model", f"test_cli_kinds:{model}")
        printed = asked(capsys, *base, *metrics, *words, "-o", "out")
        values = printed["pictures"][0]["values"]["deletion"]
        assert all(len(each["values"]) == names for each in values.values())
        assert len(printed["pictures"][0]["asked"]) == names
        assert (place / "out" / "curves.png").is_file()

    @pytest.mark.parametrize("words", [[], ["--metric", "all"]])
    def test_metrics_of_probabilities_are_left_out_where_none_is_asked(self, place, capsys, words) -> None:
        """Unless they are asked for by name: then that is said before any picture is measured."""
        base = ("evaluate", "pictures", "--model", "test_cli_kinds:embedder", "--text", "cat", *FEW[:2])
        few = ("--metric-option", "aopc.steps=2", "--metric-option", "mufidelity.samples=4") if words else ()
        more = ("--metric-option", "infidelity.samples=4") if words else ("--metric-option", "insertion.steps=3")
        assert run(*base, *words, *few, *more, "--json") == 0
        captured = capsys.readouterr()
        done = {row["metric"] for row in strict(captured.out)["results"]}
        assert {"deletion", "insertion"} <= done
        assert not {"average-drop", "average-gain"} & done
        assert captured.err.count("left out: average-drop is of probabilities, and what is asked here is none") == 1
        assert run(*base, "--metric", "deletion", "--metric", "average-gain", "-o", "out") == 2
        assert "average-gain is of probabilities" in capsys.readouterr().err
        assert not (place / "out").exists()

    def test_no_metric_is_left(self, place, capsys) -> None:
        Path("one.py").write_text(
            "import torch, torchpeek as tp\nfrom torch import nn\nfrom cli_fixtures import PREPROCESS\n"
            "layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)\n"
            "make = lambda: tp.LoadedModel(nn.Sequential(*layers), PREPROCESS)\n"
        )
        assert run("evaluate", "pictures", "--model", "one:make", "-o", "out") == 2
        assert "the model has one logit" in capsys.readouterr().err
        assert not (place / "out").exists()

    def test_all_options_of_a_method_are_said(self, place, capsys) -> None:
        words = ("evaluate", "pictures/a.png", *of("pooled"), "--method", "fem", "--metric", "sparseness")
        assert asked(capsys, *words)["about"]["methods"] == {"fem": {"k": 2.0}}


class TestPrinted:
    def test_the_best_first(self, six, capsys) -> None:
        assert run(*EVALUATE) == 0
        out = capsys.readouterr().out
        parts = [measured(pooled(), DEFAULT, f"pictures/{stem}.png") for stem in "abcdef"]
        together = {name: tp.metrics.joined([part[name] for part in parts]) for name in METHODS}
        expected = []
        for metric in DEFAULT:
            means = {name: each[metric].interval().mean for name, each in together.items()}
            best = sorted(METHODS, key=means.__getitem__, reverse=tp.METRICS[metric].higher_is_better)
            expected += [tp.metrics.row(name, together[name][metric]) for name in best]
        lines = out.splitlines()
        assert tuple(lines[0].split("  ")[0:1]) == ("method",)
        assert [" ".join(line.split()) for line in lines[1:13]] == [" ".join(cells) for cells in expected]
        assert "6 pictures, seed 0" in lines[14]
        for metric, line in zip(DEFAULT, lines[15:], strict=False):
            each = {name: found[metric] for name, found in together.items()}
            parts_of_line = []
            for baseline, words in (("random", "a random heatmap"), ("centre", "a centred Gaussian")):
                rows = [cells[0] for cells in expected if cells[1] == metric]
                worse = [name for name in rows if not each[name].beats(baseline)]
                parts_of_line += [f"not better than {words}: {', '.join(worse)}"] if worse else []
            assert parts_of_line
            assert line == f"{metric}: {'; '.join(parts_of_line)}"
        assert "model: cli_fixtures:pooled" in out
        assert "layer: act (" in out

    def test_methods_that_are_better(self, capsys) -> None:
        """Neither too few samples nor NaN count as better."""
        from torchpeek.metrics.verdicts import Verdicts

        def found(values: list[float], metric: str = "insertion") -> tp.Measurement:
            baseline = torch.full((len(values), 1), 0.5)
            return tp.Measurement(metric, torch.tensor([values]).T, True, {"random": baseline, "centre": baseline * 2})

        good, bad, none = [0.7, 0.8, 0.9] * 2, [0.1, 0.2, 0.3] * 2, [float("nan")] * 6
        nearly, other = [0.9] * 5 + none[:1], [1.2, 1.3, 1.4] * 2
        by_method = {
            name: tp.Measurements(name, {"insertion": found(a), "iou": found(b, "iou"), "entropy": found(c, "entropy")})
            for name, a, b, c in (("x", bad, nearly, other), ("y", good, nearly, other), ("z", none, nearly, other))
        }
        verdicts = Verdicts.of(by_method)
        assert list(verdicts.by_metric["insertion"]) == ["y", "x", "z"]
        assert list(verdicts.sentences()) == [
            "insertion, defined for 0 to 6 of 6 pictures: not better than a random heatmap: x; not better than a "
            "centred Gaussian: y, x; of fewer than 6 nothing can be said of significance: z",
            "iou, defined for 5 of 6 pictures: of fewer than 6 nothing can be said of significance: x, y, z",
            "entropy: each method is better than a random heatmap and than a centred Gaussian",
        ]
        del by_method["z"]
        (first, *_) = Verdicts.of(by_method).sentences()
        assert first == "insertion: not better than a random heatmap: x; not better than a centred Gaussian: y, x"

    def test_one_picture(self, place, capsys) -> None:
        assert run("evaluate", "pictures/a.png", *of("pooled"), "--metric", "sparseness") == 0
        out = capsys.readouterr().out
        assert "\n1 picture, seed 0\nof fewer than 6 pictures nothing can be said of significance" in out
        assert "too few to tell" in out
        assert "not better" not in out
        printed = asked(capsys, "evaluate", "pictures/a.png", *of("pooled"), "--metric", "sparseness")
        assert printed["results"][0]["better_than"] is None
        assert printed["results"][0]["low"] == "nan"

    def test_a_few_pictures(self, place, capsys) -> None:
        assert run(*EVALUATE) == 0
        out = capsys.readouterr().out
        assert "3 pictures, seed 0; in brackets the 95 % interval" in out
        assert "of fewer than 6 pictures nothing can be said of significance" in out
        assert "not better" not in out
        assert {row["better_than"] for row in asked(capsys, *EVALUATE)["results"]} == {None}


class TestFiles:
    def test_json_and_parquet_hold_the_same_numbers(self, place, capsys) -> None:
        printed = asked(capsys, *EVALUATE, "--class", "bee", "--class", "3", "-o", "in/out")
        out = place / "in" / "out"
        assert files(out) == {"results.json", "results.parquet", "curves.png"}
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
                    assert (row["model"], row["seed"]) == ("cli_fixtures:pooled", 0)
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
        words = ("--model", "cli_fixtures:untrained", *METHOD, *FEW, "--metric", "insertion", "--metric", "deletion")
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
        model = ("--model", "test_cli_kinds:convolutional", "--method", "gradcam", "--method", "fullgrad")
        assert run("evaluate", "pictures", *model, "--metric", "deletion", *FEW[:2], "-o", "out") == 0
        names = {line.get_label().split("  ")[1] for line in drawn[0].axes[0].lines}
        dashed = {f"{name} (grid of {method}), baseline" for name in ("random", "centre") for method in METHODS[:1]}
        dashed |= {f"{name} (grid of fullgrad), baseline" for name in ("random", "centre")}
        assert names == {"gradcam", "fullgrad", *dashed}
        looks = {(line.get_color(), str(line._dash_pattern)) for line in drawn[0].axes[0].lines}
        assert len(looks) == len(names), "no two look alike"

    def test_no_figure_where_nothing_is_to_be_drawn(self, place, capsys) -> None:
        assert run("evaluate", "pictures", *of("pooled"), "--metric", "average-drop", "-o", "out") == 0
        assert files(place / "out") == {"results.json", "results.parquet"}
        assert capsys.readouterr().out.splitlines()[-1] == "written to out/: results.parquet, results.json"

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
        assert files(place / "out") == {"results.json", "results.parquet", "curves.png"} - {left_out}
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
        assert files(place / "out") == {"results.json", "results.parquet", "mine.txt"}

    def test_a_full_disk_does_not_take_the_table(self, place, capsys, monkeypatch) -> None:
        def full(*given: Any, **more: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("torchpeek.store.folder.write_whole", full)
        assert run(*EVALUATE, "-o", "out") == 2
        captured = capsys.readouterr()
        assert "No space left" in captured.err
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


BOXES = {"a.png": [[5, 5, 20, 20], [25, 10, 33, 25]], "b.png": [[12, 3, 30, 28]], "c.png": [[0, 0, 42, 30]]}


class TestRegions:
    def test_boxes(self, place, capsys) -> None:
        named = {**BOXES, "./pictures/b.png": [[20, 3, 30, 28]], "another.png": [[0, 0, 1, 1]]}
        (place / "boxes.json").write_text(json.dumps(named))
        words = ("--metric", "energy-pointing-game", "--metric", "deletion", *FEW[:2], "--boxes", "boxes.json")
        printed = asked(capsys, *REGION, *METHOD, *words, "-o", "out")
        assert printed["about"]["regions"] == "boxes.json"
        metrics = {"iou": {}, "energy-pointing-game": {}, "deletion": {"steps": 4}}
        for row, stem in zip(printed["pictures"], "abc", strict=True):
            boxes = [named["./pictures/b.png"] if stem == "b" else BOXES[f"{stem}.png"]]  # a path counts more
            part = measured(pooled(), metrics, f"pictures/{stem}.png", boxes=boxes)
            for metric, method in ((metric, method) for metric in metrics for method in METHODS):
                assert row["values"][metric][method]["values"] == lists(part[method][metric].values[0])

    def test_masks(self, place, capsys) -> None:
        (place / "masks").mkdir()
        expected = {}
        for stem, mode in zip("abc", ("L", "1", "RGB"), strict=True):
            with Image.open(f"pictures/{stem}.png") as image:
                mask = torch.zeros(image.height, image.width, dtype=torch.bool)
            mask[6:19, 9:30] = True
            drawn = Image.fromarray(mask.numpy().astype(np.uint8) * (1 if stem == "a" else 255))  # 1 is not black
            drawn.convert(mode).save(f"masks/{stem}.bmp")
            expected[stem] = measured(pooled(), ["iou"], f"pictures/{stem}.png", masks=mask.unsqueeze(0))
        printed = asked(capsys, *REGION, *METHOD, "--masks", "masks")
        for row, stem in zip(printed["pictures"], "abc", strict=True):
            for method in METHODS:
                assert row["values"]["iou"][method]["values"] == lists(expected[stem][method]["iou"].values[0])

    def test_a_picture_without_an_object(self, place, capsys) -> None:
        """Its value is NaN in JSON, null in parquet, and it does not count."""
        (place / "boxes.json").write_text(json.dumps({**BOXES, "b.png": []}))
        printed = asked(capsys, *REGION, "--boxes", "boxes.json", "-o", "out")
        assert printed["pictures"][1]["values"]["iou"]["gradcam"]["values"] == ["nan"]
        assert [row["value"] is None for row in table(place / "out")] == [False, True, False]
        assert printed["results"][0]["pictures"] == 2

    @pytest.mark.parametrize(
        ("boxes", "why"),
        [
            ({"a.png": BOXES["a.png"], "c.png": BOXES["c.png"]}, "boxes.json does not say where its object is"),
            (BOXES | {"b.png": [[41, 3, 50, 9]]}, "[41.0, 3.0, 50.0, 9.0] lies outside of the picture, which is 41 x"),
        ],
    )
    def test_a_picture_whose_boxes_are_missing_or_wrong_is_named(self, place, capsys, boxes, why) -> None:
        (place / "boxes.json").write_text(json.dumps(boxes))
        assert run(*REGION, "--boxes", "boxes.json", "-o", "out") == 1
        out = capsys.readouterr().out
        assert "skipped pictures/b.png: " in out
        assert why in out
        assert "1 of 3 pictures skipped" in out
        written = strict((place / "out" / "results.json").read_text())
        assert list(written["skipped"]) == ["pictures/b.png"]
        assert [row["picture"] for row in written["pictures"]] == ["pictures/a.png", "pictures/c.png"]

    def test_a_name_alone_is_no_path(self, place, capsys) -> None:
        """Two pictures of one name, one of which lies where the command runs: neither gets the other's box."""
        (place / "a.png").write_bytes((place / "pictures" / "a.png").read_bytes())
        words = ("evaluate", "a.png", "pictures/a.png", *REGION[2:], "--boxes", "boxes.json")
        (place / "boxes.json").write_text(json.dumps(BOXES))
        assert run(*words) == 2
        assert "2 pictures are called 'a.png'" in capsys.readouterr().err
        both = {"./a.png": BOXES["a.png"], str(place / "pictures" / "a.png"): [[0, 0, 3, 3]]}
        (place / "boxes.json").write_text(json.dumps(both))
        first, second = (row["values"]["iou"]["gradcam"]["values"] for row in asked(capsys, *words)["pictures"])
        assert first != second, "the same picture, with boxes of its own each"

    def test_the_pictures_are_not_their_masks(self, place, capsys) -> None:
        assert run(*REGION, "--masks", "pictures") == 2
        assert "has a.png itself, and not its mask" in capsys.readouterr().err

    def test_where_nobody_knows_what_the_model_was_shown(self, place, capsys) -> None:
        Path("cropping.py").write_text(
            "import torch\nfrom cli_fixtures import pooled\n"
            "def crop(image): return torch.rand(3, 16, 16)\nmake = lambda: pooled(crop)\n"
        )
        (place / "boxes.json").write_text(json.dumps(BOXES))
        words = ("evaluate", "pictures", "--model", "cropping:make", "--metric", "iou", "--boxes", "boxes.json")
        assert run(*words) == 0
        assert capsys.readouterr().err.count("its preprocessing does not say") == 1

    def test_a_photograph_that_was_taken_sideways(self, place, capsys) -> None:
        """Boxes are of the upright picture, whatever the file's own axes are."""
        (place / "boxes.json").write_text(json.dumps(BOXES))
        words = ("evaluate", "pictures/b.png", *REGION[2:], "--boxes", "boxes.json")
        upright = asked(capsys, *words)["pictures"][0]["values"]
        with Image.open("pictures/b.png") as image:
            exif = image.getexif()
            exif[0x0112] = 6  # to be turned by 90 degrees clockwise
            image.transpose(Image.Transpose.ROTATE_90).save("pictures/b.png", exif=exif)
        assert asked(capsys, *words)["pictures"][0]["values"] == upright

    def test_masks_that_do_not_fit(self, place, capsys) -> None:
        (place / "masks").mkdir()
        for stem, size in (("a", (40, 30)), ("b", (40, 30))):  # b.png is 41 pixels wide
            Image.new("L", size, 255).save(f"masks/{stem}.png")
        assert run(*REGION, "--masks", "masks") == 1
        out = capsys.readouterr().out
        assert "skipped pictures/b.png: its mask masks/b.png is 40 x 30, and the picture 41 x 30" in out
        assert "skipped pictures/c.png: masks does not say where its object is" in out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "iou needs the region of the object; give it with --boxes FILE or --masks FOLDER"),
            (["--metric", "pointing-game"], "iou, pointing-game need the region of the object"),
            (["--boxes", "boxes.json", "--masks", "masks"], "--boxes and --masks both say"),
            (["--boxes", "none.json"], "none.json: cannot be opened (no such file"),
            (["--boxes", "text.json"], "text.json: not JSON"),
            (["--boxes", "list.json"], "list.json: a JSON list; allowed: {"),
            (["--boxes", "flat.json"], "flat.json: the boxes of 'a.png' are [1, 2, 3, 4]; allowed: a list of [left"),
            (["--boxes", "turned.json"], "turned.json: the boxes of 'b.png' are [[9, 2, 3, 4]]"),
            (["--boxes", "other.json"], "has none of the 3 pictures, such as 'a.png'; it has 'x.png', 'y.png'"),
            (["--boxes", "empty.json"], "it has none at all"),
            (["--boxes", "boxes.json", "more"], "2 pictures are called 'a.png'"),
            (["--masks", "masks", "more"], "2 pictures are called 'a'"),
            (["--masks", "nothing"], "nothing: no folder"),
            (["--masks", "bare"], "bare: no pictures in this folder"),
            (["--masks", "strange"], "has a mask of none of the 3 pictures, such as 'a'; it has 'x'"),
            (["--masks", "twice"], "a.bmp, a.png are all masks of a.png"),
        ],
    )
    def test_mistakes(self, place, capsys, words, message) -> None:
        given = {"boxes": BOXES, "list": [], "flat": {"a.png": [1, 2, 3, 4]}, "turned": {"b.png": [[9, 2, 3, 4]]}}
        given |= {"other": {"x.png": [], "y.png": []}, "empty": {}}
        for name, value in given.items():
            (place / f"{name}.json").write_text(json.dumps(value))
        (place / "text.json").write_text("a.png 1 2 3 4")
        for folder, names in {
            "bare": [],
            "more": ["a.png"],
            "masks": ["a.png"],
            "strange": ["x.png"],
            "twice": ["a.png", "a.bmp"],
        }.items():
            (place / folder).mkdir()
            for name in names:
                Image.new("L", (40, 30)).save(place / folder / name)
        assert run(*REGION, *words, "-o", "out") == 2
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
        assert not (place / "out").exists()

    def test_regions_that_no_metric_asks_for(self, place, capsys) -> None:
        (place / "boxes.json").write_text(json.dumps(BOXES))
        assert run(*EVALUATE, "--boxes", "boxes.json") == 2
        assert (
            "--boxes is for metrics that need the region of the object, and --metric names none"
            in capsys.readouterr().err
        )


class TestMistakes:
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
            "import torchpeek as tp\nfrom cli_fixtures import pooled\nmake = lambda: pooled(tp.Preprocess(None, None))"
        )
        Image.new("RGB", (6, 6), "red").save(place / "pictures" / name)
        words = ("evaluate", "pictures", "--model", "tiny:make", "--metric", "aopc", "--metric-option", "aopc.steps=2")
        assert run(*words) == 1
        assert f"skipped pictures/{name}: option cells is 8; an input of 6 x 6" in capsys.readouterr().out
        assert run(*words, "--metric-option", "aopc.cells=99") == 2
        err = capsys.readouterr().err
        assert "none of the 4 pictures could be used: pictures/" in err
        assert "option cells is 99; an input of 30 x 40" in err

    def test_preprocessing_that_fails_for_one(self, place, capsys) -> None:
        Path("fails.py").write_text(
            "from cli_fixtures import PREPROCESS, pooled\n"
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
        assert files(place / "out") == {"results.json"}
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
        assert files(place / "out") == {"results.json", "results.parquet", "curves.png"}
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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    said = ""
    while "evaluating: 2 of" not in said and "evaluating: 4 of" not in said and time.monotonic() < deadline:
        line = process.stderr.readline()
        assert line, f"it ended: {said}"
        said += line
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not [file for file in files(place / "out") if file.startswith(".")]
    done = strict((place / "out" / "results.json").read_text())
    assert 1 <= len(done["pictures"]) < 43
    assert done["results"][0]["pictures"] == len(done["pictures"])


def test_real_weights(mobilenet, tmp_path, capsys) -> None:
    """On photographs of which much is known: heatmaps are better than nothing where the object is put back."""
    options = [word for name in ("deletion", "insertion") for word in ("--metric-option", f"{name}.steps=8")]
    methods = ("--method", "gradcam", "--method", "layercam")
    words = (*methods, *options, "--out", str(tmp_path / "out"))
    assert run("evaluate", str(IMAGES), "--model", "torchvision:mobilenet_v2", *words, "--json") == 0
    printed = strict(capsys.readouterr().out)
    assert [each["asked"][0]["class_name"] for each in printed["pictures"]] == [
        "Egyptian cat",
        "espresso",
        "drilling platform",
    ]
    for row in printed["results"]:
        if row["metric"] == "insertion":
            assert row["mean"] > max(row["random"], row["centre"])
            assert row["curve"][-1] == pytest.approx(0.69, abs=0.03)  # the picture as it is: 0.717, 0.992, 0.354
        if row["metric"] == "deletion":
            assert row["curve"][0] == pytest.approx(0.69, abs=0.03)
    cat = measured_on(mobilenet, IMAGES / "chelsea.png", {"deletion": {"steps": 8}})
    values = printed["pictures"][0]["values"]["deletion"]["layercam"]["values"]
    assert values == pytest.approx(cat["layercam"]["deletion"].values[0].tolist(), abs=1e-5)
    assert printed["about"]["weights"] == "IMAGENET1K_V1"
    assert (tmp_path / "out" / "curves.png").is_file()


def measured_on(loaded: tp.LoadedModel, file: Path, metrics: Any) -> Any:
    picture = loaded.read(file)
    return tp.evaluate(loaded, picture, tp.compare(loaded, picture, methods=["gradcam", "layercam"]), metrics=metrics)

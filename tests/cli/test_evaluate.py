"""torchpeek evaluate: numbers against the library, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import torchpeek as tp
from cli_evaluation import DEFAULT, EVALUATE, FEW, METHOD, METHODS, lists, measured
from cli_models import pooled
from cli_runner import asked, of, run, strict
from paths import IMAGES


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
        assert about["model"] == "cli_models:pooled"
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
        again = ("average-sensitivity", "local-lipschitz", "relative-input-stability", "relative-output-stability")
        options = ("max-sensitivity.samples=2", "randomisation.stages=2", *(f"{name}.samples=2" for name in again))
        words = [word for each in options for word in ("--metric", each.split(".")[0], "--metric-option", each)]
        printed = asked(capsys, "evaluate", "pictures/a.png", *of("pooled"), *METHOD, *words, "--metric", "adcc")
        metrics = {"max-sensitivity": {"samples": 2}, "randomisation": {"stages": 2}}
        metrics |= {**{name: {"samples": 2} for name in again}, "adcc": {}}
        part = measured(pooled(), metrics, "pictures/a.png")
        values = printed["pictures"][0]["values"]
        assert list(values) == list(metrics)
        for metric, method in ((metric, method) for metric in metrics for method in METHODS):
            assert values[metric][method]["values"] == lists(part[method][metric].values[0])

    @pytest.mark.parametrize("fill", ["0.5", "-1", "1e-3"])
    def test_a_number_as_the_fill(self, place, capsys, fill) -> None:
        options = ("--metric-option", f"deletion.baseline={fill}")
        printed = asked(capsys, *EVALUATE, *options, "-o", "out")
        assert printed["about"]["metrics"]["deletion"]["options"] == {"steps": 4, "baseline": float(fill)}
        part = measured(pooled(), {"deletion": {"steps": 4, "baseline": float(fill)}}, "pictures/a.png")
        found = printed["pictures"][0]["values"]["deletion"]["gradcam"]["values"]
        assert found == lists(part["gradcam"]["deletion"].values[0])

    def test_options_of_methods(self, place, capsys) -> None:
        words = ("evaluate", "pictures/a.png", *of("pooled"), "--method", "fem", "--metric", "sparseness")
        plain, wide = (asked(capsys, *words, *more) for more in ([], ["--option", "k=0.5"]))
        assert wide["about"]["methods"] == {"fem": {"k": 0.5}}
        assert plain["results"][0]["mean"] != wide["results"][0]["mean"]

    @pytest.mark.parametrize(
        ("model", "words", "names"),
        [
            ("queries", ["--box", "0", "--box", "1"], 2),
            ("dense", ["--box", "0", "--box", "1", "--metric", "average-sensitivity"], 2),
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
        base = ("evaluate", "pictures/a.png", "--model", f"cli_models:{model}")
        printed = asked(capsys, *base, *metrics, *words, "-o", "out")
        values = printed["pictures"][0]["values"]["deletion"]
        assert all(len(each["values"]) == names for each in values.values())
        assert len(printed["pictures"][0]["asked"]) == names
        assert (place / "out" / "curves.png").is_file()

    @pytest.mark.parametrize("words", [[], ["--metric", "all"]])
    def test_metrics_of_probabilities_are_left_out_where_none_is_asked(self, place, capsys, words) -> None:
        """Unless they are asked for by name: then that is said before any picture is measured."""
        base = ("evaluate", "pictures", "--model", "cli_models:embedder", "--text", "cat", *FEW[:2])
        few = ("--metric-option", "aopc.steps=2", "--metric-option", "mufidelity.samples=4") if words else ()
        more = ("--metric-option", "infidelity.samples=4") if words else ("--metric-option", "insertion.steps=3")
        assert run(*base, *words, *few, *more, "--json") == 0
        captured = capsys.readouterr()
        done = {row["metric"] for row in strict(captured.out)["results"]}
        assert {"deletion", "insertion"} <= done
        assert not {"average-drop", "average-gain"} & done
        assert captured.err.count("left out: average-drop needs a probability, but the target's score is none") == 1
        assert run(*base, "--metric", "deletion", "--metric", "average-gain", "-o", "out") == 2
        assert "average-gain needs a probability" in capsys.readouterr().err
        assert not (place / "out").exists()

    def test_no_metric_is_left(self, place, capsys) -> None:
        Path("one.py").write_text(
            "import torch, torchpeek as tp\nfrom torch import nn\nfrom cli_models import PREPROCESS\n"
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
        assert "model: cli_models:pooled" in out
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
            "centred Gaussian: y, x; fewer than 6 pictures, too few to tell significance: z",
            "iou, defined for 5 of 6 pictures: fewer than 6 pictures, too few to tell significance: x, y, z",
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


def test_real_weights(mobilenet, tmp_path, capsys) -> None:
    """On photographs of which much is known: heatmaps are better than nothing where the object is put back."""
    options = [word for name in ("deletion", "insertion") for word in ("--metric-option", f"{name}.steps=4")]
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
    cat = measured_on(mobilenet, IMAGES / "chelsea.png", {"deletion": {"steps": 4}})
    values = printed["pictures"][0]["values"]["deletion"]["layercam"]["values"]
    assert values == pytest.approx(cat["layercam"]["deletion"].values[0].tolist(), abs=1e-5)
    assert printed["about"]["weights"] == "IMAGENET1K_V1"
    assert (tmp_path / "out" / "curves.png").is_file()


def measured_on(loaded: tp.LoadedModel, file: Path, metrics: Any) -> Any:
    picture = loaded.read(file)
    return tp.evaluate(loaded, picture, tp.compare(loaded, picture, methods=["gradcam", "layercam"]), metrics=metrics)

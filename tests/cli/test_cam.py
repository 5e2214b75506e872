"""torchpeek cam: results and files against the library, and errors as a user sees them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import torchpeek as tp
from cli_runner import environment, run
from paths import IMAGES
from torchpeek.cli import cam_run, main
from torchpeek.render import mosaic

CAM = ("cam", "pictures", "--model", "my_nets:make")


class TestCam:
    def test_writes_everything_and_prints_a_table(self, place, capsys) -> None:
        assert run(*CAM, "--method", "cam", "--method", "eigencam", "--class", "bee", "--class", "3", "--extract") == 0
        out, err = capsys.readouterr()
        assert "a.png" in out
        assert "explaining: 3 of 3" in err
        assert "report: peek/report.html" in out
        for stem in "abc":
            names = {path.name for path in (place / "peek" / stem).iterdir()}
            for method in ("cam", "eigencam"):
                for label in ("1-bee", "3-dog"):
                    assert {f"{method}.{label}.png", f"{method}.{label}.extract.png", f"{method}.safetensors"} <= names
            assert "all.png" in names
        heatmap = tp.load(place / "peek" / "b" / "cam.safetensors")
        assert heatmap.values.shape == (1, 2, 16, 16)
        assert heatmap.question.labels.tolist() == [[1, 3]]
        with Image.open(place / "peek" / "b" / "cam.1-bee.png") as overlay:
            assert overlay.size == (6 * 41, 6 * 30)  # a small picture is enlarged to 224 pixels or more

    def test_json(self, place, capsys) -> None:
        assert run(*CAM, "--top", "2", "--json") == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed == json.loads((place / "peek" / "results.json").read_text())
        first = printed["pictures"][0]
        assert [each["class"] for each in first["maps"]] == [each["class"] for each in first["predictions"][:2]]
        assert sum(each["probability"] for each in first["predictions"]) == pytest.approx(1)
        assert Path(first["maps"][0]["overlay"]).is_file()

    def test_the_maps_are_those_of_the_library(self, place, capsys) -> None:
        run(*CAM, "--method", "layercam", "--batch-size", "2")
        sys.path.insert(0, str(place))
        try:
            import my_nets

            loaded = my_nets.make()
        finally:
            sys.path.remove(str(place))
        for stem in "abc":
            expected = tp.explain(loaded, place / "pictures" / f"{stem}.png", method="layercam").values
            torch.testing.assert_close(tp.load(place / "peek" / stem / "layercam.safetensors").values, expected)

    def test_all_methods(self, place, capsys) -> None:
        assert run(*CAM, "--method", "all") == 0
        cheap = {name for name, method in tp.METHODS.items() if method.cheap and method.layers == "one"}
        assert {p.stem for p in (place / "peek" / "a").glob("*.safetensors")} == cheap

    def test_methods_of_many_passes_and_their_options(self, place, capsys) -> None:
        words = ("--method", "scorecam", "--method", "opticam", "--option", "steps=3", "--option", "precision=bfloat16")
        assert run(*CAM, *words, "--method", "ablationcam") == 0
        made = {name: tp.load(place / "peek" / "a" / f"{name}.safetensors").provenance for name in words[1:4:2]}
        assert made["scorecam"].options == {"precision": "bfloat16"}
        assert made["opticam"].options == {"steps": 3, "rate": 0.1}

    def test_methods_that_look_at_the_input(self, place, capsys) -> None:
        words = ("--method", "saliency", "--method", "occlusion", "--option", "window=4", "--option", "stride=2")
        assert run(*CAM, *words) == 0
        assert "the input (the method looks at the input)" in capsys.readouterr().out
        made = tp.load(place / "peek" / "a" / "occlusion.safetensors").provenance
        assert (made.layer, made.options["window"], made.options["stride"]) == ("the input", 4, 2)
        assert run(*CAM, *words, "--layer", "act", "--overwrite") == 0
        assert "--layer is for other methods; saliency, occlusion look at the input" in capsys.readouterr().err

    @pytest.mark.filterwarnings("ignore:.*are exactly zero everywhere")
    def test_several_layers(self, place, capsys) -> None:
        assert run(*CAM, "--layer", "act", "--layer", "features.0", "--fuse", "mean", "--smooth") == 0
        made = tp.load(place / "peek" / "a" / "gradcam.safetensors").provenance
        assert made.layer == "features.0, act"
        assert "mean" in made.steps[0]
        assert "mirrored" in made.steps[1]
        assert run(*CAM, "--layer", "features.*", "--fuse", "max", "--overwrite") == 0
        assert run(*CAM, "--method", "polycam", "--method", "gradcam", "--overwrite") == 0
        assert "sizes of grid" in tp.load(place / "peek" / "a" / "polycam.safetensors").provenance.layer_reason

    def test_contrast(self, place, capsys) -> None:
        assert run(*CAM, "--class", "bee", "--contrast", "2") == 0
        heatmap = tp.load(place / "peek" / "a" / "gradcam.safetensors")
        assert heatmap.question.others.shape == (1, 1, 2)
        assert "less 0.6 times" in (place / "peek" / "report.html").read_text()

    def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_done(self, place, capsys) -> None:
        (place / "pictures" / "b.png").write_bytes(b"broken")
        (place / "pictures" / "d.png").write_bytes((place / "pictures" / "c.png").read_bytes()[:80])
        assert run(*CAM, "pictures/none.png") == 1
        out = capsys.readouterr().out
        assert "skipped pictures/b.png: not a picture" in out
        assert "skipped pictures/d.png: damaged or truncated" in out
        assert "skipped pictures/none.png: cannot be opened (no such file" in out
        assert "3 of 5 pictures skipped" in out
        assert (place / "peek" / "a").is_dir()
        assert (place / "peek" / "c").is_dir()
        assert "broken" not in (place / "peek" / "report.html").read_text()
        assert "pictures/b.png" in (place / "peek" / "report.html").read_text()

    def test_a_picture_that_the_model_cannot_take(self, place, capsys) -> None:
        """Not even the first one ends the run for the others."""
        Image.new("RGB", (3_000_000, 1)).save(place / "pictures" / "0.png")
        assert run(*CAM, "--batch-size", "1") == 1
        assert "skipped pictures/0.png" in capsys.readouterr().out
        assert (place / "peek" / "c" / "all.png").is_file()

    @pytest.mark.parametrize("words", [[], ["--method", "all"], ["--batch-size", "1"]])
    def test_the_order_of_the_pictures_does_not_matter(self, place, capsys, words) -> None:
        (place / "picky.py").write_text(
            "import torchpeek as tp\nfrom networks import PooledNet\n"
            "class Picky(PooledNet):\n"
            "    def forward(self, x):\n"
            "        if x.shape[-1] < 9: raise RuntimeError('too small')\n"
            "        return super().forward(x)\n"
            "make = lambda: tp.LoadedModel(Picky(), tp.Preprocess(None, None))"
        )
        for name in ("0.png", "z.png"):
            Image.new("RGB", (5, 5), "red").save(place / "pictures" / name)
        assert run("cam", "pictures", "--model", "picky:make", *words) == 1
        out = capsys.readouterr().out
        assert "skipped pictures/0.png: RuntimeError: too small" in out
        assert "skipped pictures/z.png: RuntimeError: too small" in out
        assert (place / "peek" / "report.html").is_file()

    def test_what_goes_wrong_with_each_is_said_once(self, place, capsys) -> None:
        """With where, for --debug, and what the engine adds."""
        Path("bad.py").write_text(
            "import torchpeek as tp\nfrom networks import PooledNet\n"
            "class Bad(PooledNet):\n    def forward(self, x):\n        return super().forward(x) @ x\n"
            "make = lambda: tp.LoadedModel(Bad(), tp.Preprocess(8, (8, 8)))"
        )
        words = ("cam", "pictures", "--model", "bad:make", "-o", "out")
        assert run(*words) == 2
        err = capsys.readouterr().err
        assert err.count("RuntimeError") == 1
        assert "Bad was given torch.float32" in err
        with pytest.raises(RuntimeError) as raised:
            run(*words, "--debug")
        assert any(entry.name == "forward" and "bad.py" in str(entry.path) for entry in raised.traceback)

    def test_json_where_the_terminal_has_no_such_letters(self, place) -> None:
        script = (
            "import torchpeek as tp\nfrom cli_models import PREPROCESS\nfrom networks import PooledNet\n"
            "make = lambda: tp.LoadedModel(PooledNet(), PREPROCESS, ['\u00eblk \U0001f600'] * 5)"
        )
        Path("named.py").write_text(script, encoding="utf-8")
        command = [sys.executable, "-c", "from torchpeek.cli import main; main()", "cam", "pictures", "-o", "out"]
        done = subprocess.run(
            [*command, "--model", "named:make", "--json"],
            env=environment(PYTHONIOENCODING="ascii"),
            capture_output=True,
            check=True,
        )
        assert "\u00eblk \U0001f600" in str(json.loads(done.stdout))

    def test_pictures_called_as_the_results_are(self, place, capsys) -> None:
        for name in ("report.html.png", "results.json.png"):
            (place / "pictures" / name).write_bytes((place / "pictures" / "a.png").read_bytes())
        assert run(*CAM) == 0
        assert (place / "peek" / "report.html").is_file()
        assert (place / "peek" / "report.html-2" / "all.png").is_file()

    def test_names_of_every_script_and_any_length(self, place, capsys) -> None:
        (place / "pictures" / "ü 猫.png").write_bytes((place / "pictures" / "a.png").read_bytes())
        (place / "named.py").write_text(
            "import torchpeek as tp\nfrom networks import PooledNet\n"
            "make = lambda: tp.LoadedModel(PooledNet(), tp.Preprocess(16, (16, 16)), ['猫' * 200] * 5)"
        )
        assert run("cam", "pictures", "--model", "named:make", "--class", "3") == 0
        assert (place / "peek" / "ü-猫" / "all.png").is_file()
        assert len(list((place / "peek" / "ü-猫").glob("gradcam.3-猫猫*.png"))) == 1

    def test_a_class_named_twice_is_explained_once(self, place, capsys) -> None:
        assert run(*CAM, "--class", "bee", "--class", "1", "--class", "Bee", "--json") == 0
        assert len(json.loads(capsys.readouterr().out)["pictures"][0]["maps"]) == 1

    def test_the_sheet_begins_with_the_photograph_and_its_prediction(self, place, capsys, monkeypatch) -> None:
        sheets: list[tuple[Any, ...]] = []
        monkeypatch.setattr(
            cam_run, "mosaic", lambda *args, **more: sheets.append((args, more)) or mosaic(*args, **more)
        )
        assert run(*CAM, "--method", "cam", "--method", "gradcam", "--top", "2", "--json") == 0
        pictures = json.loads(capsys.readouterr().out)["pictures"]
        for (args, more), picture in zip(sheets, pictures, strict=True):
            best, second = picture["predictions"][:2]
            words = [f"{each['name']} {100 * each['probability']:.1f} %" for each in (best, second)]
            assert more["prediction"] == f"predicted: {words[0]}"
            with Image.open(picture["picture"]) as photo:  # whose sides are 41 pixels or less
                expected = np.asarray(photo.convert("RGB"))
            factor = more["original"].width // expected.shape[1]
            assert (np.asarray(more["original"]) == expected.repeat(factor, 0).repeat(factor, 1)).all()
            assert more["columns"] == 2  # a row for each method
            captions = [f"{method}: {each}" for method in ("cam", "gradcam") for each in words]
            remarks = [row["remark"] for row in picture["maps"]]
            assert list(args[1]) == [f"{a}; {b}" if b else a for a, b in zip(captions, remarks, strict=True)]

    def test_signed_and_colour_bar(self, place, capsys) -> None:
        assert run(*CAM, "--signed", "--colorbar", "--json") == 0
        results = json.loads(capsys.readouterr().out)
        assert results["about"]["overlays"] == "diverging, alpha 0.6, fading with the value"
        (row,) = results["pictures"][1]["maps"]
        assert row["remark"] == ""
        with Image.open(row["overlay"]) as drawn:
            assert drawn.width == 246
            assert drawn.height > 180 + 20

    def test_how_it_was_drawn_is_in_the_results(self, place, capsys) -> None:
        assert run(*CAM, "--even", "--overwrite", "--json") == 0
        assert json.loads(capsys.readouterr().out)["about"]["overlays"] == "viridis, alpha 0.6, an even mix"
        assert run(*CAM, "--colormap", "inferno", "--alpha", "0.3", "--fade", "--overwrite", "--json") == 0
        assert json.loads(capsys.readouterr().out)["about"]["overlays"] == "inferno, alpha 0.3, fading with the value"

    def test_two_pictures_of_one_name(self, place, capsys) -> None:
        (place / "more").mkdir()
        (place / "more" / "a.jpg").write_bytes((place / "pictures" / "a.png").read_bytes())
        assert run(*CAM, "more") == 0
        assert (place / "peek" / "a-2" / "all.png").is_file()

    def test_nothing_at_all_could_be_read(self, place, capsys) -> None:
        assert run("cam", "none.png", "--model", "my_nets:make") == 1
        assert "1 of 1 pictures skipped" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--method", "gradcan"], "closest: 'gradcam'"),
            (["--class", "bea"], "closest: 'bee'"),
            (["--class", "9"], "0 to 4"),
            (["--layer", "acts"], "closest: 'act'"),
            (["--layer", "*"], "selects 6 layers"),
            (["--model", "my_nets:nothing"], "has no 'nothing'"),
            (["--model", "torchvision:resnet5"], "closest"),
            (["--model", "my_nets:flat"], "no layer of Sequential returns a grid"),
            (["--colormap", "red"], "viridis"),
            (["--alpha", "3"], "0 to 1"),
            (["--fade", "--even"], "opposites"),
            (["--signed", "--colormap", "jet"], "leave --colormap jet out"),
            (["--top", "2", "--class", "bee"], "give one"),
            (["--batch-size", "0"], "at least 1"),
            (["--device", "quantum"], "--device 'quantum'"),
            (["--weights", "none.pth"], "no weights file"),
            (["--weights", "random"], "decides itself"),
            (["--top", "9"], "k goes from 1"),
            (["--out", "pictures"], "not empty"),
            (["--out", "my_nets.py"], "is a file"),
            (["empty*"], "matches no file"),
        ],
    )
    def test_mistakes_are_one_line_and_exit_with_2(self, place, capsys, words, message) -> None:
        base = CAM[:2] if "--model" in words else CAM
        assert run(*base, *words) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
        assert not (place / "peek").exists()

    @pytest.mark.parametrize("words", [["--nonsense"], ["--top", "two"], []])
    def test_usage_errors_exit_with_2(self, place, capsys, words) -> None:
        assert run("cam", *words) == 2

    def test_no_pictures(self, place, capsys) -> None:
        assert run("cam", "--model", "my_nets:make") == 2
        assert "no pictures" in capsys.readouterr().err

    def test_debug_shows_the_traceback(self, place) -> None:
        with pytest.raises(tp.errors.MethodNotFound):
            main([*CAM, "--method", "gradcan", "--debug"])

    def test_overwrite(self, place, capsys) -> None:
        assert run(*CAM) == 0
        assert run(*CAM) == 2
        assert "not empty" in capsys.readouterr().err
        assert run(*CAM, "--overwrite") == 0

    def test_a_folder_that_cannot_be_written(self, place, capsys) -> None:
        assert run(*CAM, "--out", "/proc/peek") == 2
        assert "cannot be written" in capsys.readouterr().err


def test_the_demo(mobilenet, tmp_path, capsys) -> None:
    """What `make demo` runs, on real weights."""
    methods = [word for name in ("cam", "gradcam", "gradcam++", "layercam", "eigencam") for word in ("--method", name)]
    out = str(tmp_path / "demo")
    assert run("cam", str(IMAGES), "--model", "torchvision:mobilenet_v2", *methods, "--top", "2", "--out", out) == 0
    printed = capsys.readouterr().out
    for words in (
        "Egyptian cat 71.",
        "espresso 99.",
        "drilling platform 35.",
        "space shuttle",
        "features.18",
        "report.html",
    ):
        assert words in printed
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("space shuttle") >= 5
    assert page.count("drilling platform") >= 5

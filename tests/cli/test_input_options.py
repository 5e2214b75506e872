"""--grey, --input-size, --mean, --std and --classes, so that a bare builder suffices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torchpeek as tp
from cli_runner import run, strict

BUILDERS = """
import torch
from torch import nn

def build(channels=1, classes=3, size=12):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * (size - 2) ** 2, classes)
    )

def colour():
    return build(3)

def segmentation():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
"""
GREY = ["--model", "bare:build", "--grey", "--input-size", "12", "12", "--mean", "0.25", "--std", "0.5"]
COMMANDS = {
    "cam": [],
    "evaluate": ["--metric", "sparseness"],
    "features": ["--layer", "0"],
    "gradients": [],
}


@pytest.fixture
def bare(in_folder: Path) -> Path:
    (in_folder / "bare.py").write_text(BUILDERS)
    (in_folder / "names.txt").write_text("ant\nbee\ncat\n")
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(in_folder / "a.png")
    return in_folder


def built(folder: Path, preprocess: tp.Preprocess, name: str = "build") -> tp.LoadedModel:
    loaded = tp.load_model(f"bare:{name}", preprocess=preprocess, class_names=["ant", "bee", "cat"])
    assert loaded.preprocess == preprocess
    return loaded


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bare_builder_suffices(command: str, bare: Path, capsys) -> None:
    assert run(command, "a.png", *GREY, "--classes", "names.txt", *COMMANDS[command], "--out", "out") == 0
    captured = capsys.readouterr()
    assert "is used" not in captured.err  # nothing is assumed
    assert "assumed" not in captured.err


def test_the_input_is_what_the_options_say(bare: Path, capsys) -> None:
    """The same as resizing, cropping and normalising by hand."""
    assert run("cam", "a.png", *GREY, "--classes", "names.txt", "--out", "out") == 0
    image = Image.open("a.png").convert("L").resize((18, 12), Image.Resampling.BILINEAR).crop((3, 0, 15, 12))
    x = torch.from_numpy(np.asarray(image, np.float32) / 255)[None, None]
    loaded = built(bare, tp.Preprocess(resize=12, crop=(12, 12), mean=(0.25,), std=(0.5,)))
    logits = loaded.module((x - 0.25) / 0.5)[0].detach()
    results = strict(Path("out/results.json").read_text())
    best = results["pictures"][0]["predictions"][0]
    assert best["class"] == int(logits.argmax())
    assert best["name"] == ["ant", "bee", "cat"][best["class"]]
    assert best["probability"] == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
    assert "resize to 12, shorter side" in results["about"]["preprocessing"]


def test_a_size_that_is_no_square_is_the_whole_picture(bare: Path) -> None:
    loaded = tp.load_model("bare:segmentation", preprocess=tp.Preprocess((10, 20), (10, 20), (0.0,), (1.0,)))
    assert loaded.read("a.png").geometry == tp.Geometry.whole((30, 20))
    assert run("cam", "a.png", "--model", "bare:segmentation", "--grey", "--input-size", "10x20", "--out", "out") == 0
    about = strict(Path("out/results.json").read_text())["about"]
    assert about["preprocessing"] == "resize to 10 x 20 (bilinear, antialiased); mean 0; std 1"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--input-size", "12"], "resize to 12, shorter side (bilinear, antialiased); crop the centre 12 x 12; mean"),
        (["--input-size", "3", "12", "12"], "crop the centre 12 x 12; mean 0.485, 0.456, 0.406; std"),
        (["--input-size", "12,12", "--mean", "0.5"], "mean 0.5, 0.5, 0.5; std 0.229, 0.224, 0.225"),
        (["--input-size", "12", "12", "--mean", "0.1", "0.2", "0.3", "--std", "1"], "mean 0.1, 0.2, 0.3; std 1, 1, 1"),
    ],
)
def test_spellings(words: list[str], expected: str, bare: Path) -> None:
    assert run("cam", "--model", "bare:colour", *words, "a.png", "--out", "out") == 0
    assert expected in strict(Path("out/results.json").read_text())["about"]["preprocessing"]


def test_what_is_assumed_is_said(bare: Path, capsys) -> None:
    assert run("features", "a.png", "--model", "bare:build", "--input-size", "1", "12", "12") == 0
    assert "what was not named is assumed: resize to 12, shorter side" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input-size", "2", "12", "12"], "1 channel (grey) or 3 (RGB)"),
        (["--input-size", "3", "12", "12", "--grey"], "--input-size is 3 12 12 with --grey; allowed:"),
        (["--input-size", "1", "2", "3", "4"], "--input-size is 1 2 3 4; allowed: HEIGHT WIDTH"),
        (["--mean", "0.1", "0.2"], "mean has 2 entries; allowed: 1 for all channels, or 3 (RGB)"),
        (["--grey", "--std", "0.1", "0.2", "0.3"], "std has 3 entries; allowed: 1 (grey)"),
        (["--input-size", "a"], "--input-size is a; allowed: numbers, with spaces or commas between them"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_mistakes(command: str, words: list[str], message: str, bare: Path, capsys) -> None:
    assert run(command, "a.png", "--model", "bare:build", *words) == 2
    assert message in capsys.readouterr().err


def test_a_preprocessing_that_is_a_function_cannot_be_changed_in_parts(bare: Path, capsys) -> None:
    (bare / "own.py").write_text(
        "import torch, torchpeek as tp\n"
        "def make():\n    return tp.LoadedModel(torch.nn.Conv2d(3, 2, 3), lambda image: torch.zeros(3, 8, 8))\n"
    )
    assert run("cam", "a.png", "--model", "own:make", "--mean", "0.5") == 2
    assert "the preprocessing of own:make cannot be changed in parts" in capsys.readouterr().err


def test_kernels_say_nothing_of_pictures(bare: Path, capsys) -> None:
    assert run("kernels", "--model", "bare:build") == 0
    assert capsys.readouterr().err == ""


class TestLayers:
    def test_grey(self, bare: Path, capsys) -> None:
        assert run("layers", "--model", "bare:build", "--grey", "--input-size", "12", "12") == 0
        assert "(N, 4, 10, 10)" in capsys.readouterr().out
        assert run("layers", "--model", "bare:build", "--input-size", "1", "12", "12") == 0
        assert run("layers", "--model", "bare:build", "--picture", "a.png", *GREY[2:]) == 0
        assert "(N, 4, 10, 10)" in capsys.readouterr().out

    @pytest.mark.parametrize("words", [["--input-size", "1", "12", "12"], ["--grey", "--input-size", "12"]])
    def test_a_size_that_is_named_assumes_nothing(self, words: list[str], bare: Path, capsys) -> None:
        assert run("layers", "--model", "bare:build", *words) == 0
        assert capsys.readouterr().err == ""

    def test_a_size_for_which_there_is_no_memory(self, bare: Path, capsys) -> None:
        assert run("layers", "--model", "bare:build", "--input-size", "1", "9999999", "9999999") == 2
        assert "--input-size is 1 x 9999999 x 9999999, for which there is not enough memory" in capsys.readouterr().err

    def test_two_numbers_may_be_a_height_and_a_width(self, bare: Path, capsys) -> None:
        assert run("layers", "--model", "bare:colour", "--input-size", "12", "12") == 0
        assert "(N, 4, 10, 10)" in capsys.readouterr().out


class TestClasses:
    def names(self, folder: Path, content: bytes, command: str = "gradients") -> int:
        (folder / "classes").write_bytes(content)
        return run(command, "a.png", *GREY, "--classes", "classes", "--class", "cat")

    @pytest.mark.parametrize(
        "content",
        [
            b"ant\nbee\ncat",
            b"ant\r\nbee\r\ncat\r\n\r\n",
            "\ufeffant\nbee\ncat\n".encode(),
            "ant\nbee\ncat\n".encode("utf-16"),
            b"ant\rbee\rcat",
            "ant\u2028of one line\nbee\ncat".encode(),
            json.dumps(["ant", "bee", "cat"]).encode(),
            json.dumps({"0": "ant", "2": "cat", "1": "bee"}).encode(),
            json.dumps({"cat": 2, "ant": 0, "bee": 1}).encode(),
            json.dumps({"0": ["n01", "ant"], "1": ["n02", "bee"], "2": ["n03", "cat"]}).encode(),
        ],
    )
    def test_forms(self, content: bytes, bare: Path, capsys) -> None:
        assert self.names(bare, content) == 0

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "classes: has no class names; allowed: a name in each line"),
            (b"\n\n", "has no class names"),
            (b"ant\n\ncat\n", "line 2 is empty"),
            (b"ant\xff\xfebee", "is no text in UTF-8 (byte 3)"),
            (b"\x00\x01", "is no text"),
            (b'["ant", "bee"', "not JSON (Expecting"),
            (b'["ant", 3, "cat"]', "class 1 is 3, and no name"),
            (b'{"a": "ant", "b": "bee"}', "has keys that are no class index"),
            (b'{"0": "ant", "2": "bee", "3": "cat"}', "has 3 names and none for class 1"),
            (b'{"0": "ant", "1": "bee", "1": "wasp", "2": "cat"}', "has the key '1' twice; allowed: each class once"),
            (b"[" * 100_000, "is nested too deeply"),
            (b"ant", "--classes classes: has 1 name, and the model returns 3 classes"),
            (b"ant\nbee", "--classes classes: has 2 names, and the model returns 3 classes"),
            (b"ant\nbee\ncat\ndog", "has 4 names, and the model returns 3 classes"),
        ],
    )
    @pytest.mark.parametrize("command", ["gradients", "evaluate"])
    def test_mistakes(self, command: str, content: bytes, message: str, bare: Path, capsys) -> None:
        assert self.names(bare, content, command) == 2
        assert message in capsys.readouterr().err

    def test_no_such_file(self, bare: Path, capsys) -> None:
        assert run("cam", "a.png", *GREY, "--classes", "nowhere.txt") == 2
        assert "nowhere.txt: cannot be opened (no such file or directory)" in capsys.readouterr().err

    @pytest.mark.parametrize("picture", [(), ("--picture", "a.png")])
    def test_of_layers(self, picture: tuple[str, ...], bare: Path, capsys) -> None:
        words = ["layers", *GREY, "--classes", "names.txt", *picture]
        assert run(*words) == 0
        (bare / "names.txt").write_text("ant\nbee")
        assert run(*words) == 2
        assert "has 2 names, and the model returns 3 classes" in capsys.readouterr().err

    def test_a_name_of_two_classes(self, bare: Path, capsys) -> None:
        assert self.names(bare, b"cat\nbee\ncat\n") == 2
        err = capsys.readouterr().err
        assert "several classes are called 'cat'; choose among these by index" in err

    def test_of_a_segmentation(self, bare: Path, capsys) -> None:
        words = ["cam", "a.png", "--model", "bare:segmentation", *GREY[2:], "--classes", "names.txt"]
        assert run(*words, "--class", "cat", "--out", "out") == 0
        (bare / "names.txt").write_text("ant\nbee")
        assert run(*words) == 2
        assert "has 2 names, and the model returns 3 classes" in capsys.readouterr().err

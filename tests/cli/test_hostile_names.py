"""Whatever a file, a class, a layer or a model is called, nothing of it acts on the terminal or in a shell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cli_runner import environment, run
from torchpeek.printable import printable

NAME = "x\x1b[31m\x9b1m\u202eb\u2066\u200b\udcff\n\rerror: forged\tz:b:[red]q[<b>"
MODEL = """
import torch, torchpeek as tp
from torch import nn
NAME = {name!r}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("first" + NAME, nn.Conv2d(3, 8, 3, padding=1))
        self.add_module("second" + NAME, nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        first, second, head = self.children()
        return head(second(first(x).relu()).relu().mean((2, 3)))

class Raising(Net):
    def forward(self, x):
        raise RuntimeError("raised " + NAME)

Net.__name__ = Raising.__name__ = "Net" + NAME.replace("\\udcff", "")  # Python takes no other

def make(kind=Net):
    torch.manual_seed(0)
    names = [f"c{{n}}" + NAME.replace("\\udcff", "") for n in range(3)]  # a lone surrogate is refused
    return tp.LoadedModel(kind(), tp.Preprocess(16, (16, 16)), names, weights="w" + NAME)

def surrogate():
    return tp.LoadedModel(Net(), tp.Preprocess(16, (16, 16)), ["a", NAME, "b"])

def raising():
    return make(Raising)

def failing():
    raise ValueError("failed " + NAME)

def warning():
    import warnings
    warnings.warn("warned " + NAME)
    return make()
"""
ACTING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff🅱]")
FOLDER, CLASSES, BOXES, CAT = f"d{NAME}", f"c{NAME}.txt", f"b{NAME}.json", f"d{NAME}/cat{NAME}.png"
NET = ("--model", "hostile_nets:make")


@pytest.fixture
def hostile(in_folder: Path) -> Path:
    (in_folder / "hostile_nets.py").write_text(MODEL.format(name=NAME))
    (in_folder / FOLDER).mkdir()
    Image.linear_gradient("L").convert("RGB").resize((40, 30)).save(in_folder / CAT)
    (in_folder / FOLDER / f"broken{NAME}.png").write_bytes(b"no picture")
    (in_folder / FOLDER / f"note{NAME}.txt").touch()
    names = [f"class {n} {NAME}".translate({10: None, 13: None}) for n in range(3)]
    (in_folder / CLASSES).write_text("\n".join(names), errors="replace")
    (in_folder / BOXES).write_text(json.dumps({CAT: [[1, 1, 9, 9]]}))
    return in_folder


@pytest.mark.parametrize(
    "words",
    [
        ("cam", FOLDER, *NET, "-o", f"out{NAME}"),
        ("cam", CAT, *NET, "--classes", CLASSES, "-o", "out"),
        ("cam", CAT, *NET, "--class", NAME, "-o", "out"),
        ("cam", CAT, *NET, "--layer", NAME, "-o", "out"),
        ("cam", CAT, *NET, "--method", NAME, "-o", "out"),
        ("cam", CAT, *NET, "--weights", f"{NAME}.pt", "-o", "out"),
        ("cam", CAT, *NET, f"--{NAME}", "1"),
        ("cam", CAT, *NET, "--batch-size", NAME),
        ("cam", NAME, *NET, "-o", "out"),
        ("cam", f"*{NAME}", *NET, "-o", "out"),
        ("cam", "--from", NAME, *NET, "-o", "out"),
        ("cam", CAT, "--model", "hostile_nets:raising", "-o", "out"),
        ("cam", CAT, "--model", "hostile_nets:failing", "-o", "out"),
        ("cam", CAT, "--model", "hostile_nets:warning", "-o", "out"),
        ("cam", CAT, "--model", "hostile_nets:surrogate", "-o", "out"),
        ("cam", CAT, "--model", f"hostile_nets:{NAME}", "-o", "out"),
        ("evaluate", FOLDER, *NET, "--metric", "sparseness", "-o", f"out{NAME}"),
        ("evaluate", CAT, *NET, "--metric", "pointing-game", "--boxes", BOXES),
        ("evaluate", CAT, *NET, "--metric", "pointing-game", "--boxes", CLASSES),
        ("evaluate", CAT, *NET, "--metric", "pointing-game", "--masks", FOLDER),
        ("evaluate", CAT, *NET, "--metric", NAME),
        ("layers", *NET, "-o", f"out{NAME}"),
        ("layers", "--model", NAME),
        ("kernels", *NET, "-o", f"out{NAME}"),
        ("features", FOLDER, *NET, "--layer", "*", "-o", f"out{NAME}"),
        ("features", FOLDER, *NET, "--json"),
        ("gradients", FOLDER, *NET, "-o", f"out{NAME}"),
        ("--install-completion", "--shell", "bash", "-o", f"out{NAME}"),
        ("--install-completion", "--shell", NAME),
        (NAME,),
    ],
    ids=lambda words: printable(" ".join(words))[:60],
)
def test_nothing_acts_on_the_terminal(hostile: Path, capsys, words: tuple[str, ...]) -> None:
    try:
        run(*words)
    finally:
        sys.modules.pop("hostile_nets", None)
    out, err = capsys.readouterr()
    assert out + err
    assert not ACTING.findall(out + err)
    assert not re.search("^error: forged", out + err, re.MULTILINE)


@pytest.mark.parametrize("name", ["a:b:c.png", "[red]x[/].png", "gemütliche 猫 🐈.png", "{task.description}.png"])
def test_names_are_printed_as_they_are(hostile: Path, capsys, name: str) -> None:
    (hostile / name).parent.mkdir(exist_ok=True)
    (hostile / CAT).rename(hostile / name)
    assert run("cam", name, *NET, "-o", "out") == 0
    out, _ = capsys.readouterr()
    assert f"\n{name}  " in out
    assert run("cam", "missing " + name, *NET, "--layer", name, "-o", f"out {name}/{name}") != 0
    out, err = capsys.readouterr()
    assert name in out + err


def test_results_have_the_names_themselves(hostile: Path, capsys) -> None:
    """JSON has escapes of its own."""
    run("cam", CAT, *NET, "-o", "out")
    sys.modules.pop("hostile_nets", None)
    written = (hostile / "out" / "results.json").read_text("utf-8")
    results = json.loads(written)
    assert results["pictures"][0]["picture"] == CAT
    assert not ACTING.findall(written)
    page = (hostile / "out" / "report.html").read_text("utf-8")
    assert not ACTING.findall(page)
    assert "<b>" not in page.partition("<main>")[2].partition("<figcaption>")[0]
    assert r"\x1b[31m" in page


def test_a_traceback_does_not_act_on_the_terminal(hostile: Path) -> None:
    words = [sys.executable, "-m", "torchpeek", "cam", CAT, "--model", "hostile_nets:failing", "--debug", "-o", "out"]
    finished = subprocess.run(words, env=environment(), capture_output=True, check=False)
    text = finished.stderr.decode(errors="surrogateescape")
    assert "Traceback" in text
    assert r"failed x\x1b[31m" in text
    assert not ACTING.findall(text)


_COMPLETE = """
source ./torchpeek
COMP_WORDS=(torchpeek cam "$1") COMP_CWORD=2 COMP_LINE="torchpeek cam $1" COMP_POINT=99
$(complete -p torchpeek | sed 's/.*-F \\([^ ]*\\).*/\\1/') torchpeek "$1" cam
printf '%s|' "${COMPREPLY[@]}"
"""
"""Calls the function that completes the second word."""


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="bash is not installed")
def test_bash_completes_names_and_runs_none_of_them(hostile: Path) -> None:
    """A file name is data, also with a line break, and also what was typed so far."""
    assert run("--install-completion", "--shell", "bash", "-o", ".") == 0
    for name in ("p$(touch ran1).png", "p`touch ran2`.png", "p\ntouch ran3\n.png", "p;touch ran4;.png"):
        (hostile / name).touch()
    for typed in ("p", "p$(touch ran5)", "p`touch ran6`"):
        finished = subprocess.run(
            ["/bin/bash", "-c", _COMPLETE, "bash", typed], capture_output=True, text=True, check=False
        )
        if typed == "p":
            assert "p$(touch ran1).png|" in finished.stdout
    assert not list(hostile.glob("ran*"))

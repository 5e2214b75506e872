"""Names and paths are whole in every width, in tables, messages and help pages."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cli_runner import CHELSEA, environment, run
from torchpeek.cli.app import app
from torchpeek.cli.commands import COMMANDS
from torchpeek.cli.console import table_lines

NAME = "a picture of a ship in the harbour of Sydney that was taken on a rainy day in the year 2019"
MODEL = """
import torch, torchpeek as tp
def make():
    torch.manual_seed(0)
    name = "a_block_whose_name_is_longer_than_the_narrow_terminals_of_this_test"
    block = torch.nn.ModuleDict({name: torch.nn.Conv2d(3, 4, 3)})
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a_stage_with_a_long_name, self.head = block, torch.nn.Linear(4, 3)
        def forward(self, x):
            return self.head(next(iter(self.a_stage_with_a_long_name.values()))(x).mean((2, 3)))
    return tp.LoadedModel(Net(), tp.Preprocess(16, (16, 16)), ["a class whose name is rather long"] * 3)
"""
LAYER = "a_stage_with_a_long_name.a_block_whose_name_is_longer_than_the_narrow_terminals_of_this_test"


@pytest.fixture
def long_names(in_folder: Path) -> Path:
    (in_folder / "long_names.py").write_text(MODEL)
    folder = in_folder / "pictures of the holiday"
    folder.mkdir()
    (folder / f"{NAME}.png").write_bytes(Path(CHELSEA).read_bytes())
    (folder / f"broken {NAME}.png").write_bytes(b"no picture")
    return folder


COMMAND_LINES = {
    "cam": ["cam", "{folder}", "--model", "long_names:make", "--out", "results of a long night"],
    "evaluate": ["evaluate", "{folder}", "--model", "long_names:make", "--metric", "sparseness"],
    "layers": ["layers", "--model", "long_names:make"],
    "kernels": ["kernels", "--model", "long_names:make", "--out", "results of a long night"],
    "features": ["features", "{folder}", "--model", "long_names:make", "--out", "results of a long night"],
    "gradients": ["gradients", "{folder}", "--model", "long_names:make"],
    "run": ["run", "{folder}", "--model", "long_names:make", "--out", "results of a long night", "--workers", "0"],
    "query": ["query", "{run}", "select * from samples, errors"],
    "verify": ["verify", "{run}"],
    "export": ["export", "{run}", "--to", "parquet", "--out", "tables of a long night"],
    "methods": ["methods"],
    "metrics": ["metrics"],
}
PICTURE = f"pictures of the holiday/{NAME}.png"
WHOLE = {
    "cam": [PICTURE, LAYER, "results of a long night/report.html", "a class whose name is rather long"],
    "evaluate": [f"pictures of the holiday/broken {NAME}.png", "sparseness", LAYER],
    "layers": [LAYER],
    "kernels": [LAYER, f"results of a long night/{LAYER[:50]}.png"],
    "features": [PICTURE, LAYER],
    "gradients": [LAYER],
    "run": ["results of a long night"],
    "query": [f"{NAME}.png", f"broken {NAME}.png"],
    "verify": ["damaged: 0"],
    "export": ["tables of a long night"],
    "methods": ["transformer-attribution", "doi:10.1109/IPTA50016.2020.9286629"],
    "metrics": ["relative-output-stability", "monotonicity-correlation"],
}


def test_every_command_is_here() -> None:
    assert list(COMMAND_LINES) == list(WHOLE)
    assert {command.__name__ for command in COMMANDS} == set(WHOLE)


@pytest.mark.parametrize("columns", ["", "40", "60", "80", "200"])
@pytest.mark.parametrize("command", WHOLE)
def test_names_are_whole(command: str, columns: str, long_names: Path, capsys, monkeypatch) -> None:
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    words = [word.format(folder="pictures of the holiday", run="a run") for word in COMMAND_LINES[command]]
    if "a run" in words:
        assert (
            run("run", "pictures of the holiday", "--model", "long_names:make", "--out", "a run", "--workers", "0") == 1
        )
    assert run(*words) == (1 if "{folder}" in COMMAND_LINES[command] else 0)
    out = capsys.readouterr().out
    for name in WHOLE[command]:
        assert name in out, name


@pytest.mark.parametrize("columns", ["40", "80"])
def test_in_a_terminal(columns: str, long_names: Path) -> None:
    """As a terminal of that width, and not only a variable."""
    words = ["layers", "--model", "long_names:make"]
    out = in_terminal(words, int(columns), long_names.parent)
    assert LAYER in out
    assert "output: (N, 4, 14, 14)" in out


def in_terminal(words: list[str], columns: int, folder: Path) -> str:
    """What a command prints to a terminal of that width."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = environment(PYTHONPATH=os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    variables.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "torchpeek", *words],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=variables,
        cwd=folder,
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    assert process.wait() == 0
    os.close(ours)
    return b"".join(parts).decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", ["40", "50", "60", "80"])
@pytest.mark.parametrize("command", WHOLE)
def test_help_keeps_the_names_of_options(command: str, columns: str, capsys, monkeypatch) -> None:
    options = [each for each in app[command].assemble_argument_collection() if not each.children]
    names = [name for option in options for name in option.names]
    monkeypatch.setenv("COLUMNS", columns)
    assert run(command, "--help") == 0
    page = capsys.readouterr().out.replace("│", " ").split()
    assert set(names) <= set(page)


@pytest.mark.parametrize("columns", ["40", "80"])
def test_errors_keep_paths(columns: str, in_folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    path = f"no such folder/{NAME}.png"
    for words in (["cam", path, "--max-size", path], ["gradients", "*.nothing" + NAME], ["cam", "x", "--from", path]):
        assert run(*words, "--model", "long_names:make") == 2
        assert NAME in capsys.readouterr().err


class TestTable:
    HEADER = ("name", "size", "what it is")
    ROWS = (("alpha", "12", "the first letter of the alphabet of the Greeks"), ("beta", "", "the second letter"))

    def lines(self, width: int | None, **more) -> list[str]:
        return [line.text for line in table_lines(self.HEADER, self.ROWS, width, **more)]

    def test_columns_where_they_fit(self) -> None:
        assert self.lines(None) == self.lines(200)
        assert self.lines(None)[1] == "alpha  12    the first letter of the alphabet of the Greeks"

    def test_the_width_that_just_fits(self) -> None:
        longest = max(map(len, self.lines(None)))
        assert len(self.lines(longest)) == 3
        assert self.lines(longest - 1)[0] == "alpha"

    def test_stacked(self) -> None:
        assert self.lines(30) == [
            "alpha",
            "  size: 12",
            "  what it is: the first letter of the alphabet of the Greeks",
            "beta",
            "  what it is: the second letter",
        ]

    def test_prose_is_folded_between_words(self) -> None:
        assert self.lines(45, prose=("what it is",)) == [
            "name   size  what it is",
            "alpha  12    the first letter of the alphabet",
            "             of the Greeks",
            "beta         the second letter",
        ]
        assert self.lines(30, prose=("what it is",))[1:4] == [
            "  size: 12",
            "  what it is: the first letter",
            "  of the alphabet of the",
        ]

    def test_rows_of_one_name_stand_below_it(self) -> None:
        rows = [("a long name of a picture", "1"), ("a long name of a picture", "2"), ("other", "3")]
        lines = [line.text for line in table_lines(("picture", "value"), rows, 20)]
        assert lines == ["a long name of a picture", "  value: 1", "  value: 2", "other", "  value: 3"]

    def test_wide_letters_count_twice(self) -> None:
        rows = [("猫の写真", "1"), ("dog", "2")]
        lines = [line.text for line in table_lines(("picture", "value"), rows, 40)]
        assert lines == ["picture   value", "猫の写真  1", "dog       2"]

    def test_a_line_break_in_a_name_is_shown(self) -> None:
        (_, row) = [line.text for line in table_lines(("picture", "value"), [("a\nb\x1b[2J", "1")], 80)]
        assert row == "a\\nb\\x1b[2J  1"

"""The shell examples in README and docs run in a clone: with its pictures, from its root."""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from cli_runner import run
from paths import ROOT
from torchpeek.cli.app import app
from torchpeek.cli.command_line import prepared_words

PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]


def shell_lines(text: str) -> list[str]:
    """The lines of the blocks that name no other language, which call torchpeek and have no placeholders."""
    lines, language = [], None
    for line in text.splitlines():
        if line.startswith("```"):
            language = line[3:].strip() if language is None else None
        elif language in ("", "sh", "bash", "console") and re.search(r"(^|\| )torchpeek ", line):
            lines.append(line)
    return [line for line in lines if not re.search(r"[\[\]]|\.\.\.|PICTURES|SPEC", line)]


LINES = [(page, line) for page in PAGES for line in shell_lines((ROOT / page).read_text())]
SLOW = ("hf:", "fasterrcnn", "deeplabv3")
"""Models whose examples are parsed and not run: they are large, or need weights that the clone does not have."""


def words_of(line: str) -> list[str]:
    command = line.rpartition("| ")[2].partition(" < ")[0]
    return shlex.split(command.partition(" #")[0])[1:]


def test_there_are_examples() -> None:
    assert {page for page, _ in LINES} >= {
        "README.md",
        "docs/guide.md",
        "docs/metrics.md",
        "docs/models.md",
        "docs/runs.md",
    }


@pytest.mark.parametrize(("page", "line"), LINES)
def test_the_files_are_in_the_clone(page: str, line: str) -> None:
    named = [word for word in re.split(r"[\s'\"]+", line) if word.startswith("examples/")]
    assert all((ROOT / word).exists() for word in named)
    assert not re.search(r"\b(cat\.jpg|street\.jpg|holiday/|cats/)", line)


@pytest.mark.parametrize(("page", "line"), LINES)
def test_the_parser_takes_it(page: str, line: str) -> None:
    app.parse_args(prepared_words(words_of(line)), exit_on_error=False, print_error=False)


@pytest.mark.parametrize(("page", "line"), [each for each in LINES if not any(name in each[1] for name in SLOW)])
def test_smoke_it_runs(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smoke test: only the exit status counts, with random weights, a small input and one step."""
    pytest.importorskip("torchvision")
    monkeypatch.chdir(ROOT)
    words = words_of(line)
    for option in ("-o", "--out"):
        if option in words:
            words[words.index(option) + 1] = str(tmp_path / "out")
    if words[0] in ("cam", "evaluate", "features", "gradients"):
        words += ["--input-size", "64", *(["--out", str(tmp_path / "peek")] if words[0] == "cam" else [])]
    if words[0] == "cam" and "-o" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    if words[0] == "evaluate" and "--metric" not in words:
        words += ["--metric-option", "deletion.steps=1", "--metric-option", "insertion.steps=1"]
    if words[1:] and words[1].startswith("runs/"):  # an earlier line of the page has made it
        words[1] = str(tmp_path / "earlier")
        model = ("--model", "torchvision:squeezenet1_1", "--weights", "random", "--input-size", "64")
        assert run("run", "examples/images", *model, "--method", "gradcam", "--out", words[1], "--workers", "0") == 0
        words += ["--input-size", "64"] if words[0] == "run" else []
    elif words[0] == "run":
        words += ["--input-size", "64", *([] if words[1] == "examples/images" else ["--weights", "random"])]
        words += [] if "--out" in words or "--estimate" in words else ["--out", str(tmp_path / "out")]
    if words[0] == "run":
        words += ["--workers", "0"]
    if "--model" in words and "--weights" not in words:
        words += ["--weights", "random"]
    if source := re.search(r"< (\S+)", line):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((ROOT / source[1]).read_bytes())))
    elif line.startswith("find "):
        listed = b"\0".join(str(path).encode() for path in sorted(Path("examples/images").glob("*.png")))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    assert run(*words) == 0

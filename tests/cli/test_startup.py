"""What a command loads before it has anything to do: neither torch nor what else is slow to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import torchpeek as tp
from torchpeek.cli.commands import COMMANDS

CODE = """
import sys
from torchpeek.cli import main
try:
    main(sys.argv[1:])
finally:
    print("loaded:", *({"torch", "numpy", "PIL", "torchvision", "jinja2"} & sys.modules.keys()))
"""
NAMES = [command.__name__ for command in COMMANDS]


def run(*words: str) -> tuple[int, str]:
    """The exit status, and what is printed."""
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in NAMES)], ids=" ".join)
def test_help(words: list[str]) -> None:
    status, printed = run(*words)
    assert status == 0
    assert "Usage: torchpeek" in printed
    assert "loaded:\n" in printed


def test_version() -> None:
    assert run("--version") == (0, f"{tp.__version__}\nloaded:\n")


@pytest.mark.parametrize("words", [["cams"], ["cam", "--nonsense"], ["cam", "cat.jpg"], ["layers", "--model"]], ids=str)
def test_what_the_parser_refuses(words: list[str]) -> None:
    status, printed = run(*words)
    assert status == 2
    assert "loaded:\n" in printed


def test_the_guard_sees_what_it_guards_against() -> None:
    """A command that runs loads torch."""
    status, printed = run("metrics", "--json")
    assert status == 0
    assert "torch" in printed.splitlines()[-1].split()

"""Every option that takes numbers refuses what it cannot take, by name, before torch or a model is loaded."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from cli_runner import run
from torchpeek.cli.app import app
from torchpeek.cli.commands import COMMANDS

NOT_ALLOWED = {
    "--max-size": ["0", "-1", "1.5", "x", "nan"],
    "--batch-size": ["0", "-3", "2.5"],
    "--seed": ["-1", "0.5", "x"],
    "--box": ["-1", "0.5", "x"],
    "--top": ["0", "-1", "1.5"],
    "--contrast": ["0", "-2"],
    "--alpha": ["2", "-0.1", "nan", "inf", "x"],
    "--most": ["0", "-1", "1.5"],
    "--clip": ["-1 99", "1 101", "nan 99", "1 x", "inf inf"],
    "--input-size": ["0", "-1", "2.5", "28 -1", "inf", "1e400", "1 1e9", "a"],
    "--mean": ["-1", "127", "nan", "inf", "a"],
    "--std": ["0", "-1", "58", "nan", "-inf"],
    "--limit": ["0", "-1", "1.5", "x"],
    "--sample": ["0", "-1", "1.5", "x"],
    "--sample-seed": ["-1", "0.5", "x"],
    "--max-errors": ["-1", "0.5", "x"],
    "--workers": ["-1", "0.5", "x"],
    "--batch": ["0", "-1", "1.5", "x"],
}
"""What is refused of each option. An option with numbers that is not listed fails the test below."""

NEEDED = {"verify": ["v1"], "export": ["v1", "--to", "png", "--out", "x"]}
"""What a command cannot do without, where that is not --model."""

OF_OTHER_PARTS = ("--percentiles",)
"""Options of numbers that are tested with what they do."""


def numeric_options(command: str) -> list[str]:
    arguments = [each for each in app[command].assemble_argument_collection() if not each.children]
    names = [each.name for each in arguments if re.search(r"\b(int|float)\b", str(each.hint))]
    return [*names, *(each.name for each in arguments if each.name in ("--input-size", "--mean", "--std"))]


CASES = [
    (command.__name__, option, value)
    for command in COMMANDS
    for option in numeric_options(command.__name__)
    for value in NOT_ALLOWED.get(option, [])
]


def test_every_numeric_option_is_here() -> None:
    listed = {option for command in COMMANDS for option in numeric_options(command.__name__)}
    assert listed - set(OF_OTHER_PARTS) == set(NOT_ALLOWED)


@pytest.mark.parametrize(("command", "option", "value"), CASES)
def test_refused_by_name(command: str, option: str, value: str, capsys) -> None:
    assert run(command, *NEEDED.get(command, ["--model", "no.such:model"]), option, *value.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {option} is {value}; allowed: ")
    assert err.count("\n") == 1


NUMERIC = [(command.__name__, option) for command in COMMANDS for option in numeric_options(command.__name__)]
NAMES = [("features", "--channels"), *((name, "--layer") for name in ("cam", "evaluate", "features", "kernels"))]


@pytest.mark.parametrize(("command", "option"), [*NUMERIC, *NAMES])
def test_an_empty_variable_of_a_script_is_refused(command: str, option: str, capsys) -> None:
    count = 2 if option == "--clip" else 1
    assert run(command, *NEEDED.get(command, ["--model", "no.such:model"]), option, *[""] * count) == 2
    assert capsys.readouterr().err.startswith(f"error: {option} is empty; allowed: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["5"], "--clip is 5; it needs 2 values"),
        (["1,99"], "--clip is 1,99; it needs 2 values"),
        (["5", "--json"], "--clip is 5; it needs 2 values"),
        ([], "--clip needs a value"),
        (["--json"], "--clip needs a value"),
    ],
)
def test_too_few_values(words: list[str], message: str, capsys) -> None:
    assert run("features", "--model", "no.such:model", "--clip", *words) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_before_torch_is_loaded() -> None:
    code = "import sys; from torchpeek.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    words = ["cam", "cat.jpg", "--model", "torchvision:resnet50", "--alpha", "2"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "False\n", "error: --alpha is 2; allowed: 0 to 1\n")


@pytest.mark.parametrize("words", [["--option", "samples=0"], ["--option", "samples=1.5"], ["--option", "samples=x"]])
def test_options_of_methods(words: list[str], place, capsys) -> None:
    command = ["cam", "pictures", "--model", "my_nets:make", "--method", "smoothgradcam++"]
    assert run(*command, *words) == 2
    assert "samples" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x"])
def test_options_of_metrics(value: str, place, capsys) -> None:
    command = ["evaluate", "pictures", "--model", "my_nets:make", "--metric", "deletion"]
    assert run(*command, "--metric-option", f"deletion.steps={value}") == 2
    assert "steps" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["cam", "evaluate", "layers", "kernels", "features", "gradients"])
class TestModelIsRequired:
    def test_missing(self, command: str, capsys) -> None:
        assert run(command) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: --model is required; allowed: torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER")
        assert f"Example: torchpeek {command} " in err

    def test_without_a_value(self, command: str, capsys) -> None:
        assert run(command, "--model") == 2
        assert capsys.readouterr().err.startswith("error: --model needs a value")

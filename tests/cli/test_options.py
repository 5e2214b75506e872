"""The options of every command: their names, their defaults, and their help."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from torchpeek.cli import main
from torchpeek.cli.app import app
from torchpeek.cli.commands import COMMANDS
from torchpeek.cli.option_values import layer_names
from torchpeek.cli.options import FolderOptions, OutputOptions

MODEL = ["--model", "--weights", "--seed", "--trust-pickle", "--trust-remote-code"]
INPUT = ["--max-size", "--grey", "--input-size", "--mean", "--std", "--classes"]
TARGET = ["--class", "--box", "--pixels", "--text", "--score", "--part"]
METHOD = ["--method", "--option", "--layer", "--layout"]
METRIC = ["--metric", "--metric-option", "--boxes", "--masks"]
OVERLAY = ["--colormap", "--alpha", "--fade", "--even", "--signed", "--colorbar", "--extract"]
GRID = ["--layer", "--most", "--scale"]
FEATURE_MAPS = ["--channels", "--sort", "--most", "--scale", "--clip", "--colormap"]
OUTPUT = ["--out", "-o", "--overwrite"]
CONSOLE = ["--json", "--debug"]
PICTURES = ["PICTURES", *MODEL, "--device", *INPUT, "--from"]

# Scripts rely on these names, so none of them may go.
EXPECTED = {
    "cam": [
        *[*PICTURES, "--batch-size", *TARGET, "--top", "--contrast", *METHOD, "--fuse", "--smooth"],
        *[*OVERLAY, *OUTPUT, *CONSOLE],
    ],
    "evaluate": [*PICTURES, *TARGET, *METHOD, *METRIC, *OUTPUT, *CONSOLE],
    "layers": [*MODEL, "--picture", *INPUT, *OUTPUT, *CONSOLE],
    "kernels": [*MODEL, *GRID, *OUTPUT, "--tensorboard", *CONSOLE],
    "features": [*PICTURES, "--layer", *TARGET, *FEATURE_MAPS, *OUTPUT, "--tensorboard", *CONSOLE],
    "gradients": [*PICTURES, "--train", "--layer", "--class", *OUTPUT, "--tensorboard", *CONSOLE],
    "run": [
        *[
            "DATA",
            *MODEL,
            "--device",
            *INPUT,
            "--class",
            "--method",
            "--option",
            "--layer",
            "--fuse",
            "--smooth",
            "--keep",
        ],
        *["--dtype", "--metric", "--metric-option", "--data", "--labels", "--boxes", "--masks", "--limit", "--sample"],
        *[
            "--sample-seed",
            "--retry-failed",
            "--max-errors",
            "--executor",
            "--address",
            "--workers",
            "--batch",
            "--shard",
        ],
        *["--estimate", "--out", "-o", "--prometheus", *CONSOLE],
    ],
    "query": ["PLACE", "SQL", "--csv", "--parquet", *CONSOLE],
    "verify": ["PLACE", "--repair", *MODEL, "--device", *INPUT, "--workers", *CONSOLE],
    "export": ["PLACE", "--to", "--out", "-o", "--limit", *CONSOLE],
    "methods": ["--markdown", *CONSOLE],
    "metrics": CONSOLE,
}
DEFAULTS = {
    "--method": ["gradcam"],
    "--device": "cpu",
    "--batch-size": 8,
    "--score": "logit",
    "--seed": 0,
    "--alpha": 0.6,
    "--colormap": "viridis",
    "--most": 64,
    "--sample-seed": 0,
    "--executor": "local",
    "--dtype": "float16",
}
DIFFERENT = {  # by command
    "--scale": {"kernels": "shared", "features": "each"},
    "--most": {"kernels": None},
    "--colormap": {"features": None},
    "--sort": {"features": "index"},
    "--out": {"cam": Path("peek")},
    "--method": {"run": None},
    "--seed": {"run": None, "verify": None},
}


def options_of(command: str) -> list[Any]:
    """Every option and argument, without the groups that they come from."""
    return [each for each in app[command].assemble_argument_collection() if not each.children]


@pytest.mark.parametrize("command", EXPECTED)
class TestEveryCommand:
    def test_names(self, command: str) -> None:
        assert [name for option in options_of(command) for name in option.names] == EXPECTED[command]

    def test_defaults(self, command: str) -> None:
        for option in options_of(command):
            expected = DIFFERENT.get(option.name, {}).get(command, DEFAULTS.get(option.name))
            if option.hint is bool:
                assert option.field_info.default is False
            elif option.name not in ("--model", "PICTURES", "PLACE", "--to") and (command, option.name) != (
                "export",
                "--out",
            ):
                assert option.field_info.default == expected, option.name

    @pytest.mark.parametrize("columns", [80, 120])
    def test_the_help_page_has_them_all(self, command: str, columns: int, capsys, monkeypatch) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as exited:
            main([command, "--help"])
        assert not exited.value.code
        page = capsys.readouterr().out
        words = page.replace("│", " ").split()
        for option in options_of(command):
            assert option.parameter.help, option.name
            assert set(option.names) <= set(words)
            assert " ".join(option.parameter.help.split()[:3]) in " ".join(words)
        assert max(map(len, page.splitlines())) <= columns


def test_commands() -> None:
    assert [command.__name__ for command in COMMANDS] == list(EXPECTED)


def test_an_option_that_commands_share_is_declared_once() -> None:
    """But for those that mean something else, or have another default, in another command."""
    texts: dict[str, set[str]] = defaultdict(set)
    for command in EXPECTED:
        for option in options_of(command):
            texts[option.name].add(option.parameter.help)
    several = {name: len(each) for name, each in texts.items() if len(each) > 1}
    own_of_runs = ("--model", "--weights", "--seed", "--method", "--option", "--fuse", "--metric", "--metric-option")
    own_of_runs += ("--boxes", "--masks", "--limit", "--workers")  # a run that goes on has these already, or others
    assert several == {
        **dict.fromkeys(own_of_runs, 2),
        "--class": 3,
        "--layer": 5,
        "--most": 2,
        "--scale": 2,
        "--colormap": 2,
        "--out": 4,
    }


def test_groups_are_values() -> None:
    assert OutputOptions() == OutputOptions(None, False)
    assert FolderOptions().out == Path("peek")
    with pytest.raises(AttributeError):
        FolderOptions().out = Path("other")  # type: ignore[misc]


def test_layer_names() -> None:
    assert layer_names(None) is None
    assert layer_names([" , "]) is None
    assert layer_names(["features.*, head", "act"]) == ["features.*", "head", "act"]

"""Help, the version, and commands that do not exist."""

from __future__ import annotations

import pytest

import torchpeek as tp
from cli_runner import run


class TestMain:
    @pytest.mark.parametrize("command", [[], ["cam"], ["layers"], ["methods"]])
    def test_help(self, command, capsys) -> None:
        assert run(*command, "--help") == 0
        out = capsys.readouterr().out
        assert "Usage" in out
        if command == ["cam"]:
            for option in ("--model", "--method", "--class", "--layer", "--out", "--weights", "--json"):
                assert option in out

    def test_version(self, capsys) -> None:
        assert run("--version") == 0
        assert tp.__version__ in capsys.readouterr().out

    def test_unknown_command(self, capsys) -> None:
        assert run("cams") == 2


def test_code_of_the_model_that_exits(in_folder, capsys) -> None:
    """Also with the status 0, which would say that everything was done."""
    (in_folder / "exits.py").write_text("import sys\nsys.exit(0)")
    assert run("layers", "--model", "exits:make") == 2
    assert "error: " in capsys.readouterr().err

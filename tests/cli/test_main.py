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

"""torchpeek methods: the table of methods."""

from __future__ import annotations

import json

import torchpeek as tp
from cli_runner import run


class TestMethods:
    def test_methods(self, capsys) -> None:
        assert run("methods") == 0
        out = capsys.readouterr().out
        assert all(name in out for name in tp.METHODS)
        assert run("methods", "--json") == 0
        assert [each["name"] for each in json.loads(capsys.readouterr().out)] == list(tp.METHODS)

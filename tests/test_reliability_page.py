"""docs/reliability.md: every block runs on its own, and the contents are the sections."""

from __future__ import annotations

import ast
import re

import pytest
from torch.nn.modules import module as process

from paths import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS)
def test_the_block_runs(code: str, capfd) -> None:
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code).body[-1]))
    exec(compile(code, "reliability.md", "exec"), {"__name__": "block"})
    assert capfd.readouterr() == ("", "")
    assert not [name for name, table in vars(process).items() if re.match("_global_.*hooks", name) and table]


def test_the_contents_are_the_sections() -> None:
    sections = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert re.findall(r"^- \[(.+)\]\(#.+\)$", PAGE, re.MULTILINE) == sections


def test_it_keeps_to_its_width() -> None:
    assert all(len(line) <= 125 or line.startswith("|") for line in PAGE.splitlines())

"""Two commands on one output folder: one writes, and the other is refused before it writes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_runner import CHELSEA, files, of, run
from torchpeek.store import OutputFolder


@pytest.mark.parametrize("words", [[], ["--overwrite"]])
@pytest.mark.parametrize("command", ["cam", "features", "kernels", "evaluate", "gradients", "layers"])
def test_a_folder_in_use(command, words, tmp_path: Path, capsys) -> None:
    other = OutputFolder.prepared(tmp_path / "out")
    arguments = {
        "kernels": [],
        "layers": ["--picture", CHELSEA],
        "evaluate": [CHELSEA, "--metric", "sparseness"],
        "gradients": [CHELSEA, "--class", "1"],
    }.get(command, [CHELSEA])
    assert run(command, *arguments, *of("untrained"), "--out", str(tmp_path / "out"), *words) == 2
    assert "is in use: another object or thread of this process" in " ".join(capsys.readouterr().err.split())
    assert files(tmp_path) == set()
    assert other.held
    other.close()
    assert run(command, *arguments, *of("untrained"), "--out", str(tmp_path / "out"), *words) == 0
    assert files(tmp_path)
    assert not [name for name in files(tmp_path) if ".torchpeek" in name]

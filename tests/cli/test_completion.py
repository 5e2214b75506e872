"""torchpeek --install-completion: the script completes in a real shell."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from cli_runner import run
from torchpeek.cam import METHODS
from torchpeek.cli.option_values import Colormap, MethodName, MetricName
from torchpeek.metrics import METRICS
from torchpeek.render import COLORMAPS


def test_the_names_are_the_registries() -> None:
    assert get_args(MethodName) == ("all", *METHODS)
    assert get_args(MetricName) == ("all", *METRICS)
    assert set(get_args(Colormap)) == set(COLORMAPS)


@pytest.mark.parametrize(("shell", "name"), [("bash", "torchpeek"), ("zsh", "_torchpeek"), ("fish", "torchpeek.fish")])
def test_a_script_is_written(shell: str, name: str, in_folder: Path, capsys) -> None:
    assert run("--install-completion", "--shell", shell, "--out", "scripts") == 0
    assert f"written to scripts/{name}" in capsys.readouterr().out
    script = (in_folder / "scripts" / name).read_text()
    assert all(method in script for method in METHODS)
    assert "--install-completion" in script or shell == "fish"


def test_another_shell_is_refused(capsys) -> None:
    assert run("--install-completion", "--shell", "tcsh") == 2
    assert "--shell is tcsh; allowed: bash, zsh, fish" in capsys.readouterr().err


def test_the_start_up_files_are_left_alone(in_folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(in_folder))
    (in_folder / ".bashrc").write_text("mine\n")
    assert run("--install-completion", "--shell", "bash") == 0
    assert (in_folder / ".bashrc").read_text() == "mine\n"
    assert (in_folder / ".local/share/bash-completion/completions/torchpeek").exists()


def test_an_old_script_stays_whole_where_the_new_one_does_not_fit(in_folder: Path, capsys, monkeypatch) -> None:
    (in_folder / "scripts").mkdir()
    (in_folder / "scripts" / "torchpeek").write_text("old")

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(os, "fdopen", full)
    assert run("--install-completion", "--shell", "bash", "--out", "scripts") == 2
    assert "scripts/torchpeek: cannot be written (no space left on device)" in capsys.readouterr().err
    assert [file.name for file in (in_folder / "scripts").iterdir()] == ["torchpeek"]
    assert (in_folder / "scripts" / "torchpeek").read_text() == "old"


def test_a_link_is_followed(in_folder: Path, capsys) -> None:
    """Such files are often links into a folder of their own."""
    (in_folder / "scripts").mkdir()
    (in_folder / "kept").mkdir()
    script = in_folder / "scripts" / "torchpeek"
    script.symlink_to("../kept/torchpeek.bash")
    for _ in range(2):  # the first makes what the link leads to
        assert run("--install-completion", "--shell", "bash", "--out", "scripts") == 0
        assert script.is_symlink()
        assert "complete" in (in_folder / "kept" / "torchpeek.bash").read_text()
    for aim, why in (("/dev/null", "cannot be written, because it is not a regular file"), ("torchpeek", "cannot be")):
        script.unlink()
        script.symlink_to(aim)
        assert run("--install-completion", "--shell", "bash", "--out", "scripts") == 2
        err = capsys.readouterr().err
        assert f"scripts/torchpeek: {why}" in err
        assert err.count("\n") == 1


CASES = [
    (["ca"], ["cam"]),
    (["cam", "--meth"], ["--method"]),
    (["cam", "x", "--method", "gradcam"], ["gradcam", "gradcam++", "gradcam-elementwise"]),
    (["evaluate", "x", "--metric", "delet"], ["deletion"]),
    (["cam", "my p"], ["my pictures"]),
    (["cam", "my pictures/"], ["my pictures/a cat.jpg"]),
    (["cam", "x", "--classes", "na"], ["names.txt"]),
    (["cam", "x", "--weights", "na"], ["names.txt"]),
    (["cam", "x", "--colormap", "t"], ["turbo"]),
    (["features", "x", "--scale", "s"], ["shared"]),
    (["cam", "x", "--score", "log"], ["logit", "log-odds"]),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("words", "expected"), CASES)
def test_in_bash(words: list[str], expected: list[str], in_folder: Path) -> None:
    assert run("--install-completion", "--shell", "bash", "--out", "scripts") == 0
    (in_folder / "my pictures").mkdir()
    (in_folder / "my pictures" / "a cat.jpg").touch()
    (in_folder / "names.txt").touch()
    program = (
        "enable -n mapfile readarray\n"  # the bash 3.2 of macOS has neither
        "source scripts/torchpeek\n"
        'COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()\n'
        '_torchpeek\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", program, "bash", "torchpeek", *words], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == expected

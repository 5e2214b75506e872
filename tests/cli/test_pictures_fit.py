"""A model that takes no pictures as they are read is refused before the first of them is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_runner import run

COMMANDS = ["cam", "evaluate", "features", "gradients"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_grey_network_of_a_bare_builder(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "pictures" / "0.png").write_bytes(b"no picture")  # the first that can be read decides
    assert run(command, "pictures", "--model", "cli_models:grey", "--out", "out") == 2
    err = capsys.readouterr().err
    assert "a.png: the inputs do not fit the model: got (1, 3, 224, 224) of torch.float32 on cpu" in err
    assert "'0' (Conv2d), takes (N, 1, H, W)" in err
    assert "it has 3 channels, not 1. Next: give a model with a preprocessing" in err
    assert not any(f"{activity}: " in err for activity in ("explaining", "evaluating", "looking"))  # no progress
    assert not (place / "out").exists()


def test_one_that_fits_is_not_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("features", "pictures", "--model", "cli_models:pooled") == 0
    assert "do not fit" not in capsys.readouterr().err


def test_layers_says_what_to_do_in_a_shell(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = ("layers", "--model", "cli_models:grey")
    assert run(*grey) == run(*grey, "--input-size", "3", "16", "16") == 2
    assert capsys.readouterr().err.count("it has 3 channels, not 1. Next: say what it takes with --input-size") == 2
    assert run(*grey, "--picture", "pictures/a.png") == 2
    assert "a.png: the inputs do not fit the model" in (err := capsys.readouterr().err)
    assert "Next: give a model with a preprocessing" in err
    assert run(*grey, "--input-size", "1", "28", "28") == 0

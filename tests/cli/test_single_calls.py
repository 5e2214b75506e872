"""The commands name one call of a layer as "torchpeek layers" and "torchpeek features" list it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import torchpeek as tp
from cli_models import tokens
from cli_runner import asked, files, of, run


def test_layers_says_how_a_call_is_named(place, capsys) -> None:
    assert run("layers", *of("tokens"), "--input-size", "3", "16", "16") == 0
    out = capsys.readouterr().out
    assert "'act[0]' to 'act[1]', or 'act[-1]' for the last" in out
    printed = asked(capsys, "layers", *of("tokens"), "--input-size", "3", "16", "16")
    (row,) = (row for row in printed["layers"] if row["name"] == "act")
    table = tp.layers(tokens(), torch.zeros(1, 3, 16, 16))
    assert row["outputs"] == next(list(each.outputs) for each in table if each.name == "act")
    assert len(row["outputs"]) == row["calls"] == 2


def test_features_draws_the_call_that_is_named(place, capsys) -> None:
    words = ("features", "pictures/a.png", *of("tokens"))
    found = asked(capsys, *words, "--layer", "act[0],act[-1]", "-o", "out")["features"]
    loaded = tokens()
    expected = tp.activations(loaded, loaded.read("pictures/a.png"), ["act[0]", "act[1]"])
    assert [row["layer"] for row in found] == ["act[0]", "act[-1]"]
    assert [row.get("drawn") for row in found] == ["out/a/act-0.png", "out/a/act-1.png"]
    assert found[0]["shape"] == list(expected["act[0]"].shape)
    stored = load_file(place / "out" / "a" / "features.safetensors")
    assert torch.equal(stored["act[0]"], expected["act[0]"])
    assert torch.equal(stored["act[-1]"], expected["act[1]"])
    found = asked(capsys, *words, "--layer", "act", "-o", "out2")["features"]
    assert [row["drawn"] for row in found] == ["out2/a/act-0.png", "out2/a/act-1.png"]


@pytest.mark.parametrize("layer", ["act[0]", "act[1]", "act[-2]"])
def test_cam_and_evaluate(place, capsys, layer: str) -> None:
    words = ("pictures/a.png", *of("tokens"), "--layer", layer)
    assert run("cam", *words, "-o", "out") == 0
    assert files(place / "out")
    assert layer in capsys.readouterr().out
    assert run("evaluate", *words, "--metric", "entropy") == 0


def test_a_call_that_does_not_exist(place, capsys) -> None:
    for command in ("cam", "features"):
        status = run(command, "pictures/a.png", *of("tokens"), "--layer", "act[2]")
        text = "".join(capsys.readouterr())
        assert "'act[0]' to 'act[1]'" in text, (command, text)
        assert status != 0 or command == "features"
    assert run("kernels", *of("tokens"), "--layer", "patches[0]") != 0
    assert "name the layer alone, 'patches'" in "".join(capsys.readouterr())
    assert run("cam", "pictures/a.png", *of("tokens"), "--layer", "act") != 0
    assert "'act[0]' to 'act[1]'" in "".join(capsys.readouterr())

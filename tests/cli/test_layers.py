"""torchpeek layers, against what the library returns."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch

import torchpeek as tp
from cli_models import pooled
from cli_runner import asked, files, of, run, strict


class TestLayers:
    def test_layers(self, place, capsys) -> None:
        assert run("layers", "--model", "my_nets:make") == 0
        out = capsys.readouterr().out
        assert "(N, 6, 16, 16)" in out
        assert "suggested for heatmaps: act" in out
        assert run("layers", "--model", "my_nets:make", "--json", "--picture", "pictures/a.png") == 0
        table = json.loads(capsys.readouterr().out)
        assert table["suggested"]["layer"] == "act"
        assert run("layers", "--model", "my_nets:make", "--input-size", "3", "8", "9") == 0
        assert "(N, 6, 8, 9)" in capsys.readouterr().out

    def test_layers_of_a_network_without_a_grid(self, place, capsys) -> None:
        assert run("layers", "--model", "my_nets:flat") == 0
        assert "(N, 768)" in capsys.readouterr().out


def test_layers(place, capsys) -> None:
    printed = asked(capsys, "layers", *of("pooled"), "-o", "out")
    table = tp.layers(pooled(), torch.zeros(1, 3, 16, 16))
    assert printed["layers"] == [asdict(row) for row in table]
    assert printed["suggested"]["layer"] == "act"
    assert files(place / "out") == {"layers.json", "layers.txt"}
    assert strict((place / "out" / "layers.json").read_text()) == printed
    assert (place / "out" / "layers.txt").read_text() == f"{table}\n"

"""torchpeek gradients: numbers, files and errors, against the library."""

from __future__ import annotations

from dataclasses import asdict

import pytest

import torchpeek as tp
from cli_models import pooled, trained
from cli_runner import asked, batch_of, files, of, pixels, run, strict


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], {}),
        (["--class", "elk"], {"target": "elk"}),
        (["--class", "3", "--layer", "features.*"], {"target": 3, "layers": "features.*"}),
    ],
)
def test_numbers_and_files(place, capsys, words, given) -> None:
    printed = asked(capsys, "gradients", "pictures", *of("pooled"), *words, "-o", "out")
    flow = tp.gradient_flow(loaded := pooled(), batch_of(loaded), **given)
    assert printed["gradients"] == [asdict(row) for row in flow]
    assert len(printed["gradients"]) == (4 if "layers" in given else 6)
    assert (printed["loss"], printed["total_norm"]) == (flow.loss, flow.total_norm)
    assert files(place / "out") == {"gradient-flow.png", "gradients.json", "report.html"}
    assert strict((place / "out" / "gradients.json").read_text()) == printed
    height, width, _ = pixels(printed["plot"]).shape
    assert 600 < width < 4000
    assert 400 < height < 2000


def test_train(place, capsys) -> None:
    norms = []
    for mode, words in (("eval", []), ("train", ["--train"])):
        printed = asked(capsys, "gradients", "pictures", *of("trained"), *words)
        loaded = trained()
        batch = batch_of(loaded)
        loaded.module.train(mode == "train")
        assert printed["gradients"] == [asdict(row) for row in tp.gradient_flow(loaded, batch)]
        assert printed["about"]["mode"] == mode
        norms.append(printed["total_norm"])
    assert norms[0] != pytest.approx(norms[1], rel=0.01)


def test_inputs_of_different_sizes_make_no_batch(place, capsys) -> None:
    assert run("gradients", "pictures", *of("any_size"), "-o", "out") == 2
    assert "different shapes, [(3, 30, 40), (3, 30, 41), (3, 30, 42)]" in capsys.readouterr().err
    assert not (place / "out").exists()
    assert run("gradients", "pictures/b.png", *of("any_size")) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ["cli_models:untrained (random weights)", "the predicted class", "eval mode"]),
        (["--class", "bee"], ["class bee"]),
        (["--class", "3", "--train"], ["class 3 (dog)", "train mode"]),
    ],
)
def test_the_plot_says_what_it_is_of(place, capsys, sheets, words, said) -> None:
    printed = asked(capsys, "gradients", "pictures", *of("untrained"), *words, "-o", "out")
    for each in (*said, f"loss {printed['loss']:.4g}"):
        assert each in " ".join(sheets[0])

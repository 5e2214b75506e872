"""torchpeek features: numbers, files and errors, against the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import torchpeek as tp
from cli_models import attentive, odd, pooled, tokens
from cli_runner import CHELSEA, asked, files, numbers, of, pixels, run, strict
from torchpeek.cli.features import _layer_outputs
from torchpeek.render import feature_grid


def test_numbers_and_files(place, capsys) -> None:
    words = ("pictures", *of("pooled"), "--layer", "features.*0, act", "--layer", "head", "-o", "out")
    printed = asked(capsys, "features", *words)
    named = {f"{stem}/{name}" for stem in "abc" for name in ("features.0.png", "act.png", "features.safetensors")}
    assert files(place / "out") == {"features.json", "report.html", *named}
    assert strict((place / "out" / "features.json").read_text()) == printed
    rows, loaded = iter(printed["features"]), pooled()
    for stem in "abc":
        stored = load_file(place / "out" / stem / "features.safetensors")
        for layer in ("features.0", "act", "head"):
            found = tp.activations(loaded, loaded.read(f"pictures/{stem}.png"), layer)[layer]
            row = next(rows)
            dead = int((found == 0).flatten(2).all(2).sum()) if found.ndim == 4 else 0
            assert row | numbers(found) | {"picture": f"pictures/{stem}.png", "layer": layer, "dead": dead} == row
            assert torch.equal(stored[layer], found)
            if layer == "head":
                assert row["remark"] == "no grid to draw"
            else:
                assert np.array_equal(pixels(row["drawn"]), feature_grid(found, title=layer))
    assert next(rows, None) is None


def test_without_a_layer_it_is_the_suggested_one_in_any_size(place, capsys) -> None:
    printed = asked(capsys, "features", "pictures", *of("any_size"))
    assert [row["shape"] for row in printed["features"]] == [[1, 6, 30, 40 + n] for n in range(3)]
    assert {row["layer"] for row in printed["features"]} == {"act"}


def test_pictures_of_one_name(place, capsys) -> None:
    (place / "more").mkdir()
    (place / "more" / "A.png").write_bytes((place / "pictures" / "c.png").read_bytes())
    assert run("features", "pictures", "more", *of("pooled"), "-o", "out") == 0
    loaded = pooled()
    for folder, file in (("a", "pictures/a.png"), ("a-2", "more/A.png")):
        stored = load_file(place / "out" / folder / "features.safetensors")
        assert torch.equal(stored["act"], tp.activations(loaded, loaded.read(file), "act")["act"])


def test_a_picture_called_as_the_results_are(place, capsys) -> None:
    (place / "pictures" / "features.json.png").write_bytes((place / "pictures" / "a.png").read_bytes())
    assert run("features", "pictures", *of("pooled"), "-o", "out") == 0


def test_dead_channels_where_channels_are_last(place, capsys) -> None:
    (row,) = asked(capsys, "features", "pictures/a.png", *of("tokens"), "--layer", "norms.0")["features"]
    loaded = tokens()
    known = tp.statistics(loaded, [loaded.read("pictures/a.png").tensor], "norms.0")["norms.0"].output.summary()
    assert known.dead == 1
    assert row["dead"] == 1


def test_a_glob_that_takes_in_a_layer_without_one_output(place, capsys) -> None:
    found = asked(capsys, "features", "pictures/a.png", *of("tokens"), "--layer", "*")["features"]
    assert {"patches", "norms.0", "head"} <= {row["layer"] for row in found if "mean" in row}


def test_a_comma_too_many(place, capsys) -> None:
    found = asked(capsys, "features", "pictures/a.png", *of("pooled"), "--layer", "act,")["features"]
    assert [row["layer"] for row in found] == ["act"]


def test_real_weights(mobilenet, in_folder, capsys) -> None:
    words = ("--model", "torchvision:mobilenet_v2", "--layer", "features.0.0,features.18")
    printed = asked(capsys, "features", CHELSEA, *words, "-o", "out")
    found = tp.activations(mobilenet, mobilenet.read(CHELSEA), ["features.0.0", "features.18"])
    stored = load_file(in_folder / "out" / "chelsea" / "features.safetensors")
    for row, (layer, activation) in zip(printed["features"], found.items(), strict=True):
        assert row | numbers(activation) == row
        assert torch.equal(stored[layer], activation)
        assert np.array_equal(pixels(row["drawn"]), feature_grid(activation, title=layer))
    assert printed["about"]["weights"] == "IMAGENET1K_V1"
    (row,) = asked(capsys, "kernels", *words[:3], "features.0*")["layers"]
    assert row | numbers(mobilenet.module.features[0][0].weight.detach()) == row


def test_each_call_of_a_layer_is_a_row(place, capsys) -> None:
    found = asked(capsys, "features", "pictures/a.png", *of("tokens"), "--layer", "act,norms", "-o", "out")["features"]
    assert [row["layer"] for row in found] == ["act[0]", "act[1]", "norms"]
    loaded = tokens()
    known = tp.statistics(loaded, [loaded.read("pictures/a.png").tensor], "act")
    for row, each in zip(found, known, strict=False):
        assert row["mean"] == pytest.approx(each.output.summary().mean)
    assert "never called" in found[2]["remark"]
    assert files(place / "out") == {
        "features.json",
        "report.html",
        "a/features.safetensors",
        "a/act-0.png",
        "a/act-1.png",
    }
    first, second = tp.activations(loaded, loaded.read("pictures/a.png"), ["act[0]", "act[1]"]).values()
    assert np.array_equal(pixels(found[0]["drawn"]), feature_grid(first, title="act[0]"))
    # The second call returns the tokens of the 4 x 4 grid.
    assert found[1]["layout"] == "tokens 4x4"
    grid = second.mT.unflatten(2, (4, 4))
    assert np.array_equal(pixels(found[1]["drawn"]), feature_grid(grid, title="act[1]"))


def test_whatever_layers_return_is_a_row(place, capsys) -> None:
    found = asked(capsys, "features", "pictures/a.png", *of("odd"), "--layer", "*", "-o", "out")["features"]
    rows = {row["layer"]: row for row in found}
    assert set(rows) == {"conv", "lstm:0", "lstm:1.0", "lstm:1.1", "waves", "words", "halves", "last", "none"}
    remarks = {layer: row["remark"] for layer, row in rows.items() if "remark" in row}
    assert "complex" in remarks.pop("waves")
    assert remarks == {
        **dict.fromkeys(["lstm:0", "lstm:1.0", "lstm:1.1"], "one of several tensors, not drawn"),
        **dict.fromkeys(["halves", "none"], "no grid to draw"),
        "words": "returned no tensor",
    }
    loaded = odd()
    picture = loaded.read("pictures/a.png")
    stored = load_file(place / "out" / "a" / "features.safetensors")
    assert torch.equal(stored["lstm:1.1"], tp.activations(loaded, picture, "lstm")["lstm"][1][1])
    assert rows["lstm:1.1"] | numbers(stored["lstm:1.1"]) == rows["lstm:1.1"]
    # The channels that the numbers are of are those that are drawn.
    last = tp.activations(loaded, picture, "last")["last"]  # (1, 4, 14, 6)
    assert np.array_equal(pixels(rows["last"]["drawn"]), feature_grid(last.movedim(-1, 1), title="last"))


def test_a_picture_that_the_model_cannot_take(place, capsys) -> None:
    Image.new("RGB", (16, 16)).save(place / "pictures" / "z.png")
    assert run("features", "pictures", *of("picky"), "--layer", "0", "-o", "in/out") == 1
    out = capsys.readouterr().out
    assert "skipped pictures/a.png: RuntimeError: " in out
    assert "3 of 4 pictures skipped" in out
    assert list((place / "in" / "out").iterdir())
    assert run("features", "pictures/a.png", "pictures/b.png", *of("picky"), "--layer", "0", "-o", "over/there") == 2
    err = capsys.readouterr().err
    assert "none of the 2 pictures could be used: pictures/a.png: RuntimeError: " in err
    assert "; pictures/b.png: RuntimeError: " in err
    assert not (place / "over").exists()


def test_what_was_done_before_an_interrupt_is_listed(place, capsys, monkeypatch) -> None:
    def until_b(loaded, path, **options):
        if "b.png" in str(path):
            raise KeyboardInterrupt
        return read(loaded, path, **options)

    read = tp.LoadedModel.read
    monkeypatch.setattr(tp.LoadedModel, "read", until_b)
    assert run("features", "pictures", *of("pooled"), "-o", "out") == 130
    written = strict((place / "out" / "features.json").read_text())
    assert [row["picture"] for row in written["features"]] == ["pictures/a.png"]


def test_tokens_with_contributions_of_a_class(place, capsys) -> None:
    words = ("--layer", "encoder.layers.*_0", "--sort", "contribution", "--class", "cat", "--clip", "2", "98")
    words += ("--most", "5", "-o", "out", "--tensorboard", "runs")
    (row,) = asked(capsys, "features", "pictures/a.png", *of("attentive"), *words)["features"]
    loaded = attentive()
    trace = tp.trace(loaded, loaded.read("pictures/a.png"), layer="encoder.layers.encoder_layer_0", target="cat")
    assert row["layout"] == "tokens 1+4x4"
    assert row["contributions"] == pytest.approx(trace.contributions[0, 0].tolist())
    assert row["score"] == pytest.approx(float(trace.scores))
    expected = feature_grid(trace, sort="contribution", clip=(2, 98), most=5)
    assert np.array_equal(pixels(row["drawn"]), expected)
    assert any((place / "runs").iterdir())


def test_chosen_channels(place, capsys) -> None:
    words = ("--layer", "act", "--channels", "4,0", "--channels", "2", "--scale", "shared", "-o", "out")
    (row,) = asked(capsys, "features", "pictures/a.png", *of("pooled"), *words)["features"]
    loaded = pooled()
    found = tp.activations(loaded, loaded.read("pictures/a.png"), "act")["act"]
    expected = feature_grid(found, channels=[4, 0, 2], scale="shared", title="act")
    assert np.array_equal(pixels(row["drawn"]), expected)


def test_a_layer_that_the_score_does_not_read_is_listed_with_the_reason(place, capsys) -> None:
    words = ("--layer", "unused,used", "--sort", "contribution", "-o", "out")
    rows = asked(capsys, "features", "pictures/a.png", *of("idle"), *words)["features"]
    assert ["drawn" in row for row in rows] == [False, True]
    assert "does not depend on" in rows[0]["remark"]
    assert "mean" in rows[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--channels", "1,x"), "--channels is 'x'; allowed: indices from 0, such as --channels 3,17,250"),
        (("--channels", "99", "-o", "out"), "channel 99 is not in the activation; allowed channels: 0 to 5"),
        (("--channels", "99"), "channel 99 is not in the activation; allowed channels: 0 to 5"),
        (("--channels", "99", "--tensorboard", "tb"), "layer 'act': channel 99 is not in the activation"),
        (("--sort", "norm"), "no sort 'norm'; allowed: --sort index, --sort contribution"),
        (
            ("--clip", "99", "1"),
            "--clip is 99 1; allowed: two percentiles from 0 to 100, the lower one first: --clip 1 99",
        ),
        (("--class", "cat"), "add --sort contribution, or leave the score out"),
        (("--sort", "contribution", "--class", "cat", "--class", "dog"), "sorts by one score; got 2. Run it once"),
        (("--sort", "contribution", "--class", "cow"), "cow"),
    ],
)
def test_options_that_are_refused(place, capsys, words: tuple[str, ...], message: str) -> None:
    assert run("features", "pictures/a.png", *of("pooled"), *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("layer", ["head", "act[-1]", "act[1]", "act"])
def test_the_tensors_are_of_the_pass_that_the_statistics_are_of(layer: str) -> None:
    """Another pass would take as long, and would be another one for a model that draws at random."""
    loaded, x = tokens(), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    names = ["act[0]", "act[1]"] if layer == "act" else [layer]
    expected = tp.activations(loaded, x, names)
    found = _layer_outputs(loaded, x, [layer], None)
    assert [each.name for each in found] == names
    assert all(torch.equal(each.tensor, expected[each.name]) for each in found)


def test_one_pass_for_each_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, sizes = pooled(), []
    monkeypatch.setattr(loaded.module.head, "forward", lambda x: sizes.append(len(x)) or torch.zeros(len(x), 5))
    _layer_outputs(loaded, torch.rand(1, 3, 16, 16), ["head"], None)
    assert sizes.count(1) == 1  # the dry pass of the statistics has two samples

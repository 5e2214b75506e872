"""What the commands layers, kernels, features and gradients have in common."""

from __future__ import annotations

import io

import numpy as np
import pytest

import torchpeek as tp
from cli_models import pooled
from cli_runner import asked, events_of, files, of, pixels, run, strict

COMMANDS = ["layers", "kernels", "features", "gradients"]
PICTURES = {"layers": [], "kernels": [], "features": ["pictures"], "gradients": ["pictures"]}


def test_tables(place, capsys) -> None:
    assert run("kernels", *of("pooled"), "--layer", "features.0") == 0
    assert run("features", "pictures/a.png", *of("pooled"), "--layer", "head") == 0
    assert run("gradients", "pictures/a.png", *of("pooled"), "--layer", "head") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    picture, weight = pooled().read("pictures/a.png"), tp.kernels(pooled())["features.0"]
    head = tp.activations(pooled(), picture, "head")["head"]
    flow = tp.gradient_flow(pooled(), picture, layers="head")
    assert lines[1][:9] == ["features.0", "4", "x", "3", "x", "3", "x", "3", f"{weight.mean():.4g}"]
    assert lines[2] == ["3", "x", "3:", "1", "layer"]
    assert lines[4][:6] == ["pictures/a.png", "head", "1", "x", "5", f"{head.mean():.4g}"]
    assert lines[6][:4] == ["head", "weight", "30", f"{flow[0].gradient_norm:.4g}"]
    assert " ".join(lines[-1]) == flow.footer


def test_how_they_are_drawn(place, sheets) -> None:
    looks = ("-o", "out", "--overwrite", "--most", "2", "--scale")
    assert run("kernels", *of("pooled"), *looks, "each") == 0
    assert run("features", "pictures/a.png", *of("pooled"), *looks, "shared", "--colormap", "diverging") == 0
    *_, drawn, first, features = (" | ".join(words) for words in sheets)
    caption = "features.2: 2 of 6 kernels, largest norm first, 2 of 4 input channels, largest norm first, size 3 x 3"
    assert caption in drawn
    assert "| scale: each tile to its own" in drawn
    assert "features.2: 2 of 4 input channels, largest norm first" in first
    assert "act: first 2 of 6 channels, 16 x 16 values each | scale: shared, -" in features


@pytest.mark.parametrize(("command", "count"), [("kernels", 3), ("features", 3), ("gradients", 1)])
def test_random_weights_are_said_on_every_picture(place, sheets, command, count) -> None:
    assert run(command, *PICTURES[command], *of("untrained"), "-o", "out") == 0
    assert ["random weights" in " ".join(words) for words in sheets] == [True] * count


@pytest.mark.parametrize(("command", "count"), [("kernels", 2), ("features", 3)])
def test_random_weights_are_said_in_tensorboard(place, sheets, command, count) -> None:
    assert run(command, *PICTURES[command], *of("untrained"), "--tensorboard", "runs") == 0
    assert ["random weights" in " ".join(words) for words in sheets] == [True] * count


@pytest.mark.parametrize("command", ["kernels", "features", "gradients"])
def test_json_has_no_nan(place, capsys, command) -> None:
    asked(capsys, command, *PICTURES[command], *of("broken"), "-o", "out")
    assert strict((place / "out" / f"{command}.json").read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_not_empty(place, capsys, command) -> None:
    words = (command, *PICTURES[command], *of("pooled"), "-o", "out")
    (place / "out").mkdir()
    (place / "out" / f"{command}.json").write_text("mine")
    assert run(*words) == 2
    assert "'out' is not empty" in capsys.readouterr().err
    assert (place / "out" / f"{command}.json").read_text() == "mine"
    assert run(*words, "--overwrite") == 0
    assert strict((place / "out" / f"{command}.json").read_text())


@pytest.mark.parametrize("command", ["features", "gradients"])
def test_a_picture_that_cannot_be_read_is_named(place, capsys, command) -> None:
    (place / "pictures" / "b.png").write_bytes(b"broken")
    assert run(command, "pictures", *of("pooled"), "-o", "out") == 1
    out = capsys.readouterr().out
    assert "1 of 3 pictures skipped" in out
    written = strict((place / "out" / f"{command}.json").read_text())
    assert list(written["skipped"]) == ["pictures/b.png"]
    assert len(written["features"]) == 2 if command == "features" else written["about"]["pictures"] == 2
    assert "skipped pictures/b.png: not a picture" in out


@pytest.mark.parametrize("command", ["features", "gradients"])
def test_no_picture_can_be_read(place, capsys, command) -> None:
    for stem in "abc":
        (place / "pictures" / f"{stem}.png").write_bytes(b"broken")
    assert run(command, "pictures", *of("pooled"), "--tensorboard", "runs", "-o", "out") == 1  # as of cam
    out = capsys.readouterr().out
    assert "skipped pictures/c.png: not a picture" in out
    assert "3 of 3 pictures skipped" in out
    assert files(place / "out") == {f"{command}.json", "report.html"}
    written = strict((place / "out" / f"{command}.json").read_text())
    assert (written[command], len(written["skipped"])) == ([], 3)
    assert not (place / "runs").exists()


@pytest.mark.parametrize(("command", "wrong"), [("kernels", "heads"), ("features", "heads"), ("gradients", "act")])
def test_what_fails_leaves_no_folder(place, capsys, command, wrong) -> None:
    words = (command, *PICTURES[command], *of("pooled"), "--layer", wrong)
    assert run(*words, "-o", "in/to/out", "--tensorboard", "runs/1") == 2
    assert not (place / "in").exists()
    assert not (place / "runs").exists()
    (place / "in").mkdir()
    assert run(*words, "-o", "in/to/out") == 2
    assert files(place / "in") == set()
    assert list((place / "in").iterdir()) == []


@pytest.mark.parametrize("command", ["kernels", "features", "gradients"])
def test_tensorboard_into_a_file(place, capsys, command) -> None:
    (place / "runs").write_text("mine")
    assert run(command, *PICTURES[command], *of("pooled"), "--tensorboard", "runs", "-o", "out") == 2
    assert "'runs' is a file" in capsys.readouterr().err
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("layers", "layers.json, layers.txt"),
        ("kernels", "3 pictures, kernels.safetensors, kernels.json"),
        ("features", "3 grids, features.safetensors of each picture, features.json"),
        ("gradients", "gradient-flow.png, gradients.json"),
    ],
)
def test_it_says_what_it_wrote(place, capsys, command, what) -> None:
    assert run(command, *PICTURES[command], *of("pooled"), "-o", "in/out") == 0
    page = ["report: in/out/report.html"] * (command != "layers")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1 - len(page) :] == [f"written to in/out/: {what}", *page]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kernels", "--layer", "heads"], "closest: 'head'"),
        (["features", "pictures", "--layer", "act,acts"], "closest: 'act'"),
        (["gradients", "pictures", "--layer", "feature"], "closest: 'features'"),
        (["gradients", "pictures", "--layer", "act"], "none of these layers has parameters"),
        (["gradients", "pictures", "--class", "bea"], "closest: 'bee'"),
        (["gradients", "pictures", "--class", "5"], "0 to 4"),
        (["features"], "no pictures"),
        (["gradients"], "no pictures"),
        (["features", "none*"], "matches no file"),
        (["features", "pictures", "--colormap", "red"], "viridis"),
        (["features", "pictures", "--device", "quantum"], "--device 'quantum'"),
        (["features", "pictures", "--scale", "all"], "no scale 'all'"),
        (["features", "pictures", "--most", "0"], "most is 0"),
        (["kernels", "--scale", "all"], "no scale 'all'"),
    ],
)
@pytest.mark.parametrize("out", [["-o", "out"], []])
def test_mistakes_are_one_line_and_exit_with_2(place, capsys, words, message, out) -> None:
    assert run(*words, *of("pooled"), *out) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (place / "out").exists()


@pytest.mark.parametrize(("command", "lacking"), [("kernels", "convolution"), ("gradients", "parameter")])
def test_a_network_without_any(place, capsys, command, lacking) -> None:
    assert run(command, *PICTURES[command], *of("plain")) == 2
    err = capsys.readouterr().err
    assert lacking in err
    assert "_ConvNd" not in err
    assert "<lambda>" not in err


def test_tensorboard(place, capsys) -> None:
    drawn = asked(capsys, "kernels", *of("pooled"), "--tensorboard", "kernels", "-o", "grids")["layers"]
    events = events_of(place / "kernels")
    assert sorted(events.Tags()["images"]) == ["kernels/features.0", "kernels/features.2"]
    shown = [(events.Images("kernels/features.2")[0], 0, drawn[1]["picture"])]
    drawn = asked(capsys, "features", "pictures", *of("pooled"), "--tensorboard", "maps", "-o", "more")["features"]
    steps = zip(events_of(place / "maps").Images("features/act"), drawn, strict=True)
    shown += [(event, step, row["drawn"]) for step, (event, row) in enumerate(steps)]
    for event, step, file in shown:
        assert event.step == step
        assert np.array_equal(pixels(io.BytesIO(event.encoded_image_string)), pixels(file))
    flow = asked(capsys, "gradients", "pictures", *of("pooled"), "--tensorboard", "flow")
    events = events_of(place / "flow")
    norms = {f"gradient_norm/{row['layer']}.{row['parameter']}": row["gradient_norm"] for row in flow["gradients"]}
    norms |= {"loss": flow["loss"], "gradient_norm/all": flow["total_norm"]}
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == pytest.approx(norms)

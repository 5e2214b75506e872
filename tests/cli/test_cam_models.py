"""torchpeek cam with detectors, segmentation models, image-text models and transformers, against the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import torchpeek as tp
from cli_models import (
    CLASSES,
    attentive,
    convolutional,
    embedder,
    listing,
    queries,
    segmenter,
)
from cli_runner import run, strict
from torchpeek.engine.targets import Box, Pixels, Similarity


@pytest.fixture
def place(in_folder: Path) -> Path:
    """A folder with two pictures, 48 x 32, of which the model sees the middle 32 x 32, halved."""
    (in_folder / "pictures").mkdir()
    noise = np.random.default_rng(0)
    for stem in "ab":
        pixels = noise.integers(100, 255, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(in_folder / "pictures" / f"{stem}.png")
    return in_folder


def cam(name: str, *words: str) -> int:
    return run("cam", "pictures", "--model", f"cli_models:{name}", *words, "--overwrite")


def explained(name: str, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cam(name, *words, "--json") == 0
    found: dict[str, Any] = strict(capsys.readouterr().out)
    return found


def saved(stem: str, method: str = "gradcam") -> tp.Heatmap:
    return tp.load(f"peek/{stem}/{method}.safetensors")


class TestDetectors:
    @pytest.mark.parametrize("model", [listing, queries])
    def test_its_surest_box(self, model, place, capsys) -> None:
        name = "listing" if model is listing else "queries"
        results = explained(name, capsys)
        loaded = model()
        for row, stem in zip(results["pictures"], "ab", strict=True):
            expected = tp.explain(loaded, f"pictures/{stem}.png", target=Box(0))
            torch.testing.assert_close(saved(stem).values, expected.values)
            (one,) = row["maps"]
            assert one["score"] == pytest.approx(row["predictions"][0]["score"])
            assert one["class_name"] == CLASSES[expected.label()] == row["predictions"][0]["name"]
            assert one["overlay"] == f"peek/{stem}/gradcam.box0-{one['class_name']}.png"
            # In pixels of the picture: the input's are twice as large, and begin 8 to the right.
            inside = (expected.question.boxes[0, 0] * (1 if name == "listing" else 16)).tolist()
            assert one["box"] == pytest.approx([8 + 2 * inside[0], 2 * inside[1], 8 + 2 * inside[2], 2 * inside[3]])
            assert len(row["predictions"]) == 3
            scores = [each["score"] for each in row["predictions"]]
            assert scores == sorted(scores, reverse=True)

    def test_boxes_by_rank_and_class(self, place, capsys) -> None:
        results = explained("listing", capsys, "--box", "2", "--box", "0", "--box", "2")
        expected = tp.explain(listing(), "pictures/a.png", target=Box([2, 0]))
        torch.testing.assert_close(saved("a").values, expected.values)
        rows = results["pictures"][0]["maps"]
        assert [row["rank"] for row in rows] == [2, 0]
        assert {Path(row["overlay"]).name.split("-")[0] for row in rows} == {"gradcam.box2", "gradcam.box0"}
        results = explained("listing", capsys, "--box", "1", "--class", "cat")
        assert [row["maps"][0]["class_name"] for row in results["pictures"]] == ["cat", "cat"]
        results = explained("listing", capsys, "--class", "bee")
        assert [row["maps"][0]["class_name"] for row in results["pictures"]] == ["bee", "bee"]

    def test_the_box_is_drawn_where_it_is(self, place, capsys) -> None:
        (row,) = explained("listing", capsys, "--class", "bee", "--alpha", "0")["pictures"][0]["maps"]
        assert row["box"] == [16, 8, 40, 32]
        with Image.open("pictures/a.png") as photo, Image.open(row["overlay"]) as drawn:
            assert drawn.size == (5 * photo.width, 5 * photo.height)
            assert all(drawn.getpixel(at) == (0, 0, 0) for at in ((80, 40), (80, 100), (150, 40)))
            assert all(drawn.getpixel(at) == (255, 255, 255) for at in ((81, 41), (81, 100), (150, 41)))
            for x, y in ((79, 100), (150, 39), (125, 100)):  # outside of it, and inside
                assert drawn.getpixel((x, y)) == photo.getpixel((x // 5, y // 5))

    def test_a_picture_without_any_is_named_and_the_others_are_done(self, place, capsys) -> None:
        Image.new("RGB", (48, 32)).save("pictures/0.png")
        assert cam("listing", "--batch-size", "3") == 1
        out = capsys.readouterr().out
        assert "skipped pictures/0.png: this picture has no detections" in out
        assert Path("peek/a/all.png").is_file()
        assert "cat, box 0" in out or "bee, box 0" in out
        assert cam("listing", "--method", "all") == 1
        assert run("cam", "pictures/0.png", "--model", f"{__name__}:listing", "-o", "none") == 2

    def test_the_report(self, place, capsys) -> None:
        assert cam("listing", "--class", "bee") == 0
        page = Path("peek/report.html").read_text()
        assert "bee, box 0" in page
        assert "<dd>score of a detected box" in page
        assert "of the class" not in page


class TestSegmentation:
    def test_the_class_that_wins_most(self, place, capsys) -> None:
        results = explained("segmenter", capsys)
        expected = tp.explain(segmenter(), "pictures/b.png", target=Pixels(part="out"))
        torch.testing.assert_close(saved("b").values, expected.values)
        (row,) = results["pictures"][1]["maps"]
        assert row["class_name"] == CLASSES[expected.label()]
        assert row["share"] == pytest.approx(expected.question.masks.double().mean())
        shares = [each["share"] for each in results["pictures"][1]["predictions"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
        assert shares[0] == row["share"]

    def test_the_pixels_of_a_class(self, place, capsys) -> None:
        least = explained("segmenter", capsys)["pictures"][0]["predictions"][-1]["name"]
        for words in (["--pixels"], []):
            assert cam("segmenter", "--class", least, *words) in (0, 1)
            assert f"{least} " in capsys.readouterr().out
            expected = tp.explain(segmenter(), "pictures/a.png", target=Pixels(least, part="out"))
            torch.testing.assert_close(saved("a").values, expected.values)
        page = Path("peek/report.html").read_text()
        assert f"<h3>{least} <" in page
        assert "% of the pixels" in page
        assert "mean logit of the masked pixels of the class" in page


class TestTexts:
    def test_the_maps_are_of_the_texts(self, place, capsys) -> None:
        words = ["a cat", "zebra", "a cat"]
        results = explained("embedder", capsys, *(word for text in words for word in ("--text", text)))
        loaded = embedder()
        target = Similarity(loaded.embed(["a cat", "zebra"]), part="image_embeds")
        expected = tp.explain(loaded, "pictures/a.png", target=target)
        heatmap = saved("a")
        torch.testing.assert_close(heatmap.values, expected.values)
        assert [heatmap.provenance.class_name(heatmap.label(0, k)) for k in range(2)] == ["a cat", "zebra"]
        row = results["pictures"][0]
        assert [each["name"] for each in row["maps"]] == ["a cat", "zebra"]
        assert [each["similarity"] for each in row["maps"]] == pytest.approx(expected.scores[0].tolist())
        assert row["predictions"][0]["similarity"] == pytest.approx(float(expected.scores.max()))
        assert Path("peek/a/gradcam.text1-zebra.png").is_file()
        assert "cosine similarity of picture and text" in Path("peek/report.html").read_text()

    def test_a_checkpoint(self, place, capsys) -> None:
        """Of transformers, as it is written to a folder."""
        pytest.importorskip("transformers")
        from networks.huggingface import two_towers, write_clip_tokenizer

        two_towers("CLIP").save_pretrained("clip")
        write_clip_tokenizer(Path("clip"))
        size = {"height": 32, "width": 32}
        written = {"image_processor_type": "ViTImageProcessor", "size": size}
        Path("clip/preprocessor_config.json").write_text(json.dumps(written))
        words = ("--text", "a cat", "--layer", "vision_model.encoder.layers.0.layer_norm1")
        assert run("cam", "pictures/a.png", "--model", "hf:clip", *words) == 0
        assert "a cat" in capsys.readouterr().out
        assert run("cam", "pictures/a.png", "--model", "hf:clip", "--overwrite") == 2
        assert "hf:clip compares pictures with texts" in capsys.readouterr().err
        assert run("layers", "--model", "hf:clip") == 0
        assert "(N, 17, 16)" in capsys.readouterr().out


class TestTransformers:
    @pytest.mark.parametrize("method", ["rollout", "legrad", "transformer-attribution", "gradcam"])
    def test_the_maps_are_those_of_the_library(self, method: str, place, capsys) -> None:
        words = ("--method", method, "--class", "bee", "--class", "dog")
        rows = explained("attentive", capsys, *words)["pictures"][0]["maps"]
        expected = tp.explain(attentive(), "pictures/a.png", method=method, target=[[1, 3]])
        torch.testing.assert_close(saved("a", method).values, expected.values)
        assert saved("a", method).values.shape == (1, 2, 4, 4)
        assert rows[0]["layer"] == expected.provenance.layer

    def test_beside_methods_of_one_layer(self, place, capsys) -> None:
        words = ("--method", "rollout", "--method", "gradcam", "--option", "heads=max", "--top", "2")
        about = explained("attentive", capsys, *words)["about"]
        assert "every layer (the method takes them all)" in about["layer"]
        assert "read as tokens 1+4x4" in about["layer"]
        assert saved("a", "rollout").provenance.options == {"heads": "max"}
        assert saved("a", "rollout").question.labels.tolist() == saved("a").question.labels.tolist()

    def test_a_layer_is_for_the_others(self, place, capsys) -> None:
        layer = ("--layer", "encoder.layers.encoder_layer_1.ln_1", "--layout", "tokens 1+2x8")
        assert cam("attentive", "--method", "rollout", "--method", "gradcam", *layer) == 0
        assert "--layer is for the other methods; rollout uses every layer" in capsys.readouterr().err
        assert saved("a").values.shape == (1, 1, 2, 8)
        assert saved("a").provenance.layout == "tokens 1+2x8"
        assert saved("a", "rollout").values.shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("listing", ["--box", "0", "--pixels"], "--box and --pixels are for models of different kinds"),
        ("listing", ["--box", "9"], "this picture has 3 detections; the requested rank is 9"),
        ("listing", ["--box", "-1"], "ranks count from 0"),
        ("listing", ["--top", "2"], "--top is for classifiers; a detector returns boxes: --box 0 --box 1"),
        ("listing", ["--class", "bee", "--class", "cat"], "2 times --class is for classifiers"),
        ("listing", ["--box", "0", "--class", "1", "--class", "2"], "takes one --class"),
        ("listing", ["--class", "dog"], "no detection of class 3"),
        ("listing", ["--text", "a cat"], "has no text half"),
        ("segmenter", ["--top", "2"], "--pixels --class"),
        ("segmenter", ["--pixels", "--top", "2"], "--top is for models that return class scores"),
        ("segmenter", ["--pixels", "--contrast", "2"], "--contrast is for models that return class scores"),
        ("segmenter", ["--box", "0"], "Box reads what a detector returns"),
        ("segmenter", ["--class", "77"], "0 to 4"),
        ("embedder", [], "compares pictures with texts, and predicts no class"),
        ("embedder", ["--class", "bee"], "--text"),
        ("embedder", ["--text", "a", "--class", "bee"], "give one"),
        ("embedder", ["--text", " "], "--text is empty; allowed: a value"),
        ("without_texts", [], "returns an embedding (image_embeds)"),
        ("convolutional", ["--box", "0"], "Box reads what a detector returns"),
        ("convolutional", ["--pixels"], "Pixels reads outputs (N, classes, *grid)"),
        ("convolutional", ["--method", "rollout"], "no attention was recorded"),
        ("attentive", ["--layout", "tokens"], "name it with --layer"),
        ("attentive", ["--method", "rollout", "--layer", "encoder"], "Next: leave out --layer"),
        ("attentive", ["--layer", "encoder", "--layout", "tokns"], "layout is 'tokns'; allowed: channels-first"),
        ("attentive", ["--layer", "encoder", "--layout", "tokens 5x5"], "its sizes do not fit"),
    ],
)
def test_mistakes(name: str, words: list[str], message: str, place, capsys) -> None:
    assert cam(name, *words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not Path("peek").exists()


@pytest.mark.parametrize("command", ["cam", "layers", "kernels", "features", "gradients"])
def test_a_checkpoints_own_code(command: str, place, capsys, monkeypatch) -> None:
    """Runs only if that is said, on every command that loads a model."""
    said: list[bool] = []

    def load_model(spec: str, *args: Any, trust_remote_code: bool = False, **more: Any) -> tp.LoadedModel:
        said.append(trust_remote_code)
        return convolutional()

    monkeypatch.setattr("torchpeek.cli.loading.load_model", load_model)
    words = [command, *(["pictures"] if command in ("cam", "features", "gradients") else []), "--model", "hf:x"]
    assert run(*words) == 0
    assert run(*words, "--trust-remote-code", *(["--overwrite"] if command == "cam" else [])) == 0
    assert said == [False, True]
    capsys.readouterr()
    assert run(command, "--help") == 0
    assert "hf:NAME_OR_FOLDER" in capsys.readouterr().out.replace("\n", "")

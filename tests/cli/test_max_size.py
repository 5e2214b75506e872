"""--max-size: of cam, evaluate and the other commands that read pictures, against the library."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import torchpeek as tp
from cli_evaluation import EVALUATE, REGION
from cli_models import any_size, listing, pooled
from cli_runner import asked, of, pixels, run, strict
from images import noise

ENERGY = ("evaluate", "pictures", *of("pooled"), "--metric", "energy-pointing-game")
CAM = ("cam", "pictures", *of("any_size"), "--max-size", "20")


class TestCam:
    def test_pictures_are_reduced(self, place, capsys) -> None:
        results = asked(capsys, *CAM, "--method", "gradcam", "--method", "layercam")
        loaded = any_size()
        for row, stem, size in zip(results["pictures"], "abc", [(40, 30), (41, 30), (42, 30)], strict=True):
            picture = loaded.read(f"pictures/{stem}.png", max_size=20)
            assert row["notes"] == [f"reduced from {size[0]} x {size[1]} to 20 x {picture.image.height}"]
            drawn = pixels(row["maps"][0]["overlay"])  # enlarged, because it is small
            assert drawn.shape[0] * 20 == drawn.shape[1] * picture.image.height
            for method in ("gradcam", "layercam"):
                saved, expected = (
                    tp.load(f"peek/{stem}/{method}.safetensors"),
                    tp.explain(loaded, picture, method=method),
                )
                torch.testing.assert_close(saved.values, expected.values)
                assert saved.provenance.preprocess == expected.provenance.preprocess
        assert results["about"]["preprocessing"].startswith("reduced to at most 20 x 20; mean 0.485")
        assert "reduced from 40 x 30 to 20 x 15" in (place / "peek" / "report.html").read_text()

    def test_smaller_pictures_are_untouched(self, place, capsys) -> None:
        words = ("cam", "pictures", *of("pooled"))
        plain, limited = (asked(capsys, *words, "-o", out, *more) for out, *more in (["a"], ["b", "--max-size", "42"]))
        for one, other in zip(plain["pictures"], limited["pictures"], strict=True):
            assert one["notes"] == other["notes"] == []
            assert one["predictions"] == other["predictions"]
            assert np.array_equal(pixels(one["maps"][0]["overlay"]), pixels(other["maps"][0]["overlay"]))

    def test_boxes_are_in_pixels_of_the_original_picture(self, place, capsys) -> None:
        """The detector's boxes are at fixed places of its input of 16 x 16, and so in either size."""
        for picture in (place / "pictures").iterdir():
            noise((48, 32)).save(picture)
        plain, reduced = (
            asked(capsys, "cam", "pictures/a.png", *of("listing"), "-o", out, *more)["pictures"][0]
            for out, *more in (["a"], ["b", "--max-size", "24"])
        )
        boxes = {tuple(each["box"]) for each in plain["predictions"]}
        assert {tuple(each["box"]) for each in reduced["predictions"]} == boxes
        drawn = pixels(reduced["maps"][0]["overlay"])
        factor, thick = drawn.shape[1] / 48, max(1, round(drawn.shape[0] / 200))
        left, top, *_ = (round(each * factor) for each in reduced["maps"][0]["box"])
        assert drawn[top + thick, left + thick].tolist() == [255, 255, 255]
        assert listing().read("pictures/a.png", max_size=24).image.size == (24, 16)

    def test_a_notice_of_a_huge_picture(self, place, capsys, monkeypatch) -> None:
        monkeypatch.setattr("torchpeek.cli.cam_run._HUGE", 41 * 30)
        assert run("cam", "pictures", *of("pooled")) == 0
        err = capsys.readouterr().err
        assert "pictures/b.png has 41 x 30 pixels" in err
        assert "--max-size" in err
        assert "c.png has" not in err  # once is enough
        assert run(*CAM, "--overwrite") == 0
        assert "pixels" not in capsys.readouterr().err

    def test_few_pixels_at_once(self, place, capsys, monkeypatch) -> None:
        """A batch with many pixels is explained in parts, with the same results."""
        words = ("cam", "pictures", *of("pooled"), "--method", "all", "-o")
        plain = asked(capsys, *words, "a")
        monkeypatch.setattr("torchpeek.cli.cam_run._PIXELS_AT_ONCE", 2000)
        parts = asked(capsys, *words, "b")
        assert [each["picture"] for each in parts["pictures"]] == [each["picture"] for each in plain["pictures"]]
        for stem in "abc":
            torch.testing.assert_close(
                tp.load(f"b/{stem}/gradcam.safetensors").values, tp.load(f"a/{stem}/gradcam.safetensors").values
            )


class TestEvaluate:
    def test_boxes_and_masks_are_in_pixels_of_the_original_picture(self, place, capsys) -> None:
        (place / "boxes.json").write_text(json.dumps({f"{stem}.png": [[6, 4, 30, 20]] for stem in "abc"}))
        (place / "masks").mkdir()
        for stem, width in zip("abc", (40, 41, 42), strict=True):
            mask = np.zeros((30, width), np.uint8)
            mask[4:20, 6:30] = 255
            Image.fromarray(mask).save(f"masks/{stem}.png")
        by_boxes, by_masks = (
            asked(capsys, *ENERGY, *where, "--max-size", "20")
            for where in (("--boxes", "boxes.json"), ("--masks", "masks"))
        )
        assert by_boxes["about"]["preprocessing"].startswith("reduced to at most 20 x 20")
        loaded, metric = pooled(), ENERGY[-1]
        for row, other, stem in zip(by_boxes["pictures"], by_masks["pictures"], "abc", strict=True):
            picture = loaded.read(f"pictures/{stem}.png", max_size=20)
            heatmap = tp.explain(loaded, picture)
            expected = tp.evaluate(loaded, picture, heatmap, metrics=[metric], boxes=[[[6, 4, 30, 20]]])[metric].values
            assert row["values"][metric]["gradcam"]["values"] == expected[0].double().tolist()
            assert row["values"] == other["values"]
            assert 0 < float(expected) < 1

    def test_a_mask_of_the_reduced_size_is_refused(self, place, capsys) -> None:
        (place / "masks").mkdir()
        Image.new("L", (20, 15), 255).save("masks/a.png")
        assert run(*REGION, "--masks", "masks", "--max-size", "20") != 0
        printed = capsys.readouterr()
        assert "is 20 x 15, and the picture 40 x 30" in printed.out + printed.err

    def test_all_metrics_see_the_reduced_picture(self, place, capsys) -> None:
        plain, reduced = (asked(capsys, *EVALUATE, *more) for more in ((), ("--max-size", "8")))
        assert plain["pictures"][0]["values"] != reduced["pictures"][0]["values"]


@pytest.mark.parametrize("command", ["features", "gradients"])
def test_other_commands(place, capsys, command: str) -> None:
    (place / "small").mkdir()
    for stem in "abc":
        any_size().read(f"pictures/{stem}.png", max_size=20).image.save(f"small/{stem}.png")
    name = "any_size" if command == "features" else "pooled"
    key = command
    reduced = asked(capsys, command, "pictures", *of(name), "--max-size", "20")[key]
    small = asked(capsys, command, "small", *of(name))[key]
    drop = ("picture",)
    assert [{k: v for k, v in row.items() if k not in drop} for row in reduced] == [
        {k: v for k, v in row.items() if k not in drop} for row in small
    ]


@pytest.mark.parametrize("command", ["cam", "evaluate", "features", "gradients"])
def test_no_picture_is_read_in_full(place, capsys, monkeypatch, command: str) -> None:
    """Also not the one that shows whether the model takes the pictures."""
    sizes, read = [], tp.LoadedModel.read

    def recorded(loaded, picture, *, max_size=None):
        sizes.append(max_size)
        return read(loaded, picture, max_size=max_size)

    monkeypatch.setattr(tp.LoadedModel, "read", recorded)
    assert run(command, "pictures", *of("pooled"), "--max-size", "20") == 0
    assert set(sizes) == {20}


def test_layers(place, capsys) -> None:
    words = ("layers", *of("any_size"), "--picture", "pictures/a.png", "--max-size", "20")
    shapes = [row["output"] for row in asked(capsys, *words)["layers"]]
    assert "20" in strict(json.dumps(str(shapes)))


@pytest.mark.parametrize("command", ["cam", "evaluate", "features", "gradients"])
@pytest.mark.parametrize("value", ["0", "-3"])
def test_what_is_refused(place, capsys, command: str, value: str) -> None:
    assert run(command, "pictures", *of("pooled"), "--max-size", value) == 2
    assert f"--max-size is {value}; allowed: a number of pixels, 1 or more" in capsys.readouterr().err
    assert not (place / "peek").exists()

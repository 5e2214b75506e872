"""Boxes and masks for torchpeek evaluate: where they come from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli_evaluation import BOXES, EVALUATE, FEW, METHOD, METHODS, REGION, lists, measured, table
from cli_models import pooled
from cli_runner import asked, run, strict


class TestRegions:
    def test_boxes(self, place, capsys) -> None:
        named = {**BOXES, "./pictures/b.png": [[20, 3, 30, 28]], "another.png": [[0, 0, 1, 1]]}
        (place / "boxes.json").write_text(json.dumps(named))
        words = ("--metric", "energy-pointing-game", "--metric", "deletion", *FEW[:2], "--boxes", "boxes.json")
        printed = asked(capsys, *REGION, *METHOD, *words, "-o", "out")
        assert printed["about"]["regions"] == "boxes.json"
        metrics = {"iou": {}, "energy-pointing-game": {}, "deletion": {"steps": 4}}
        for row, stem in zip(printed["pictures"], "abc", strict=True):
            boxes = [named["./pictures/b.png"] if stem == "b" else BOXES[f"{stem}.png"]]  # a path counts more
            part = measured(pooled(), metrics, f"pictures/{stem}.png", boxes=boxes)
            for metric, method in ((metric, method) for metric in metrics for method in METHODS):
                assert row["values"][metric][method]["values"] == lists(part[method][metric].values[0])

    def test_masks(self, place, capsys) -> None:
        (place / "masks").mkdir()
        expected = {}
        for stem, mode in zip("abc", ("L", "1", "RGB"), strict=True):
            with Image.open(f"pictures/{stem}.png") as image:
                mask = torch.zeros(image.height, image.width, dtype=torch.bool)
            mask[6:19, 9:30] = True
            drawn = Image.fromarray(mask.numpy().astype(np.uint8) * (1 if stem == "a" else 255))  # 1 is not black
            drawn.convert(mode).save(f"masks/{stem}.bmp")
            expected[stem] = measured(pooled(), ["iou"], f"pictures/{stem}.png", masks=mask.unsqueeze(0))
        printed = asked(capsys, *REGION, *METHOD, "--masks", "masks")
        for row, stem in zip(printed["pictures"], "abc", strict=True):
            for method in METHODS:
                assert row["values"]["iou"][method]["values"] == lists(expected[stem][method]["iou"].values[0])

    def test_a_picture_without_an_object(self, place, capsys) -> None:
        """Its value is NaN in JSON, null in parquet, and it does not count."""
        (place / "boxes.json").write_text(json.dumps({**BOXES, "b.png": []}))
        printed = asked(capsys, *REGION, "--boxes", "boxes.json", "-o", "out")
        assert printed["pictures"][1]["values"]["iou"]["gradcam"]["values"] == ["nan"]
        assert [row["value"] is None for row in table(place / "out")] == [False, True, False]
        assert printed["results"][0]["pictures"] == 2

    @pytest.mark.parametrize(
        ("boxes", "why"),
        [
            ({"a.png": BOXES["a.png"], "c.png": BOXES["c.png"]}, "boxes.json does not say where its object is"),
            (BOXES | {"b.png": [[41, 3, 50, 9]]}, "[41.0, 3.0, 50.0, 9.0] lies outside of the picture, which is 41 x"),
        ],
    )
    def test_a_picture_whose_boxes_are_missing_or_wrong_is_named(self, place, capsys, boxes, why) -> None:
        (place / "boxes.json").write_text(json.dumps(boxes))
        assert run(*REGION, "--boxes", "boxes.json", "-o", "out") == 1
        out = capsys.readouterr().out
        assert "skipped pictures/b.png: " in out
        assert why in out
        assert "1 of 3 pictures skipped" in out
        written = strict((place / "out" / "results.json").read_text())
        assert list(written["skipped"]) == ["pictures/b.png"]
        assert [row["picture"] for row in written["pictures"]] == ["pictures/a.png", "pictures/c.png"]

    def test_a_name_alone_is_no_path(self, place, capsys) -> None:
        """Two pictures of one name, one of which lies where the command runs: neither gets the other's box."""
        (place / "a.png").write_bytes((place / "pictures" / "a.png").read_bytes())
        words = ("evaluate", "a.png", "pictures/a.png", *REGION[2:], "--boxes", "boxes.json")
        (place / "boxes.json").write_text(json.dumps(BOXES))
        assert run(*words) == 2
        assert "2 pictures are called 'a.png'" in capsys.readouterr().err
        both = {"./a.png": BOXES["a.png"], str(place / "pictures" / "a.png"): [[0, 0, 3, 3]]}
        (place / "boxes.json").write_text(json.dumps(both))
        first, second = (row["values"]["iou"]["gradcam"]["values"] for row in asked(capsys, *words)["pictures"])
        assert first != second, "the same picture, with boxes of its own each"

    def test_the_pictures_are_not_their_masks(self, place, capsys) -> None:
        assert run(*REGION, "--masks", "pictures") == 2
        assert "has a.png itself, and not its mask" in capsys.readouterr().err

    def test_where_nobody_knows_what_the_model_was_shown(self, place, capsys) -> None:
        Path("cropping.py").write_text(
            "import torch\nfrom cli_models import pooled\n"
            "def crop(image): return torch.rand(3, 16, 16)\nmake = lambda: pooled(crop)\n"
        )
        (place / "boxes.json").write_text(json.dumps(BOXES))
        words = ("evaluate", "pictures", "--model", "cropping:make", "--metric", "iou", "--boxes", "boxes.json")
        assert run(*words) == 0
        assert capsys.readouterr().err.count("the preprocessing returns no Geometry") == 1

    def test_a_photograph_that_was_taken_sideways(self, place, capsys) -> None:
        """Boxes are of the upright picture, whatever the file's own axes are."""
        (place / "boxes.json").write_text(json.dumps(BOXES))
        words = ("evaluate", "pictures/b.png", *REGION[2:], "--boxes", "boxes.json")
        upright = asked(capsys, *words)["pictures"][0]["values"]
        with Image.open("pictures/b.png") as image:
            exif = image.getexif()
            exif[0x0112] = 6  # to be turned by 90 degrees clockwise
            image.transpose(Image.Transpose.ROTATE_90).save("pictures/b.png", exif=exif)
        assert asked(capsys, *words)["pictures"][0]["values"] == upright

    def test_masks_that_do_not_fit(self, place, capsys) -> None:
        (place / "masks").mkdir()
        for stem, size in (("a", (40, 30)), ("b", (40, 30))):  # b.png is 41 pixels wide
            Image.new("L", size, 255).save(f"masks/{stem}.png")
        assert run(*REGION, "--masks", "masks") == 1
        out = capsys.readouterr().out
        assert "skipped pictures/b.png: its mask masks/b.png is 40 x 30, and the picture 41 x 30" in out
        assert "skipped pictures/c.png: masks does not say where its object is" in out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "iou needs the region of the object; give it with --boxes FILE or --masks FOLDER"),
            (["--metric", "pointing-game"], "iou, pointing-game need the region of the object"),
            (["--boxes", "boxes.json", "--masks", "masks"], "--boxes and --masks both say"),
            (["--boxes", "none.json"], "none.json: cannot be opened (no such file"),
            (["--boxes", "text.json"], "text.json: not JSON"),
            (["--boxes", "list.json"], "list.json: a JSON list; allowed: {"),
            (["--boxes", "flat.json"], "flat.json: the boxes of 'a.png' are [1, 2, 3, 4]; allowed: a list of [left"),
            (["--boxes", "turned.json"], "turned.json: the boxes of 'b.png' are [[9, 2, 3, 4]]"),
            (["--boxes", "other.json"], "has none of the 3 pictures, such as 'a.png'; it has 'x.png', 'y.png'"),
            (["--boxes", "empty.json"], "it has none at all"),
            (["--boxes", "boxes.json", "more"], "2 pictures are called 'a.png'"),
            (["--masks", "masks", "more"], "2 pictures are called 'a'"),
            (["--masks", "nothing"], "nothing: no such folder"),
            (["--masks", "bare"], "bare: no pictures in this folder"),
            (["--masks", "strange"], "has a mask of none of the 3 pictures, such as 'a'; it has 'x'"),
            (["--masks", "twice"], "a.bmp, a.png are all masks of a.png"),
        ],
    )
    def test_mistakes(self, place, capsys, words, message) -> None:
        given = {"boxes": BOXES, "list": [], "flat": {"a.png": [1, 2, 3, 4]}, "turned": {"b.png": [[9, 2, 3, 4]]}}
        given |= {"other": {"x.png": [], "y.png": []}, "empty": {}}
        for name, value in given.items():
            (place / f"{name}.json").write_text(json.dumps(value))
        (place / "text.json").write_text("a.png 1 2 3 4")
        for folder, names in {
            "bare": [],
            "more": ["a.png"],
            "masks": ["a.png"],
            "strange": ["x.png"],
            "twice": ["a.png", "a.bmp"],
        }.items():
            (place / folder).mkdir()
            for name in names:
                Image.new("L", (40, 30)).save(place / folder / name)
        assert run(*REGION, *words, "-o", "out") == 2
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
        assert not (place / "out").exists()

    def test_regions_that_no_metric_asks_for(self, place, capsys) -> None:
        (place / "boxes.json").write_text(json.dumps(BOXES))
        assert run(*EVALUATE, "--boxes", "boxes.json") == 2
        assert (
            "--boxes is for metrics that need the region of the object, and --metric names none"
            in capsys.readouterr().err
        )

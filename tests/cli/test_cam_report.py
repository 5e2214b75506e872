"""The report of torchpeek cam: what is on its page, and that its links lead to files."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from cli_models import regression
from cli_runner import asked, of, pixels, run
from images import noise

CAM = ("cam", "pictures", *of("pooled"))


def page() -> str:
    return Path("peek/report.html").read_text(encoding="utf-8")


def sections() -> list[str]:
    return page().split('<section class="card picture"')[1:]


def files_linked() -> list[Path]:
    links = map(unescape, re.findall('href="([^"#][^"]*)"', page()))
    return [Path("peek") / unquote(link) for link in links]


def captions(section: str) -> list[tuple[str, ...]]:
    return re.findall(
        r"<b>([^<]*)</b> at <span[^>]*>([^<]*)</span><br>score ([^;]*); values (\S+) to ([^<]*)<", section
    )


def test_a_row_for_each_class_with_each_method(place, capsys) -> None:
    results = asked(capsys, *CAM, "--top", "2", "--method", "gradcam", "--method", "fullgrad")
    for section, picture in zip(sections(), results["pictures"], strict=True):
        rows = section.split('<div class="row">')[1:]
        for row, explained in zip(rows, picture["predictions"][:2], strict=True):
            assert re.findall("<h3>([^<]*) <", row) == [explained["name"]]
            assert re.findall('<li class="explained"><span[^>]*>([^<]*)<', row) == [explained["name"]]
            assert len(re.findall("<li", row)) == 5
            of_row = [each for each in picture["maps"] if each["class"] == explained["class"]]
            assert [each[:3] for each in captions(row)] == [
                (each["method"], each["layer"], f"{each['score']:.3g}") for each in of_row
            ]
    assert files_linked() == [
        Path(each["overlay"])
        for picture in results["pictures"]
        for explained in picture["predictions"][:2]
        for each in picture["maps"]
        if each["class"] == explained["class"]
    ]
    assert "How the pictures were made" in page()


def test_a_class_that_is_not_among_the_best_has_a_bar_too(place, capsys, monkeypatch) -> None:
    monkeypatch.setattr("torchpeek.explanation.predictions._MOST", 2)
    least = min(range(5), key=lambda label: asked_probability(capsys, label))
    [section, *_] = sections_of(capsys, str(least))
    bars = re.findall(r'<li( class="explained")?>', section)
    assert bars == ["", "", ' class="explained"']


def asked_probability(capsys, label: int) -> float:
    results = asked(capsys, *CAM, "--class", str(label), "--overwrite")
    return float(results["pictures"][0]["maps"][0]["probability"])


def sections_of(capsys, label: str) -> list[str]:
    asked(capsys, *CAM, "--class", label, "--overwrite")
    return sections()


@pytest.mark.parametrize("name", ["<script>.png", "a b#c%20d?.png", "ü 猫.png", "C:x.png", "-- .png", "'\"&;.png"])
def test_odd_names(place, capsys, name: str) -> None:
    noise((40, 30)).save(place / "pictures" / name)
    assert run(*CAM, "--method", "gradcam", "--method", "gradcam++") == 0
    assert len(files_linked()) == 8
    assert all(file.is_file() for file in files_linked())
    assert name in map(unescape, re.findall("<h2[^>]*>([^<]*)</h2>", page()))


@pytest.mark.parametrize("count", [19, 20])
def test_an_index_from_twenty_pictures_on(place, capsys, count: int) -> None:
    for n in range(count - 3):
        noise((20, 15)).save(place / "pictures" / f"{n:02}.png")
    assert run(*CAM) == 0
    assert len(sections()) == count
    assert page().count('<li id="index-') == (count if count == 20 else 0)
    assert ('<form id="filter"' in page()) == (count == 20)
    assert len(re.findall("<i>|<img", page())) >= count


def test_pictures_that_failed_are_listed(place, capsys) -> None:
    (place / "pictures" / "bad <b>.png").write_bytes(b"broken")
    assert run(*CAM) == 1
    assert "<dt>pictures/bad &lt;b&gt;.png</dt><dd>not a picture" in page()
    assert ">1 skipped</a>" in page()


def test_what_has_no_place_on_the_page_is_linked(place, capsys, monkeypatch) -> None:
    monkeypatch.setattr("torchpeek.cli.page._ITEMS_PER_PAGE", 1)
    assert run(*CAM) == 0
    assert len(sections()) == 1
    assert "3 pictures" in page()
    assert "2 more pictures, too many for one page" in page()
    assert files_linked()[-2:] == [Path("peek/b/all.png"), Path("peek/c/all.png")]
    assert all(file.is_file() for file in files_linked())


def test_one_output_is_no_probability(place, capsys) -> None:
    """Its softmax is 1, whatever it is."""
    results = asked(capsys, "cam", "pictures", *of("regression"))
    loaded = regression()
    for stem, picture in zip("abc", results["pictures"], strict=True):
        expected = loaded.module(loaded.read(f"pictures/{stem}.png").tensor).item()
        [predicted], [explained] = picture["predictions"], picture["maps"]
        assert predicted == {"class": 0, "name": "class 0", "output": pytest.approx(expected, abs=1e-5)}
        assert explained["output"] == predicted["output"]
        assert f"output {predicted['output']:.3g}" in page()
    assert "100.0 %" not in page()


def test_texts_have_their_cosines(place, capsys) -> None:
    assert run("cam", "pictures", *of("embedder"), "--text", "a <cat>", "--text", "dogs") == 0
    assert len(re.findall("<li", sections()[0])) == 4
    assert "a &lt;cat&gt;" in sections()[0]
    assert "--share:" not in sections()[0]


def test_random_weights_are_said(place, capsys) -> None:
    assert run("cam", "pictures", *of("untrained")) == 0
    assert '<span class="warning">weights: random</span>' in page()


def test_the_mosaic_is_of_the_overlays(place, capsys) -> None:
    """A huge overlay is reduced before it waits for the mosaic, which changes next to nothing there."""
    large = noise((2000, 1500))
    large.save(place / "pictures" / "a.png")
    results = asked(capsys, "cam", "pictures/a.png", *of("pooled"))
    [picture] = results["pictures"]
    overlay = Image.fromarray(pixels(picture["maps"][0]["overlay"]))
    assert overlay.size == (2000, 1500)
    sheet = pixels(picture["mosaic"])
    shown = np.asarray(overlay.resize((320, 240), Image.Resampling.LANCZOS)).astype(int)
    height, width = sheet.shape[:2]
    apart = min(
        np.abs(sheet[top : top + 240, left : left + 320].astype(int) - shown).mean()
        for left in range(0, width - 319, 4)
        for top in range(height - 260, height - 239)
    )
    assert apart < 2


def test_results_are_json(place, capsys) -> None:
    results = asked(capsys, *CAM)
    assert results == json.loads(Path("peek/results.json").read_text())
    assert results["report"] == "peek/report.html"

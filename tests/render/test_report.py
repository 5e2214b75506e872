"""The HTML page needs nothing beside itself, has a row for each class, and escapes names."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin

import numpy as np
import pytest
from PIL import Image

from images import noise
from report_pages import DATA, IMAGE, page_of, picture, row
from torchpeek.html import fitted
from torchpeek.render.heatmap_report import heatmap_report
from torchpeek.render.report import INDEXED, ReportBar, embedded, embedded_side, report_html

VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """The elements of a page, each with its attributes, the classes of its ancestors, and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: dict[str, list[str]] = {}
        self.feed(html)
        assert not self.open  # every tag is closed

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and data.strip():
            self.words.setdefault(self.open[-1], []).append(data.strip())

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]


def page(*pictures, **facts) -> Page:
    return Page(page_of(*pictures, **facts))


class TestContents:
    def test_it_needs_nothing_else(self) -> None:
        html = page_of(*(picture(f"{n}.png") for n in range(INDEXED)))
        parsed = Page(html)
        assert all(address.startswith("data:image/jpeg;base64,") for address in parsed.attributes("src"))
        assert not re.search(r"url\((?!data:)", html)
        assert not {"link", "iframe", "object"} & set(parsed.tags())
        anchors = {"#" + name for name in parsed.attributes("id")}
        assert all(link in anchors for link in parsed.attributes("href") if link.startswith("#"))

    def test_names_are_escaped(self) -> None:
        rows = [row("<b>cat</b>", bars=[ReportBar('dog & "cat"', "71.4 %", 0.714)])]
        odd = picture("<script>x</script>\"'.png", rows=rows, remarks=["turned <i>"])
        html = page_of(*[odd] * INDEXED, skipped={"<bad>.png": "no <picture>"})
        assert Page(html).tags().count("script") == 1  # the page's own
        for words in (
            "&lt;b&gt;cat",
            "dog &amp; ",
            "71.4 %",
            "&lt;bad&gt;.png",
            "no &lt;picture&gt;",
            "turned &lt;i&gt;",
        ):
            assert words in html
        assert "<script>x" not in html

    def test_a_row_has_the_photograph_then_bars_then_a_heatmap_of_each_method(self) -> None:
        rows = [row(name, methods=("gradcam", "layercam", "fem")) for name in ("cat", "dog")]
        elements = page(picture("a.png", rows=rows)).elements
        classes = [attributes.get("class", "").split(" ")[0] for _, attributes in elements]
        assert [each for each in classes if each in ("row", "photo", "bars", "maps")] == [
            "row",
            "photo",
            "bars",
            "maps",
        ] * 2
        texts = [attributes["alt"] for tag, attributes in elements if tag == "img"]
        assert texts == [f"{m} of {name}" for name in ("cat", "dog") for m in ("gradcam", "layercam", "fem")]

    def test_the_explained_class_is_marked_and_bars_have_its_share(self) -> None:
        bars = [ReportBar("cat", "60.0 %", 0.6), ReportBar("dog", "30.0 %", 0.3, explained=True)]
        parsed = page(picture("a.png", rows=[row("dog", bars=bars)]))
        assert parsed.attributes("style").count("--share: 60.0%") == 1
        assert [attributes.get("class") for tag, attributes in parsed.elements if tag == "li"] == [None, "explained"]

    def test_a_cosine_has_no_bar(self) -> None:
        html = page_of(picture("a.png", rows=[row("a cat", bars=[ReportBar("a cat", "cosine 0.2", None)])]))
        assert "cosine 0.2" in html
        assert "--share:" not in html

    def test_the_caption_has_method_layer_and_score(self) -> None:
        layers = ", ".join(f"layer{n}" for n in range(5))
        html = page_of(picture("a.png", rows=[row("cat", methods=("refinecam",), layer=layers)]))
        assert "<b>refinecam</b>" in html
        assert "layer0 and 4 other layers" in html
        assert f'title="{layers}"' in html
        assert "score 3; values -1 to 2" in html

    @pytest.mark.parametrize("name", ["a b#c%20d?.png", "<script>.png", "C:x.png", "ü猫.png", 'x"y.png', "a;b&c.png"])
    def test_links_lead_to_the_file(self, name: str) -> None:
        file = f"a/{name}"
        [link] = [
            each for each in page(picture("a", rows=[row("cat", file=file)])).attributes("href") if each[0] != "#"
        ]
        assert unquote(urljoin("file:///out/report.html", link)) == f"file:///out/{file}"
        assert not set(link) & set(' "<>#?%') - {"%"}

    def test_pictures_come_before_the_facts(self) -> None:
        html = page_of(picture("a.png"), facts={"model": "m", "weights": "random"})
        assert html.index('id="picture-1"') < html.index('id="about"')
        assert 'class="warning">weights: random' in html

    def test_what_is_not_there_is_said(self) -> None:
        html = page_of(picture("a.png"), skipped={"bad.png": "damaged"}, left_out={"x/b.png": "b c/all.png"})
        assert "2 pictures" in html
        for words in ("1 skipped", "damaged", "1 more picture", 'href="b%20c/all.png"', ">x/b.png<"):
            assert words in html
        assert "0 pictures" in report_html(heatmap_report({}, {}, [], "viridis", {"bad.png": "damaged"}))

    def test_colours(self) -> None:
        assert "against the class" in page_of(picture("a.png"), colormap="diverging")
        assert "cropped that away" in page_of(picture("a.png"))
        assert "fades with the value" in page_of(picture("a.png"), fade=True)


class TestIndex:
    def test_from_twenty_pictures_on(self) -> None:
        few, many = (page(*(picture(f"{n}.png") for n in range(count))) for count in (INDEXED - 1, INDEXED))
        assert INDEXED == 20
        for tag in ("nav", "form", "script"):
            assert (few.tags().count(tag), many.tags().count(tag)) == (0, 1)
        assert [link for link in many.attributes("href") if link.startswith("#picture")] == [
            f"#picture-{n + 1}" for n in range(INDEXED)
        ]
        assert len(many.words["b"]) >= INDEXED

    def test_the_only_script_that_runs_is_the_filter(self) -> None:
        html = page_of(*(picture(f"{n}.png") for n in range(INDEXED)))
        [script] = re.findall("<script>(.*?)</script>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in html
        assert "script-src" not in page_of(picture("a.png"))

    def test_what_the_filter_searches(self) -> None:
        rows = [row("Lynx", bars=[ReportBar("Egyptian Cat", "50.0 %", 0.5)])]
        assert picture("A.png", rows=rows).words == "some/a.png cat 50.0 % lynx egyptian cat"

    def test_without_javascript_all_is_visible(self) -> None:
        html = page_of(*(picture(f"{n}.png") for n in range(INDEXED)))
        assert [tag for tag, attributes in Page(html).elements if "hidden" in attributes] == ["form"]


class TestImages:
    def test_embedded_images_are_small_jpegs(self) -> None:
        assert embedded(Image.new("RGB", (2000, 1000), "red"), 100).startswith(DATA)
        assert fitted(Image.new("RGB", (2000, 1000)), 100).size == (100, 50)
        assert fitted(Image.new("RGB", (5000, 1)), 100).size == (100, 1)
        small = noise((80, 60))
        assert fitted(small, 80) is small
        blocks = np.asarray(Image.fromarray(np.asarray(small).repeat(4, 0).repeat(4, 1)).convert("RGB"))
        again = np.asarray(fitted(Image.fromarray(blocks), 80)).astype(int)
        assert np.abs(again - np.asarray(small)).mean() < 2

    def test_more_images_are_embedded_in_a_smaller_size(self) -> None:
        sides = [embedded_side(images) for images in (0, 1, 21, 500, 3500, 10**6)]
        assert sides == sorted(sides, reverse=True)
        assert sides[0] == sides[2] == 800
        assert sides[-1] == 200
        assert 700 * 0.35 * embedded_side(700) ** 2 == pytest.approx(40e6, rel=0.02)
        assert IMAGE.startswith(DATA)

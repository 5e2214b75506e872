"""The HTML page needs nothing beside itself, and escapes names."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from PIL import Image

from torchpeek.render.report import Report, ReportClass, ReportMap, ReportPicture, embedded, report_html


class Page(HTMLParser):
    """Every address that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def test_report_needs_nothing_else_and_escapes_names() -> None:
    image = embedded(Image.new("RGB", (2000, 1000), "red"))
    maps = {"gradcam": [ReportMap("<b>cat</b>", "50.0 %", 3.0, -1.0, 2.0, image)]}
    pictures = [
        ReportPicture(
            "<script>x</script>.png", (2000, 1000), ["turned"], image, [ReportClass("cat & dog", 0.714, "71.4 %")], maps
        )
    ]
    facts = {"model": "m"}
    html = report_html(Report(facts, {"gradcam": "summary"}, pictures, "viridis", {"bad.png": "damaged"}, left_out=3))
    page = Page()
    page.feed(html)
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "script" not in page.tags
    assert not re.search(r"url\((?!data:)", html)
    for words in ("&lt;b&gt;cat", "cat &amp; dog", "71.4 %", "bad.png", "3 more pictures", "turned"):
        assert words in html
    assert "against the class" in report_html(Report(facts, {}, [], "diverging", {}))

"""The report in the system's Chromium: its filter, its policy for scripts, and its width on a phone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from browser import CHROMIUM, asked, dom
from report_pages import page_of, picture, row

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

NAMES = ["<script>.png", "a b#c%20d.png", *(f"picture {n}.png" for n in range(20))]


def many() -> str:
    return page_of(*(picture(name, [row("Lynx" if n % 2 else "dog")]) for n, name in enumerate(NAMES)))


def test_the_policy_lets_the_filter_run_and_no_other_script(tmp_path: Path) -> None:
    html = many().replace("</body>", "<script>document.title = 'hacked'</script></body>")
    after = dom(html, tmp_path)
    assert "22 of 22 pictures" in after
    assert not re.search('<form[^>]*hidden=""', after)
    assert "<title>hacked" not in after


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("", list(range(22))),
        ("LYNX", list(range(1, 22, 2))),
        ("<script>", [0]),
        ("c%20d", [1]),
        (" picture 1  lynx ", [3, 13, 15, 17, 19, 21]),
        ("elephant", []),
    ],
)
def test_the_filter_shows_pictures_with_all_words(tmp_path: Path, words: str, shown: list[int]) -> None:
    expression = (
        f"(field.value = {json.dumps(words)}, field.dispatchEvent(new Event('input')),"
        "['section.picture', '#index li'].map((each) => [...document.querySelectorAll(each)].map((part) =>"
        " getComputedStyle(part).display != 'none')).concat(count.textContent))"
    )
    visible = [n in shown for n in range(22)]
    assert asked(many(), tmp_path, expression) == [visible, visible, f"{len(shown)} of 22 pictures"]


@pytest.mark.parametrize("width", [500, 1000, 1400])
def test_nothing_scrolls_sideways(tmp_path: Path, width: int) -> None:
    rows = [row("Donaudampfschifffahrtsgesellschaft" * 9, [f"method-{n}" for n in range(28)], layer="layer." * 60)]
    html = page_of(*[picture("name" * 60, rows), *map(picture, NAMES)], facts={"model": "x" * 300})
    wide, inner = asked(html, tmp_path, "[document.documentElement.scrollWidth, innerWidth]", width)  # type: ignore[misc]
    assert wide <= inner


def test_on_a_phone_the_heatmaps_come_before_the_bars_and_the_index_is_closed(tmp_path: Path) -> None:
    expression = (
        "['.photo', '.maps figure', '.bars'].map((each) => document.querySelector(each).getBoundingClientRect().top)"
        ".concat(document.querySelector('#index details').open)"
    )
    photo, heat, bars, is_open = asked(many(), tmp_path, expression, 500)  # type: ignore[misc]
    assert photo == heat < bars
    assert not is_open
    photo, heat, bars, is_open = asked(many(), tmp_path, expression, 1400)  # type: ignore[misc]
    assert photo == heat == bars
    assert is_open

"""The pages of the commands in the system's Chromium: the filter, its policy for scripts, and the width on a phone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from browser import CHROMIUM, asked, dom
from cli_runner import of, run
from images import noise

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def filtered(words: str) -> str:
    """An expression for what is visible: the items, the figures and the rows of tables, and the count."""
    return (
        f"(field.value = {json.dumps(words)}, field.dispatchEvent(new Event('input')),"
        "['section.picture', 'section.picture figure.part', 'tbody tr', '#index li'].map((each) =>"
        " [...document.querySelectorAll(each)].filter((part) => part.checkVisibility()).length)"
        ".concat(count.textContent))"
    )


@pytest.fixture
def page(place: Path):
    def written(*words: str) -> str:
        assert run(*words, "-o", "out") == 0
        return (place / "out" / "report.html").read_text()

    return written


def test_features_are_filtered_by_picture_and_by_layer(place, page) -> None:
    for n in range(17):
        noise((40, 30)).save(place / "pictures" / f"more {n}.png")
    html = page("features", "pictures", *of("pooled"), "--layer", "features.0,act")
    assert asked(html, place, filtered("")) == [20, 40, 40, 20, "20 of 20 pictures"]
    assert asked(html, place, filtered("more")) == [17, 34, 34, 17, "17 of 20 pictures"]
    assert asked(html, place, filtered("ACT")) == [20, 20, 20, 20, "20 of 20 pictures, 20 of 40 figures"]
    assert asked(html, place, filtered("act a.png")) == [1, 1, 1, 1, "1 of 20 pictures, 1 of 40 figures"]
    assert asked(html, place, filtered("elephant")) == [0, 0, 0, 0, "0 of 20 pictures"]


def test_kernels_are_filtered_by_layer(place, page) -> None:
    html = page("kernels", *of("deep"))
    assert asked(html, place, filtered(""))[:4] == [24, 24, 25, 24]  # a row for each layer, and one for the shape
    assert asked(html, place, filtered("23"))[:4] == [1, 1, 2, 1]


def test_gradients_are_filtered_by_parameter(place, page) -> None:
    html = page("gradients", "pictures", *of("deep"))
    rows = 48
    assert asked(html, place, filtered("bias"))[2] == rows // 2 + 3  # the pictures of the batch stay
    assert asked(html, place, filtered("bias"))[4] == "24 of 48 parameters"


@pytest.mark.parametrize("command", ["features", "kernels", "gradients", "evaluate"])
@pytest.mark.parametrize("width", [500, 1280])
def test_nothing_scrolls_sideways(place, page, command, width) -> None:
    noise((40, 30)).save(place / "pictures" / f"{'name' * 40}.png")
    words = [] if command == "kernels" else ["pictures"]
    more = ["--metric-option", "deletion.steps=4"] if command == "evaluate" else []
    html = page(command, *words, *of("named_as_markup" if command != "kernels" else "deep"), *more)
    wide, inner = asked(html, place, "[document.documentElement.scrollWidth, innerWidth]", width)  # type: ignore[misc]
    assert wide <= inner


def test_the_policy_lets_the_filter_run_and_no_other_script(place, page) -> None:
    html = page("kernels", *of("deep")).replace("</body>", "<script>document.title = 'hacked'</script></body>")
    after = dom(html, place)
    assert "24 of 24 layers" in after
    assert "<title>hacked" not in after


def test_tables_can_be_reached_and_scrolled_by_keyboard(place, page) -> None:
    html = page("gradients", "pictures", *of("deep"))
    expression = (
        "[...document.querySelectorAll('.scroll')].map((each) => (each.focus(), document.activeElement == each))"
    )
    assert asked(html, place, expression) == [True, True]

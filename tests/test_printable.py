"""Texts that are shown: nothing in them moves a cursor, turns words around or hides, and what people write stays."""

from __future__ import annotations

import json
import unicodedata
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchpeek as tp
from torchpeek.errors import PictureError, TorchpeekError, notify
from torchpeek.html import html_paragraph, html_table
from torchpeek.printable import printable, printable_lines
from torchpeek.render.report import Report, report_html
from torchpeek.store import json_text
from torchpeek.text_table import text_table

HOSTILE = "a\x1b[31m\x9b1m\x7f\u202eb\u2066c\u200e\u200b\ufeff\udcff\r\n\tz"
ESCAPED = r"a\x1b[31m\x9b1m\x7f\u202eb\u2066c\u200e\u200b\ufeff\udcff\r\n\tz"


def test_hostile_characters_are_escaped() -> None:
    assert printable(HOSTILE) == ESCAPED


@pytest.mark.parametrize(
    "name",
    [
        "cat.png",
        "a:b:c.png",
        "[red]x[/].png",
        "C:\\new\\cat.png",
        "gemütliche Katze é.png",
        "e\u0301.png",
        "猫の写真.jpg",
        "кошка",
        "קטן.png",
        "🐈.png",
        "👨\u200d👩\u200d👧.png",
        "👩🏽\u200d⚕️",
        "1\ufe0f\u20e3",
        "葛\U000e0100",
        "❤️\u200d🔥",
        "می\u200cخواهم",
        "क्\u200dष",
    ],
)
def test_what_people_write_stays(name: str) -> None:
    assert printable(name) == name


@pytest.mark.parametrize(
    "letter",
    ["\u3164", "\u115f", "\u2800", "\ufe0f", "\ufe00", "\u180b", "\u200d", "\u200c", "\u00ad", "\u3000", "\u2028"],
)
def test_what_cannot_be_seen_is_escaped(letter: str) -> None:
    """Also a joiner where it joins nothing."""
    assert printable(f"ca{letter}t") == f"ca\\u{ord(letter):04x}t".replace("\\u00", "\\x")


@given(st.text(st.characters(exclude_categories=[])))
def test_nothing_gets_through(text: str) -> None:
    for lines in (False, True):
        shown = printable(text, lines=lines)
        left = "\u200c\u200d" + "\n" * lines
        categories = {unicodedata.category(each) for each in shown if each not in left}
        assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}
        shown.encode()
        assert printable(shown, lines=lines) == shown


def test_lines_are_indented() -> None:
    assert printable_lines("one\nerror: two\tthree") == "one\n  error: two    three"


def test_errors_and_notices() -> None:
    """The text of an error of a file is one line, because only a name can have a line break."""
    assert str(PictureError(f"{HOSTILE}: damaged")) == f"{ESCAPED}: damaged"
    assert str(TorchpeekError(HOSTILE)) == ESCAPED.replace(r"\n", "\n").replace(r"\t", "    ")
    assert PictureError(HOSTILE).args == (HOSTILE,)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        notify(HOSTILE)
    assert str(caught[0].message) == ESCAPED


def test_tables_and_pages() -> None:
    assert ESCAPED in text_table(("layer",), [(HOSTILE,)])
    shown = ESCAPED.replace(r"\n", "<br>").replace(r"\t", "    ")
    assert shown in html_table(("layer",), [(HOSTILE,)])
    assert shown in html_paragraph(HOSTILE)
    facts = {"model": HOSTILE, HOSTILE: HOSTILE}
    page = report_html(Report(HOSTILE, HOSTILE, "picture", facts, (), ""))
    assert printable(page, lines=True) == page.replace("\t", "    ")
    assert page.count(ESCAPED.partition(r"\r")[0]) >= 4


def test_a_recording_of_layers_with_hostile_names() -> None:
    network = nn.Sequential()
    network.add_module(HOSTILE.replace(".", ""), nn.Linear(2, 3))
    with tp.record(network, "*", gradients=True) as tape:
        network(torch.rand(1, 2)).sum().backward()
    texts = [repr(tape), repr(tape[HOSTILE]), str(tp.layers(network, torch.rand(1, 2))), tape._repr_html_()]
    for text in [*texts, repr(tp.LoadedModel(network, spec=HOSTILE, weights=HOSTILE))]:
        assert printable(text, lines=True) == text
        assert r"\x1b[31m" in text


@given(st.text(st.characters(exclude_categories=[])))
def test_json_is_exact(text: str) -> None:
    """Also where a name is no text, JSON is UTF-8, and has the same name when it is read."""
    written = json_text({text: [text]})
    assert json.loads(written.encode().decode()) == json.loads(json.dumps({text: [text]}))
    assert not {unicodedata.category(each) for each in written} & {"Cf", "Cs", "Zl", "Zp"}
    assert not [each for each in written if unicodedata.category(each) == "Cc" and each != "\n"]

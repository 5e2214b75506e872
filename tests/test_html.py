"""The HTML pieces that notebooks show, and tables as text."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from torchpeek.html import data_uri, figure, html_table, image_tag, notebook_html
from torchpeek.text_table import text_table

BAD = '<img src=x onerror="alert(1)">&\''


class TestTable:
    def test_everything_is_escaped(self) -> None:
        made = html_table((BAD, "b"), [(BAD, "1")], footer=BAD)
        assert "<img" not in made
        assert made.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;&#x27;") == 3

    def test_numbers_are_right_aligned_and_words_are_not(self) -> None:
        made = html_table(("name", "number", "mixed"), [("a", "-1.5e-05", "3"), ("b", "1,024", "x"), ("c", "nan", "")])
        assert made.count("text-align:right") == 4  # the column and its header

    def test_names_that_are_numbers_are_left_aligned(self) -> None:
        assert html_table(("layer", "type"), [("0", "Conv2d"), ("1", "ReLU")]).count("text-align:right") == 0

    def test_marked_rows(self) -> None:
        made = html_table(("a",), [("x",), ("y",)], marked=[1])
        assert made.index("background") > made.index("x</td>")
        assert made.count("background") == 1

    def test_empty_columns_are_left_out(self) -> None:
        made = html_table(("a", "b"), [("x", ""), ("y", "")])
        assert ">b<" not in made
        assert ">b<" in html_table(("a", "b"), [])

    def test_a_very_long_one_says_that_it_is_cut(self) -> None:
        made = html_table(("a",), [(str(number),) for number in range(1500)])
        assert made.count("<tr>") == 1001
        assert "the first 1,000 of 1,500 rows" in made


class TestNotebookHtml:
    def test_an_error_shows_the_plain_text(self) -> None:
        class Broken:
            @notebook_html
            def _repr_html_(self) -> str:
                raise RuntimeError

            def __repr__(self) -> str:
                return "<Broken>"

        assert "&lt;Broken&gt;" in Broken()._repr_html_()
        Broken.__repr__ = Broken._repr_html_.__wrapped__  # type: ignore[assignment]
        assert "Broken, which cannot be shown: RuntimeError" in Broken()._repr_html_()


class TestImages:
    @pytest.mark.parametrize(("lossless", "kind"), [(True, "PNG"), (False, "JPEG")])
    def test_an_embedded_image(self, lossless, kind) -> None:
        uri = data_uri(Image.new("RGB", (30, 20), "red"), lossless=lossless)
        again = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        assert (again.format, again.size) == (kind, (30, 20))
        assert uri.startswith(f"data:image/{kind.lower()};base64,")

    def test_words_of_figures_are_escaped(self) -> None:
        made = figure(image_tag(Image.new("RGB", (3, 2)), BAD), BAD, BAD)
        assert made.count("<img") == 1
        assert 'onerror="' not in made


class TestTextTable:
    def test_columns_are_aligned(self) -> None:
        assert text_table(("layer", "n"), [("a", "1"), ("longer", "22")], "end") == (
            "layer   n\na       1\nlonger  22\nend"
        )

    def test_columns_without_an_entry_are_left_out(self) -> None:
        assert text_table(("a", "b", "c"), [("1", "", "3"), ("4", "", "")]) == "a  c\n1  3\n4"
        assert text_table(("a", "b"), []) == "a  b"

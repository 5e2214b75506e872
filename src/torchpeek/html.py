"""HTML pieces that notebooks show: escaped tables, captions and embedded images, without scripts or style sheets.

Colours are inherited, so that the pieces are legible in light and dark notebooks. Every text is escaped here.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from html import escape as html_escape
from typing import TYPE_CHECKING, TypeVar

from torchpeek.printable import printable
from torchpeek.text_table import without_empty_columns

if TYPE_CHECKING:
    from PIL import Image

Shown = TypeVar("Shown")

MOST_ROWS = 1000
"""Most rows of a table in a notebook, which stays responsive."""

_NUMBER = re.compile(r"[-+]?[\d,.]*\d(e[-+]?\d+)?%?|[-+]?(nan|inf)|")
_QUALITY = 75  # of JPEG: 16 photographs of a grid have less than 200 kB
_LONG = 80  # letters of a cell that is wrapped
_FAINT = "opacity:0.7"
_MARKED = "background:rgba(255,193,7,0.28);font-weight:bold"


def notebook_html(build: Callable[[Shown], str]) -> Callable[[Shown], str]:
    """Make a `_repr_html_` that never raises and never warns: where `build` fails, the plain text is shown."""

    @wraps(build)
    def shown(value: Shown) -> str:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a notice says stands beside the picture
                return build(value)
        except Exception:
            try:
                return preformatted(repr(value))
            except Exception as error:
                return preformatted(f"{type(value).__name__}, which cannot be shown: {type(error).__name__}: {error}")

    return shown


def preformatted(text: str) -> str:
    """Return text in its own lines and columns. A long one scrolls."""
    return f'<pre style="max-height:480px;overflow:auto;line-height:1.35">{escape(text)}</pre>'


def html_paragraph(text: str, *, faint: bool = False) -> str:
    """Return a line of text; empty for no text."""
    style = f"margin:4px 0;{_FAINT}" if faint else "margin:4px 0"
    return f'<div style="{style}">{escaped_lines(text)}</div>' if text else ""


def escape(text: str) -> str:
    """Return text as HTML, in its lines. A direction mark, which would turn the words after it around, is escaped."""
    return html_escape(printable(text, lines=True))


def escaped_lines(text: str) -> str:
    """Return text with its line breaks."""
    return escape(text).replace("\n", "<br>")


def html_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    footer: str = "",
    marked: Collection[int] = (),
) -> str:
    """Return a table that scrolls if it is long. Columns without an entry are left out.

    Columns of numbers are right-aligned, but for the first one: a layer's name may be a number.

    Args:
        header: The names of the columns; empty for a table without a header.
        rows: The cells of each row, as text. Of more than 1000 rows the first are shown, and a line says so.
        footer: The text below the table.
        marked: Indices of the rows that are highlighted.
    """
    if header:
        header, rows = without_empty_columns(header, rows)
    right = numeric_columns(rows)

    def line(cells: Sequence[str], tag: str, style: str = "") -> str:
        made = (
            f'<{tag} style="text-align:{"right" if number else "left"};vertical-align:top;padding:2px 10px;'
            f'white-space:{"nowrap" if len(cell) < _LONG else "normal"}">{escaped_lines(cell)}</{tag}>'
            for cell, number in zip(cells, right or [False] * len(cells), strict=True)
        )
        return (f'<tr style="{style}">' if style else "<tr>") + "".join(made) + "</tr>"

    head = f"<thead>{line(header, 'th')}</thead>" if header else ""
    body = "".join(
        line(cells, "td", _MARKED if number in marked else "") for number, cells in enumerate(rows[:MOST_ROWS])
    )
    cut = f"the first {MOST_ROWS:,} of {len(rows):,} rows" if len(rows) > MOST_ROWS else ""
    return (
        '<div style="max-height:480px;overflow:auto;display:inline-block;max-width:100%">'
        f'<table style="margin:0;border-collapse:collapse">{head}<tbody>{body}</tbody></table></div>'
        + html_paragraph(cut)
        + html_paragraph(footer, faint=True)
    )


def numeric_columns(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Return whether each column has numbers only; empty for no rows. The first column is taken for names."""
    return [
        bool(number) and all(_NUMBER.fullmatch(cell) for cell in column)
        for number, column in enumerate(zip(*rows, strict=True))
    ]


def cells_table(rows: Sequence[Mapping[str, str]], *, footer: str = "") -> str:
    """Return a table of rows that are column -> cell, with a column for each name that occurs."""
    header = tuple(dict.fromkeys(column for row in rows for column in row))
    return html_table(header, [[row.get(column, "") for column in header] for row in rows], footer=footer)


def figure(image: str, *captions: str, width: int | None = None) -> str:
    """Return an image, or other HTML, with lines of text above it.

    Args:
        image: HTML, such as an `image`.
        captions: The lines, as text. The first is bold.
        width: Width of the figure, in pixels.
    """
    lines = [f"<div><b>{escape(captions[0])}</b></div>"] if captions and captions[0] else []
    lines += [f'<div style="{_FAINT}">{escape(each)}</div>' for each in captions[1:] if each]
    size = f"max-width:{width}px;" if width else ""
    return f'<div style="{size}overflow-wrap:anywhere;line-height:1.3">{"".join(lines)}{image}</div>'


def collapsed(summary: str, content: str) -> str:
    """Return HTML that is shown when the reader opens it."""
    return f'<details><summary style="{_FAINT};cursor:pointer">{escape(summary)}</summary>{content}</details>'


def side_by_side(figures: Sequence[str]) -> str:
    """Return figures in rows, as many in a row as there is room for."""
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start;margin:6px 0">'
        + "".join(figures)
        + "</div>"
    )


def image_tag(image: Image.Image, alt: str = "", *, lossless: bool = False) -> str:
    """Return an embedded image in its own size."""
    size = f'width="{image.width}" height="{image.height}"'
    uri = data_uri(image, lossless=lossless)
    return f'<img src="{uri}" alt="{escape(alt)}" {size} style="max-width:100%;height:auto;margin:2px 0">'


def bar(image: Image.Image, width: int, numbers: Sequence[str]) -> str:
    """Return a colour bar, with the numbers of its left end, its middle and its right end below it."""
    strip = (
        f'<img src="{data_uri(image, lossless=True)}" alt="" width="{width}" height="10" '
        'style="width:100%;height:10px;margin:2px 0;display:block">'
    )
    words = "".join(f"<span>{escape(number)}</span>" for number in numbers)
    return f'{strip}<div style="display:flex;justify-content:space-between;font-size:85%">{words}</div>'


def data_uri(image: Image.Image, *, lossless: bool = False) -> str:
    """Return an image as a data URI: a PNG if `lossless`, which suits few colours, else a JPEG."""
    kind = "PNG" if lossless else "JPEG"
    packed = io.BytesIO()
    image.save(packed, kind, **({} if lossless else {"quality": _QUALITY}))
    return f"data:image/{kind.lower()};base64," + base64.b64encode(packed.getvalue()).decode()


def fitted(image: Image.Image, longest: int) -> Image.Image:
    """Return the image in its proportions, at most `longest` pixels wide or high; the same image if it is smaller."""
    from PIL import Image

    scale = longest / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)

"""Report: an HTML page about pictures or layers with everything embedded: it needs no network and no other file.

Links lead to files beside the page, in full size. The page is complete without them.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined
from PIL import Image

from torchpeek.html import data_uri, fitted, numeric_columns
from torchpeek.printable import printable
from torchpeek.render.chart import Chart
from torchpeek.text_table import without_empty_columns

INDEXED = 20
"""With as many items, or as many figures, a page has a filter; with as many items, an index."""

_LARGEST, _SMALLEST = 800, 200  # the longest side of an embedded image, in pixels
# Of the embedded images together, and of an image for each pixel of a square with its longest side: measured on
# overlays of photographs, in base64.
_BYTES, _BYTES_PER_PIXEL = 40e6, 0.35
_MOST_LAYERS = 2  # names in a caption


@dataclass(frozen=True)
class ReportFigure:
    """An image or a chart, with its caption.

    Args:
        title: The name in the caption.
        image: A data URI from `embedded`, so that no picture stays in memory until the page is written.
        size: Width and height of the full size, in pixels.
        layer: The layer that it is made from, where the title does not name it. Several are joined by ", ".
        lines: Further lines of the caption.
        remark: The last line; what follows a colon is shown when it is pointed at.
        file: The image in full size, relative to the page.
        alt: What the image shows, for those who cannot see it.
        chart: What is drawn in place of an image.
    """

    title: str
    image: str = ""
    size: tuple[int, int] = (4, 3)
    layer: str = ""
    lines: Sequence[str] = ()
    remark: str = ""
    file: str = ""
    alt: str = ""
    chart: Chart | None = None

    @property
    def words(self) -> str:
        """What the filter searches."""
        lines = [] if self.chart is None else [line.name for line in self.chart.lines]
        return " ".join(filter(None, [self.title, self.layer, *lines])).lower()


@dataclass(frozen=True)
class ReportBar:
    """A class, a box or a text with the model's confidence in it."""

    name: str
    text: str  # "12.3 %", "cosine 0.211"
    share: float | None  # the length of the bar, 0 to 1; None where the confidence is no share of a whole
    explained: bool = False


@dataclass(frozen=True)
class ReportTable:
    """A table. Columns without an entry are left out.

    Args:
        title: What it shows.
        header: The names of the columns.
        rows: The cells as text. The first of each row is its name.
        links: An address for each row, to which its name leads; "" for none. Empty if no row has one.
        items: Whether the rows are what the page is about, so that the filter finds them.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    links: Sequence[str] = ()
    items: bool = False

    def __post_init__(self) -> None:
        header, rows = without_empty_columns(self.header, self.rows)
        object.__setattr__(self, "header", header)
        object.__setattr__(self, "rows", rows)

    @property
    def numeric(self) -> list[bool]:
        """Whether each column has numbers, which are aligned to the right."""
        return numeric_columns(self.rows) or [False] * len(self.header)

    @property
    def words(self) -> list[str]:
        """What the filter searches in each row: the cells that are no numbers."""
        numeric = self.numeric
        return [
            " ".join(cell for cell, is_number in zip(row, numeric, strict=True) if not is_number).lower()
            for row in self.rows
        ]


@dataclass(frozen=True)
class ReportPlot:
    """An image that is shown as wide as the page allows, with a line below it."""

    image: str  # a data URI
    alt: str
    file: str
    caption: str = ""


@dataclass(frozen=True)
class ReportRow:
    """A part of an item: what is explained in a picture, with the predictions and a figure of each method."""

    name: str
    text: str  # the model's confidence in it, as in ReportBar
    figures: Sequence[ReportFigure]
    bars: Sequence[ReportBar] = ()  # best first
    charts: Sequence[ReportFigure] = ()
    tables: Sequence[ReportTable] = ()


@dataclass(frozen=True)
class ReportItem:
    """One picture, or one layer, with its rows.

    Args:
        name: Its name.
        path: Its whole name, such as the path of a picture.
        remarks: What stands below the name.
        rows: The rows.
        image: The photograph, a data URI as in ReportFigure; empty for none.
        size: Width and height of the photograph.
        thumbnail: A small image for the index, likewise.
        summary: The line in the index: the best prediction with its confidence.
        files: The files of the item, relative to the page.
    """

    name: str
    path: str
    remarks: Sequence[str]
    rows: Sequence[ReportRow]
    image: str = ""
    size: tuple[int, int] = (4, 3)
    thumbnail: str = ""
    summary: str = ""
    files: Sequence[str] = ()

    @property
    def words(self) -> str:
        """What the filter searches, besides the figures: the path, and every class that is predicted or explained."""
        names = [self.summary, *(name for row in self.rows for name in (row.name, *(bar.name for bar in row.bars)))]
        return " ".join(filter(None, dict.fromkeys([self.path, *names]))).lower()


@dataclass(frozen=True)
class Legend:
    """A colormap with the meaning of its two ends."""

    low: str
    colours: str  # a CSS gradient
    high: str


@dataclass(frozen=True)
class Report:
    """The contents of the page.

    Args:
        title: The heading.
        subject: How many of what the page shows: "3 pictures".
        noun: What an item is: "picture" or "layer".
        facts: What everything depends on: the model, the weights, the options, the versions.
        items: The pictures or layers.
        filter_hint: What the filter finds an item by.
        explanations: A line on each method or metric.
        reading: How to read the page.
        legend: The colours of the figures, where all have the same.
        summary: The sentences before the items.
        figures: The figures before the items.
        plots: The plots before the items.
        tables: The tables before the items.
        files: The files that hold all of it, relative to the page -> what they hold.
        skipped: File -> reason.
        left_out: Items without a place on the page -> file relative to the page, or "" for none.
        not_reached: What an interrupted command had not come to.
        large: Whether the figures need more than a small place.
    """

    title: str
    subject: str
    noun: str
    facts: Mapping[str, str]
    items: Sequence[ReportItem]
    filter_hint: str
    explanations: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, str] = field(default_factory=dict)
    legend: Legend | None = None
    summary: Sequence[str] = ()
    figures: Sequence[ReportFigure] = ()
    plots: Sequence[ReportPlot] = ()
    tables: Sequence[ReportTable] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    not_reached: Sequence[str] = ()
    large: bool = False

    @property
    def indexed(self) -> bool:
        """Whether the page has an index."""
        return len(self.items) >= INDEXED

    @property
    def filtered(self) -> bool:
        """Whether the page has a filter."""
        figures = sum(len(row.figures) for item in self.items for row in item.rows)
        rows = sum(len(table.rows) for table in self.tables if table.items)
        return max(len(self.items), rows) >= INDEXED or figures > INDEXED

    @property
    def figures_per_row(self) -> int:
        """The number of places for figures beside each other, which decides their width."""
        most = max((len(row.figures) for item in self.items for row in item.rows), default=1)
        return 1 if self.large else most


def report_html(report: Report) -> str:
    """Return the page as one HTML file."""
    environment = Environment(
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_text),
    )
    environment.filters |= {"address": _address, "layers": _layers}
    script = _text("report.js") if report.filtered else ""
    return environment.get_template("report.html.j2").render(
        report=report,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        figures_per_row=report.figures_per_row,
    )


def embedded(image: Image.Image, longest: int = _LARGEST) -> str:
    """Return an image as a data URI of a JPEG, at most `longest` pixels wide or high, to keep the page small."""
    return data_uri(fitted(image, longest))


def embedded_side(images: int) -> int:
    """Return the longest side, in pixels, at which so many images make a page of about 40 MB, which opens fast.

    More images than fit at the smallest side make a larger page.
    """
    return int(min(_LARGEST, max(_SMALLEST, math.sqrt(_BYTES / _BYTES_PER_PIXEL / max(1, images)))))


def _text(name: str) -> str:
    return files("torchpeek.render").joinpath(name).read_text("utf-8")


def _printable(value: object) -> object:
    """Return a text without characters that a page would not show; anything else, such as HTML, as it is."""
    return printable(value, lines=True) if type(value) is str else value


def _address(file: str) -> str:
    """Return a relative path as an address. In a name, # and % and a colon have another meaning there."""
    return quote(file.replace("\\", "/"), errors="surrogateescape")


def _layers(names: str) -> str:
    """Return the layers of a caption: of many the first and the number."""
    listed = names.split(", ")
    if len(listed) <= _MOST_LAYERS:
        return names
    return f"{listed[0]} and {len(listed) - 1} other layers"

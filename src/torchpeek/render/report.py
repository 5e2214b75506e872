"""Report: an HTML page about pictures with everything embedded, so that it needs no network and no other file.

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

from jinja2 import Environment, StrictUndefined
from PIL import Image

from torchpeek.html import data_uri, fitted
from torchpeek.render.colormaps import COLORMAPS, DIVERGING

INDEXED = 20
"""With as many pictures, a page has an index and a filter."""

_LARGEST, _SMALLEST = 800, 200  # the longest side of an embedded image, in pixels
# Of the embedded images together, and of an image for each pixel of a square with its longest side: measured on
# overlays of photographs, in base64.
_BYTES, _BYTES_PER_PIXEL = 40e6, 0.35
_MOST_LAYERS = 2  # names in a caption


@dataclass(frozen=True)
class ReportMap:
    """One heatmap on its picture."""

    method: str
    layer: str
    score: float
    lowest: float  # of the raw, signed values
    highest: float  # likewise
    size: tuple[int, int]  # of the overlay, in pixels
    image: str  # a data URI from `embedded`, so that no picture stays in memory until the page is written
    file: str = ""  # the overlay in full size, relative to the page
    remark: str = ""  # what positive values alone hide


@dataclass(frozen=True)
class ReportBar:
    """A class, a box or a text with the model's confidence in it."""

    name: str
    text: str  # "12.3 %", "cosine 0.211"
    share: float | None  # the length of the bar, 0 to 1; None where the confidence is no share of a whole
    explained: bool = False


@dataclass(frozen=True)
class ReportRow:
    """What is explained in a picture, with the model's predictions and a heatmap of each method."""

    name: str
    text: str  # the model's confidence in it, as in ReportBar
    bars: Sequence[ReportBar]  # best first
    maps: Sequence[ReportMap]


@dataclass(frozen=True)
class ReportPicture:
    """One picture, and a row for each class that is explained in it."""

    name: str
    path: str
    size: tuple[int, int]
    remarks: Sequence[str]
    image: str  # a data URI, as in ReportMap
    thumbnail: str  # likewise
    predicted: str  # the best prediction, with its confidence
    rows: Sequence[ReportRow]

    @property
    def words(self) -> str:
        """What the filter searches: the path, and every class that is predicted or explained."""
        names = [self.predicted, *(name for row in self.rows for name in (row.name, *(bar.name for bar in row.bars)))]
        return " ".join(dict.fromkeys([self.path, *names])).lower()


@dataclass(frozen=True)
class Report:
    """The contents of the page: facts about the run, a line on each method, the pictures, and those left out."""

    facts: Mapping[str, str]
    methods: Mapping[str, str]
    pictures: Sequence[ReportPicture]
    colormap: str
    skipped: Mapping[str, str]  # file -> reason
    fade: bool = False  # whether the colours fade with the value
    left_out: Mapping[str, str] = field(default_factory=dict)  # explained pictures without a place on the page -> file

    @property
    def total(self) -> int:
        """The number of pictures that were explained."""
        return len(self.pictures) + len(self.left_out)


def report_html(report: Report) -> str:
    """Return the page as one HTML file."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "address": _address, "layers": _layers}
    script = _text("report.js") if len(report.pictures) >= INDEXED else ""
    return environment.from_string(_text("report.html.j2")).render(
        report=report,
        legend=_legend(report.colormap),
        signed=report.colormap == DIVERGING,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        methods_per_row=max((len(row.maps) for picture in report.pictures for row in picture.rows), default=1),
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


def _number(value: float) -> str:
    return f"{value:.3g}"


def _address(file: str) -> str:
    """Return a relative path as an address. In a name, # and % and a colon have another meaning there."""
    return quote(file.replace("\\", "/"), errors="surrogateescape")


def _layers(names: str) -> str:
    """Return the layers of a caption: of many the first and the number."""
    listed = names.split(", ")
    if len(listed) <= _MOST_LAYERS:
        return names
    return f"{listed[0]} and {len(listed) - 1} other layers"


def _legend(colormap: str) -> str:
    """Return the colormap as a CSS gradient."""
    return (
        "linear-gradient(to right, "
        + ", ".join(f"#{bytes(colour).hex()}" for colour in COLORMAPS[colormap][::17])
        + ")"
    )

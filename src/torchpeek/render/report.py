"""Report: an HTML page about pictures with everything embedded, so that it needs no network and no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from PIL import Image

from torchpeek.render.colormaps import COLORMAPS, DIVERGING


@dataclass(frozen=True)
class ReportMap:
    """One heatmap on its picture."""

    name: str
    confidence: str  # the model's confidence: "12.3 %", "cosine 0.211"
    score: float
    lowest: float  # of the raw, signed values
    highest: float  # likewise
    image: str  # a data URI from `embedded`, so that no picture stays in memory until the page is written


@dataclass(frozen=True)
class ReportClass:
    """A class with its probability, or its share of the pixels."""

    name: str
    share: float
    text: str


@dataclass(frozen=True)
class ReportPicture:
    """One picture: the model's predictions, and for each method a heatmap of each score."""

    name: str
    size: tuple[int, int]
    notes: Sequence[str]
    image: str
    predictions: Sequence[ReportClass]  # best first
    maps: Mapping[str, Sequence[ReportMap]]  # by method


@dataclass(frozen=True)
class Report:
    """The contents of the page: facts about the run, a line on each method, the pictures, and those left out."""

    facts: Mapping[str, str]
    methods: Mapping[str, str]
    pictures: Sequence[ReportPicture]
    colormap: str
    skipped: Mapping[str, str]  # file -> reason
    left_out: int = 0  # number of explained pictures that do not fit on the page


def report_html(report: Report) -> str:
    """Return the page as one HTML file."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number}
    template = environment.from_string(files("torchpeek.render").joinpath("report.html.j2").read_text("utf-8"))
    return template.render(report=report, legend=_legend(report.colormap), signed=report.colormap == DIVERGING)


def embedded(image: Image.Image, longest: int = 800) -> str:
    """Return an image as a data URI of a JPEG, at most `longest` pixels wide or high, to keep the page small."""
    small = image.copy()
    small.thumbnail((longest, longest))
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()


def _number(value: float) -> str:
    return f"{value:.3g}"


def _legend(colormap: str) -> str:
    """Return the colormap as a CSS gradient."""
    return (
        "linear-gradient(to right, "
        + ", ".join(f"#{bytes(colour).hex()}" for colour in COLORMAPS[colormap][::17])
        + ")"
    )

"""A page about some pictures, with everything embedded: it needs no network and no other file."""

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
    confidence: str  # how sure the model is of it: "12.3 %", "cosine 0.211"
    score: float
    lowest: float  # of the raw, signed values
    highest: float
    image: str  # from `embedded`, as everywhere here: pictures are not kept until the page is written


@dataclass(frozen=True)
class ReportClass:
    """A class, and its share of a whole: the probability, or the share of the pixels."""

    name: str
    share: float
    text: str


@dataclass(frozen=True)
class ReportPicture:
    """One picture: what the model says of it, and its heatmaps, for each method one of every class asked for."""

    name: str
    size: tuple[int, int]
    notes: Sequence[str]
    image: str
    predictions: Sequence[ReportClass]  # best first
    maps: Mapping[str, Sequence[ReportMap]]  # by method


@dataclass(frozen=True)
class Report:
    """What the page says: facts that hold for every picture, a line on each method, the pictures, what was left out."""

    facts: Mapping[str, str]
    methods: Mapping[str, str]
    pictures: Sequence[ReportPicture]
    colormap: str
    skipped: Mapping[str, str]  # file -> why
    left_out: int = 0  # pictures that were explained, but are too many for one page


def report_html(report: Report) -> str:
    """The page, as one HTML file."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number}
    template = environment.from_string(files("torchpeek.render").joinpath("report.html.j2").read_text("utf-8"))
    return template.render(report=report, legend=_legend(report.colormap), signed=report.colormap == DIVERGING)


def embedded(image: Image.Image, longest: int = 800) -> str:
    """As a data URI, at most `longest` pixels wide or high. JPEG, for a small page: the PNG files have every pixel."""
    small = image.copy()
    small.thumbnail((longest, longest))
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()


def _number(value: float) -> str:
    return f"{value:.3g}"


def _legend(colormap: str) -> str:
    """The colormap as a CSS gradient."""
    return (
        "linear-gradient(to right, "
        + ", ".join(f"#{bytes(colour).hex()}" for colour in COLORMAPS[colormap][::17])
        + ")"
    )

"""The HTML page that a command with pictures or layers writes: its file, its items, and the facts that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from torchpeek._version import __version__
from torchpeek.cli.explainer import reduction_words
from torchpeek.cli.loading import about
from torchpeek.cli.pictures import PictureFiles
from torchpeek.explanation.predictions import Corners, Prediction
from torchpeek.explanation.request import preprocessing_words
from torchpeek.heatmap import Heatmap
from torchpeek.models import LoadedModel
from torchpeek.picture import Picture
from torchpeek.render.heatmap_report import heatmap_figure
from torchpeek.render.report import Report, ReportBar, ReportFigure, ReportItem, embedded_side, report_html
from torchpeek.store import OutputFolder, encodable

PAGE = "report.html"
"""The name of the file."""

THUMBNAIL = 96
"""Pixels of the longer side of an image in the index."""

_ITEMS_PER_PAGE = 1000  # a page with more is slow to open
_IMAGES_PER_PAGE = 5000  # likewise; at their smallest, they have about 70 MB


@dataclass
class PageItems:
    """The items of a page, as many as it holds. Those beyond are listed with a link."""

    items: list[ReportItem] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # path -> file
    _images: int = 0

    def side(self, items: int, images: int) -> int:
        """The longest side of an embedded image, where each of so many items has so many images."""
        return embedded_side(min(min(items, _ITEMS_PER_PAGE) * images, _IMAGES_PER_PAGE))

    def add(self, item: ReportItem, *, instead: str = "") -> None:
        """Add an item.

        Args:
            item: The item.
            instead: The file to which the list links if the page is full, relative to it; "" for none.
        """
        images = bool(item.image) + sum(bool(figure.image) for row in item.rows for figure in row.figures)
        full = len(self.items) >= _ITEMS_PER_PAGE or (self.items and self._images + images > _IMAGES_PER_PAGE)
        if full or self.left_out:  # after the first that is left out, all are
            self.left_out[item.path] = instead
            return
        self.items.append(item)
        self._images += images


def write_page(folder: OutputFolder, report: Report) -> Path:
    """Write the page. A name that is not text, as a file may have, is written with escapes."""
    return folder.write(PAGE, encodable(report_html(report)).encode())


def page_facts(loaded: LoadedModel, files: PictureFiles | None = None, **options: object) -> dict[str, str]:
    """What everything on a page depends on: model, weights, preprocessing, options and versions.

    Args:
        loaded: The model.
        files: The pictures, if the command reads any.
        **options: What was asked. Without a value, the default is meant, and nothing is said.
    """
    said = {name.replace("_", " "): _words(value) for name, value in options.items() if value not in (None, "", [])}
    parameter = next(loaded.module.parameters(), None)
    dtype = "" if parameter is None else f"in {str(parameter.dtype).removeprefix('torch.')} on {parameter.device}, "
    return {
        **about(loaded),
        **({} if files is None else {"preprocessing": reduction_words(files.max_size) + preprocessing_words(loaded)}),
        **said,
        "computed": f"{dtype}torch {torch.__version__}, torchpeek {__version__}",
    }


def overlay_figure(
    heatmap: Heatmap, size: tuple[int, int], uri: str, alt: str, file: str = "", remark: str = ""
) -> ReportFigure:
    """The figure of an overlay of one map, whose embedded image is `uri`."""
    low, high = float(heatmap.values.min()), float(heatmap.values.max())
    method, layer, score = heatmap.provenance.method, heatmap.provenance.layer, float(heatmap.scores)
    return heatmap_figure(method, layer, score, low, high, size=size, image=uri, file=file, remark=remark, alt=alt)


def prediction_bars(best: Sequence[Prediction], explained: Prediction) -> list[ReportBar]:
    """The best predictions, and after them what is explained if it is not among them."""
    found = [(each.label, each.box) == (explained.label, explained.box) for each in best]
    listed = [*zip(best, found, strict=True), *([] if any(found) else [(explained, True)])]
    return [
        ReportBar(each.name, each.confidence, each.value if each.is_share else None, is_explained)
        for each, is_explained in listed
    ]


def outlined(image: Image.Image, box: Corners, picture: Picture) -> Image.Image:
    """A copy with the box drawn as a white line between two black lines, which is visible on any picture."""
    copy = image.copy()
    draw, thick = ImageDraw.Draw(copy), max(1, round(min(image.size) / 200))
    scale = [now / have for now, have in zip(image.size, picture.original_geometry.size, strict=True)]
    left, top, right, bottom = (round(each * scale[axis % 2]) for axis, each in enumerate(box))
    for inset, colour in ((0, "black"), (thick, "white"), (2 * thick, "black")):
        corners = (left + inset, top + inset, max(left + inset, right - inset), max(top + inset, bottom - inset))
        draw.rectangle(corners, outline=colour, width=thick)
    return copy


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)

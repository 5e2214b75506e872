"""The HTML page of `torchpeek features`: each picture beside the feature maps of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from torchpeek.cli.page import THUMBNAIL, PageItems
from torchpeek.html import fitted
from torchpeek.picture import Picture
from torchpeek.render.canvas import enlarged
from torchpeek.render.report import Report, ReportFigure, ReportItem, ReportRow, ReportTable, embedded
from torchpeek.text_table import percentage

HEADER = ("layer", "shape", "mean", "std", "min", "max", "zeros", "dead", "remark")
_LARGEST = 1280  # pixels of the longer side of the photograph, before it is embedded

_READING = {
    "feature maps": "Each tile is one channel of what the layer returned for the picture. The title of a grid says "
    "which channels are drawn, of how many, and on which scale. A click opens the grid in full size, if the files that "
    "were written with this page are beside it.",
    "numbers": "Mean, std, min and max are over all values that the layer returned for this picture. Zeros is the "
    "share of values that are exactly 0. Dead is the number of channels that are 0 everywhere.",
}


@dataclass
class FeaturesPage:
    """Collects the pictures of the page.

    Args:
        pictures: The number of pictures that will be added, from which the size of the images follows.
    """

    pictures: int
    _items: PageItems = field(default_factory=PageItems)

    def add(
        self, picture: Picture, path: Path, stem: str, rows: Sequence[dict[str, Any]], grids: Mapping[str, Image.Image]
    ) -> None:
        """Add one picture.

        Args:
            picture: The picture.
            path: Its path, as it is printed.
            stem: The folder of its files, relative to the page.
            rows: The rows of features.json, one for each layer.
            grids: Layer -> the grid of its feature maps, for each layer that is drawn.
        """
        side = self._items.side(self.pictures, 1 + len(grids))
        photo = enlarged(fitted(picture.image, _LARGEST))
        figures = [
            _figure(row, picture.name, grids.get(row["layer"]), f"{stem}/{Path(row.get('drawn', '')).name}", side)
            for row in rows
        ]
        table = ReportTable(f"what the layers returned for {picture.name}", HEADER, [_cells(row) for row in rows])
        values = f"{stem}/features.safetensors"
        self._items.add(
            ReportItem(
                picture.name,
                str(path),
                picture.notes,
                [ReportRow("", "", figures, tables=[table])],
                embedded(photo, side),
                picture.image.size,
                embedded(photo, THUMBNAIL),
                files=[values],
            ),
            instead=values,
        )

    def report(self, facts: Mapping[str, str], skipped: Mapping[str, str]) -> Report:
        """The page of the pictures so far."""
        items, left_out = self._items.items, self._items.left_out
        count = len(items) + len(left_out)
        return Report(
            "What the layers return",
            f"{count} picture{'s' * (count != 1)}",
            "picture",
            facts,
            items,
            "file name or layer",
            reading=_READING,
            files={"features.json": "has the numbers"},
            skipped=skipped,
            left_out=left_out,
            large=True,
        )


def _figure(row: Mapping[str, Any], name: str, grid: Image.Image | None, file: str, side: int) -> ReportFigure:
    lines = [_shape(row)] if "shape" in row else []
    if "mean" in row:
        lines.append(f"mean {row['mean']:.4g}; {row['min']:.4g} to {row['max']:.4g}")
    if "score" in row:
        lines.append(f"by their contribution to the score {row['score']:.4g}")
    if grid is None:
        return ReportFigure(row["layer"], lines=[*lines, row.get("remark", "not drawn")])
    alt = f"feature maps of {row['layer']} for {name}"
    return ReportFigure(row["layer"], embedded(grid, side), grid.size, lines=lines, file=file, alt=alt)


def _shape(row: Mapping[str, Any]) -> str:
    shape = " x ".join(map(str, row.get("shape", [])))
    return f"{shape}, read as {row['layout']}" if "layout" in row else shape


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = [f"{row[key]:.4g}" if key in row else "" for key in ("mean", "std", "min", "max")]
    zeros = percentage(row["zero_share"]) if "zero_share" in row else ""
    dead = str(row["dead"]) if row.get("dead") is not None else ""
    not_finite = ", ".join(f"{row[key]} {word}" for key, word in (("nan", "NaN"), ("inf", "infinite")) if row.get(key))
    remark = "; ".join(filter(None, (not_finite, row.get("remark", ""))))
    return row["layer"], _shape(row), *numbers, zeros, dead, remark

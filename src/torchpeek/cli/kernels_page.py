"""The HTML page of `torchpeek kernels`: each layer's kernels with their statistics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from torchpeek.cli.page import THUMBNAIL, PageItems
from torchpeek.render.report import Report, ReportFigure, ReportItem, ReportPlot, ReportRow, ReportTable, embedded

_HEADER = ("layer", "kernels", "mean", "std", "min", "max", "zeros", "remark")
_WIDEST = 1280  # pixels of the longer side of the first kernels

_READING = {
    "kernels": "A kernel is one filter of a convolution: a block of tiles for its input channels. The title of a "
    "picture says which kernels and channels are drawn, of how many, and on which scale. A click opens the picture in "
    "full size, if the files that were written with this page are beside it.",
    "numbers": "Mean, std, min and max are over all weights of the layer, biases left out. Zeros is the share of "
    "weights that are exactly 0. The weights are those that the next forward pass uses.",
}


class EmbeddedGrid(NamedTuple):
    """The picture of a layer's kernels as the page holds it, which takes less memory than the picture itself."""

    image: str  # a data URI
    thumbnail: str  # likewise
    size: tuple[int, int]  # of the picture, in pixels


def embedded_grid(grid: Image.Image, layers: int) -> EmbeddedGrid:
    """The picture for a page with so many layers."""
    return EmbeddedGrid(embedded(grid, PageItems().side(layers, 1)), embedded(grid, THUMBNAIL), grid.size)


def kernels_report(
    results: Mapping[str, Any],
    facts: Mapping[str, str],
    grids: Mapping[str, EmbeddedGrid],
    first: Image.Image | None,
) -> Report:
    """The page.

    Args:
        results: The contents of kernels.json.
        facts: What the page depends on.
        grids: Layer -> the picture of its kernels, for each layer that is drawn.
        first: The picture of the first kernels, if there is one.
    """
    layers = results["layers"]
    items = PageItems()
    for row in layers:
        items.add(_item(row, grids.get(row["layer"])), instead=Path(row.get("picture", "")).name)
    links = [f"#layer-{n + 1}" for n in range(len(items.items))] + [""] * len(items.left_out)
    tables = [
        ReportTable("the layers", _HEADER, [_cells(row) for row in layers], links),
        ReportTable(
            "the shapes of the kernels",
            ("shape", "layers"),
            [(shape, ", ".join(names)) for shape, names in results["by_shape"].items()],
        ),
    ]
    alt = "the first kernel of each layer"
    plots = [] if first is None else [ReportPlot(embedded(first, _WIDEST), alt, "first-kernels.png")]
    return Report(
        "The kernels",
        f"{len(layers)} layer{'s' * (len(layers) != 1)}",
        "layer",
        facts,
        items.items,
        "layer or shape",
        reading=_READING,
        plots=plots,
        tables=tables,
        files={"kernels.json": "has the numbers", "kernels.safetensors": "has the weights"},
        left_out=items.left_out,
        large=True,
    )


def _item(row: Mapping[str, Any], grid: EmbeddedGrid | None) -> ReportItem:
    name, shape = row["layer"], _shape(row)
    numbers = (
        f"mean {row['mean']:.4g}; std {row['std']:.4g}; {row['min']:.4g} to {row['max']:.4g}" if "mean" in row else ""
    )
    remarks = [each for each in (shape, numbers, _remark(row)) if each]
    if grid is None:
        return ReportItem(name, name, [*remarks, "not drawn"], [], summary=shape)
    file, alt = Path(row["picture"]).name, f"the kernels of {name}"
    figure = ReportFigure(name, grid.image, grid.size, file=file, alt=alt)
    return ReportItem(name, name, remarks, [ReportRow("", "", [figure])], thumbnail=grid.thumbnail, summary=shape)


def _shape(row: Mapping[str, Any]) -> str:
    return " x ".join(map(str, row["shape"]))


def _remark(row: Mapping[str, Any]) -> str:
    not_finite = f"{row['not_finite']} not finite" if row.get("not_finite") else ""
    return "; ".join(filter(None, (not_finite, row.get("remark", ""))))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    spread = (f"{row[key]:.4g}" if key in row else "" for key in ("mean", "std", "min", "max"))
    zeros = f"{row['zero_share']:.1%}" if "zero_share" in row else ""
    return (row["layer"], _shape(row), *spread, zeros, _remark(row))

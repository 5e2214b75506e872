"""Pages of the report, as the tests of its structure and of its filter need them."""

from __future__ import annotations

from typing import Any

from PIL import Image

from torchpeek.render.heatmap_report import heatmap_figure, heatmap_report
from torchpeek.render.report import ReportBar, ReportItem, ReportRow, embedded, report_html

DATA = "data:image/jpeg;base64,"
IMAGE = embedded(Image.new("RGB", (20, 10), "red"))


def row(
    name: str = "cat", methods: Any = ("gradcam",), bars: Any = None, file: str = "", layer: str = "l"
) -> ReportRow:
    figures = [
        heatmap_figure(method, layer, 3.0, -1.0, 2.0, size=(20, 10), image=IMAGE, file=file, alt=f"{method} of {name}")
        for method in methods
    ]
    bars = [ReportBar(name, "50.0 %", 0.5, explained=True)] if bars is None else bars
    return ReportRow(name, "50.0 %", figures, bars)


def picture(name: str, rows: Any = None, predicted: str = "cat 50.0 %", remarks: Any = ()) -> ReportItem:
    rows = [row()] if rows is None else rows
    return ReportItem(name, f"some/{name}", remarks, rows, IMAGE, (20, 10), IMAGE, predicted)


def page_of(*pictures: ReportItem, **more: Any) -> str:
    values = {"facts": {"model": "m"}, "methods": {"gradcam": "summary"}, "colormap": "viridis", "skipped": {}} | more
    return report_html(heatmap_report(items=pictures, **values))

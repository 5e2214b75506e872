"""Pages of the report, as the tests of its structure and of its filter need them."""

from __future__ import annotations

from typing import Any

from PIL import Image

from torchpeek.render.report import Report, ReportBar, ReportMap, ReportPicture, ReportRow, embedded, report_html

DATA = "data:image/jpeg;base64,"
IMAGE = embedded(Image.new("RGB", (20, 10), "red"))


def row(
    name: str = "cat", methods: Any = ("gradcam",), bars: Any = None, file: str = "", layer: str = "l"
) -> ReportRow:
    maps = [ReportMap(method, layer, 3.0, -1.0, 2.0, (20, 10), IMAGE, file) for method in methods]
    return ReportRow(name, "50.0 %", [ReportBar(name, "50.0 %", 0.5, explained=True)] if bars is None else bars, maps)


def picture(name: str, rows: Any = None, predicted: str = "cat 50.0 %", remarks: Any = ()) -> ReportPicture:
    rows = [row()] if rows is None else rows
    return ReportPicture(name, f"some/{name}", (20, 10), remarks, IMAGE, IMAGE, predicted, rows)


def page_of(*pictures: ReportPicture, **more: Any) -> str:
    values = {"facts": {"model": "m"}, "methods": {"gradcam": "summary"}, "colormap": "viridis", "skipped": {}} | more
    return report_html(Report(pictures=pictures, **values))

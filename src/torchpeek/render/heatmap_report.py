"""What pages of heatmaps have in common: the caption of an overlay, the legend of its colours, how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchpeek.render.colormaps import COLORMAPS, DIVERGING
from torchpeek.render.report import Legend, Report, ReportFigure, ReportItem


def heatmap_figure(
    method: str,
    layer: str,
    score: float,
    lowest: float,
    highest: float,
    *,
    size: tuple[int, int],
    image: str,
    file: str = "",
    remark: str = "",
    alt: str = "",
) -> ReportFigure:
    """Return the overlay of one heatmap.

    Args:
        method: The name of the method.
        layer: The target layer.
        score: What is explained.
        lowest: The lowest of the raw, signed values.
        highest: The highest of them.
        size: Width and height of the overlay, in pixels.
        image: The overlay, a data URI.
        file: The overlay in full size, relative to the page.
        remark: What positive values alone hide.
        alt: What the overlay is of.
    """
    line = f"score {score:.3g}; values {lowest:.3g} to {highest:.3g}"
    return ReportFigure(method, image, size, layer, [line], remark, file, alt)


def heatmap_report(
    facts: Mapping[str, str],
    methods: Mapping[str, str],
    items: Sequence[ReportItem],
    colormap: str,
    skipped: Mapping[str, str],
    *,
    fade: bool = False,
    left_out: Mapping[str, str] | None = None,
) -> Report:
    """Return the page of `torchpeek cam`.

    Args:
        facts: What holds for every picture.
        methods: A line on each method.
        items: The pictures.
        colormap: The colormap of the overlays.
        skipped: File -> reason.
        fade: Whether the colours fade with the value.
        left_out: Explained pictures without a place on the page -> file.
    """
    count = len(items) + len(left_out or {})
    return Report(
        "Which part of the picture decided",
        f"{count} picture{'s' * (count != 1)}",
        "picture",
        facts,
        items,
        "file name, class or method",
        explanations=methods,
        reading=overlay_reading(colormap, fade=fade),
        legend=overlay_legend(colormap),
        skipped=skipped,
        left_out=left_out or {},
    )


def overlay_legend(colormap: str) -> Legend:
    """Return the colours of the overlays, with the meaning of their ends."""
    stops = ", ".join(f"#{bytes(colour).hex()}" for colour in COLORMAPS[colormap][::17])
    colours = f"linear-gradient(to right, {stops})"
    if colormap == DIVERGING:
        return Legend("against the class", colours, "for it; 0 in the middle")
    return Legend("0 or less", colours, "the map's highest value")


def overlay_reading(colormap: str, *, fade: bool) -> dict[str, str]:
    """Return how to read the overlays, in words."""
    if colormap == DIVERGING:
        scale = (
            "Each heatmap has its own scale: its ends are plus and minus the largest absolute value, which is given "
            "below it."
        )
    else:
        scale = (
            "Each heatmap has its own scale, from 0 to its highest value, which is given below it. Evidence against "
            'the class is not shown. "No positive value" and "mostly negative values" say that a map is best read with '
            "it: torchpeek cam --signed shows it."
        )
    few = (
        "Of a fine map in which less than 1 % of the positions are above half of that, the last colour stands for all "
        "values that only 1 % exceed."
    )
    if fade:
        mixed = (
            "The colour fades with the value: where it is near 0, the photograph stays as it is. A thin line shows the "
            "edge of what the model saw."
        )
    else:
        mixed = "Where there is no colour, the model saw nothing: its preprocessing cropped that away."
    return {
        "colours": f"{scale} {few} {mixed}",
        "reading": "Point at a heatmap to see the photograph below it. A click opens it in full size, if the files "
        "that were written with this page are beside it.",
    }

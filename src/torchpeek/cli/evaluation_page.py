"""The HTML page of `torchpeek evaluate`: averages over all pictures, and each picture with its curves and numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from torchpeek.cam import METHODS
from torchpeek.cli.page import THUMBNAIL, PageItems, outlined, overlay_figure, prediction_bars
from torchpeek.errors import Notice
from torchpeek.explanation.predictions import PicturePredictions
from torchpeek.heatmap import Heatmap
from torchpeek.html import fitted
from torchpeek.metrics import FEWEST, HEADER, METRICS, Measurement, Measurements
from torchpeek.metrics.verdicts import Verdicts
from torchpeek.picture import Picture
from torchpeek.render import overlay
from torchpeek.render.canvas import enlarged
from torchpeek.render.chart import Chart, ChartLine
from torchpeek.render.curves import share_label
from torchpeek.render.heatmap_report import overlay_legend, overlay_reading
from torchpeek.render.report import Report, ReportFigure, ReportItem, ReportRow, ReportTable, embedded

_LARGEST = 1280  # pixels of the longer side of a photograph, before it is embedded
_COLORMAP = "viridis"
_OF_PICTURE = ("method", "metric", "better", "value", "random", "centre")

_READING = {
    "baselines": "Random is the mean of ten random heatmaps, and centre is a Gaussian in the middle of the picture, "
    "which ignores it. Both are measured as the methods are. A method that is not better than random does not say what "
    "the model looks at; one that is not better than centre says no more than that objects are often in the middle.",
    "better": "Says whether a higher or a lower value is better. Compare values of one metric only.",
    "better than": "Says which baselines a method is better than, by more than chance has it: the 95 % interval of the "
    f"difference is above 0. Of fewer than {FEWEST} pictures, that cannot be told.",
    "curves": "Deletion removes the picture step by step, what the heatmap puts highest first: the faster the curve "
    "falls, the better. Insertion puts it back: the faster the curve rises, the better. The numbers beside the names "
    "are the areas under the curves. Baselines are grey and dashed.",
}


@dataclass
class EvaluationPage:
    """Collects the pictures of the page.

    Args:
        pictures: The number of pictures that will be added, from which the size of the images follows.
        methods: The names of the methods. Each has the same colour in all charts.
    """

    pictures: int
    methods: Sequence[str]
    _items: PageItems = field(default_factory=PageItems)

    def add(
        self,
        path: Path,
        picture: Picture,
        heatmaps: Mapping[str, Heatmap],
        predictions: PicturePredictions,
        measurements: Mapping[str, Measurements],
        score: str,
    ) -> None:
        """Add one picture.

        Args:
            path: Its path, as it is printed.
            picture: The picture.
            heatmaps: Method -> heatmap (1, K).
            predictions: What the model predicts, and what is explained: K.
            measurements: Method -> measurements (1, K).
            score: What is explained, for the axis of the charts.
        """
        explained = predictions.explained
        side = self._items.side(self.pictures, 1 + len(heatmaps) * len(explained))
        photo = enlarged(fitted(picture.image, _LARGEST))
        rows = []
        for k, prediction in enumerate(explained):
            figures = []
            for name, heatmap in heatmaps.items():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", Notice)  # what positive values hide is said below the overlay
                    image = overlay(picture, heatmap[0, k], colormap=_COLORMAP)
                if prediction.box is not None:
                    image = outlined(image, prediction.box, picture)
                alt = f"{name} of {prediction.title} on {picture.name}"
                uri = embedded(fitted(image, _LARGEST), side)
                remark = heatmap[0, k].sign_remark()
                figures.append(overlay_figure(heatmap[0, k], image.size, uri, alt, remark=remark))
            of_score = {
                name: Measurements(each.method, {metric: _of_score(each[metric], k) for metric in each})
                for name, each in measurements.items()
            }
            verdicts = Verdicts.of(of_score)
            table = ReportTable(f"the values of {prediction.title} on {picture.name}", _OF_PICTURE, _cells(verdicts))
            bars = prediction_bars(predictions.best, prediction)
            rows.append(
                ReportRow(
                    prediction.title, prediction.confidence, figures, bars, self._charts(verdicts, score), [table]
                )
            )
        self._items.add(
            ReportItem(
                picture.name,
                str(path),
                picture.notes,
                rows,
                embedded(photo, side),
                picture.image.size,
                embedded(photo, THUMBNAIL),
                predictions.best[0].words,
            )
        )

    def report(
        self,
        about: Mapping[str, Any],
        verdicts: Verdicts,
        score: str,
        files: Mapping[str, str],
        skipped: Mapping[str, str],
        not_reached: Sequence[str],
    ) -> Report:
        """The page of the pictures so far.

        Args:
            about: What all of it depends on, as in results.json.
            verdicts: The averages.
            score: What is explained, for the axis of the charts.
            files: The files beside the page -> what they hold.
            skipped: File -> reason.
            not_reached: The pictures to which an interrupted command had not come.
        """
        items, left_out = self._items.items, self._items.left_out
        count = len(items) + len(left_out)
        cells = verdicts.cells()
        facts = {name: str(value) for name, value in about.items() if name not in ("methods", "metrics")}
        return Report(
            "How far the heatmaps can be trusted",
            f"{count} picture{'s' * (count != 1)}",
            "picture",
            facts,
            items,
            "file name, class or method",
            explanations={
                **{name: _described(METHODS[name].summary, options) for name, options in about["methods"].items()},
                **{name: _described(METRICS[name].summary, each["options"]) for name, each in about["metrics"].items()},
            },
            reading=_READING | overlay_reading(_COLORMAP, fade=True),
            legend=overlay_legend(_COLORMAP),
            summary=_sentences(verdicts, count),
            figures=self._charts(verdicts, score if count == 1 else f"{score}, mean of {count} pictures"),
            tables=[ReportTable("all pictures, the best method first for each metric", HEADER, cells)] if cells else [],
            files=files,
            skipped=skipped,
            left_out=left_out,
            not_reached=not_reached,
        )

    def _charts(self, verdicts: Verdicts, score: str) -> list[ReportFigure]:
        """A chart for each metric that has curves, of their mean over the pictures."""
        with_curves = [
            metric
            for metric, methods in verdicts.by_metric.items()
            if any(each.curve is not None for each in methods.values())
        ]
        charts = []
        for metric, (methods, baselines) in verdicts.panels(with_curves).items():
            lines = [ChartLine(name, _mean(curves), self.methods.index(name)) for name, curves in methods.items()]
            lines += [
                ChartLine(name, _mean(curves), number, baseline=True)
                for number, (name, curves) in enumerate(baselines.items())
            ]
            better = "higher is better" if METRICS[metric].higher_is_better else "lower is better"
            chart = Chart(lines, share_label(metric), score)
            charts.append(ReportFigure(metric, lines=[f"{better}; {score}"], chart=chart))
        return charts


def _of_score(each: Measurement, k: int) -> Measurement:
    """The measurement of score k alone."""
    return replace(
        each,
        values=each.values[:, k : k + 1],
        baselines={name: values[:, k : k + 1] for name, values in each.baselines.items()},
        curve=None if each.curve is None else each.curve[:, k : k + 1],
        baseline_curves={name: curves[:, k : k + 1] for name, curves in each.baseline_curves.items()},
    )


def _mean(curves: Tensor) -> list[float]:
    """The mean of curves (N, steps + 1), without those that are not defined, as the plot draws them."""
    values: list[float] = curves[~curves.isnan().any(1)].mean(0).tolist()
    return values


def _cells(verdicts: Verdicts) -> list[tuple[str, ...]]:
    return [
        (
            method,
            metric,
            "higher" if each.higher_is_better else "lower",
            f"{float(each.values[0, 0]):.4g}",
            *(f"{float(each.baselines[name][0, 0]):.4g}" if name in each.baselines else "" for name in _OF_PICTURE[4:]),
        )
        for metric, methods in verdicts.by_metric.items()
        for method, each in methods.items()
    ]


def _sentences(verdicts: Verdicts, count: int) -> list[str]:
    if not count:
        return []
    if count < FEWEST:
        return [f"Of fewer than {FEWEST} pictures nothing can be said of significance; the numbers are of these alone."]
    return [*verdicts.sentences()]


def _described(summary: str, options: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"{summary} Options: {values}." if values else summary

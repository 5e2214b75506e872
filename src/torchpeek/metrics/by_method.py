"""What evaluate returns for several methods: a dict that prints and shows itself as one table."""

from __future__ import annotations

from contextlib import suppress

import torch

from torchpeek.errors import TorchpeekError
from torchpeek.html import html_table, notebook_html, side_by_side
from torchpeek.keywords import checked_class
from torchpeek.metrics.curve_images import curves_image
from torchpeek.metrics.intervals import of_samples
from torchpeek.metrics.measurement import HEADER, Measurements
from torchpeek.text_table import text_table


@checked_class
class MeasurementsByMethod(dict[str, Measurements]):
    """Method name -> Measurements. Printing it gives the rows of all methods, metric by metric.

    Example:
        >>> one = tp.Measurements("cam", {"iou": tp.Measurement("iou", torch.tensor([[0.25]]), True, {})})
        >>> print(tp.metrics.MeasurementsByMethod(cam=one, gradcam=one))
        method   metric  better  mean
        cam      iou     higher  0.25
        gradcam  iou     higher  0.25
    """

    def __repr__(self) -> str:
        return text_table(HEADER, self.rows())

    @notebook_html
    def _repr_html_(self) -> str:
        shown = html_table(HEADER, self.rows())
        with suppress(TorchpeekError):  # matplotlib is not installed
            shown += side_by_side([_curves_image(self, name) for name in self._metrics() if self._has_curve(name)])
        return shown

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of the table: for each metric one of each method, as text.

        Returns:
            Tuples with a cell for each entry of `torchpeek.metrics.HEADER`.

        Example:
            >>> one = tp.Measurements("cam", {"iou": tp.Measurement("iou", torch.tensor([[0.25]]), True, {})})
            >>> [cells[:2] for cells in tp.metrics.MeasurementsByMethod(cam=one, gradcam=one).rows()]
            [('cam', 'iou'), ('gradcam', 'iou')]
        """
        by_metric = {name: dict(zip(each, each.rows(), strict=True)) for name, each in self.items()}
        return [
            (name, *rows[metric][1:])  # the key, which tells two maps of one method apart
            for metric in self._metrics()
            for name, rows in by_metric.items()
            if metric in rows
        ]

    def _metrics(self) -> list[str]:
        return list(dict.fromkeys(metric for each in self.values() for metric in each))

    def _has_curve(self, metric: str) -> bool:
        return all(metric in each and each[metric].curve is not None for each in self.values())


def _curves_image(measured: MeasurementsByMethod, metric: str) -> str:
    """Draw the curves of all methods by one metric, and the baselines if all have the same, as maps of one grid do."""
    curves = {name: of_samples(curve) for name, each in measured.items() if (curve := each[metric].curve) is not None}
    first = next(iter(measured.values()))[metric]
    baselines = {
        name: of_samples(curve)
        for name, curve in first.baseline_curves.items()
        if all(torch.equal(curve, each[metric].baseline_curves.get(name, curve[:0])) for each in measured.values())
    }
    return curves_image(curves, baselines, metric=metric, higher_is_better=first.higher_is_better, seed=first.seed)

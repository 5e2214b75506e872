"""Measurement: the values of one metric for one method's heatmaps, with those of the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchpeek.errors import InputError, MetricNotFound, TorchpeekError, closest
from torchpeek.html import html_table, notebook_html, side_by_side
from torchpeek.keywords import checked_class, checked_keywords
from torchpeek.metrics.curve_images import curves_image, metric_title
from torchpeek.metrics.intervals import Interval, bootstrap, mean_of, of_samples
from torchpeek.render.axes_plots import curve_plot, interval_plot
from torchpeek.tensor_formats import dense
from torchpeek.text_table import text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checked_class
@dataclass(frozen=True, eq=False, repr=False)
class Measurement:
    """The values of one metric for the heatmaps of N samples and K scores.

    Args:
        metric: Name of the metric, a key of `METRICS`.
        values: (N, K). NaN where the metric is not defined, for instance where the region is empty.
        higher_is_better: Whether a higher value is better.
        baselines: The values (N, K) of the baselines: "random", the mean of ten random heatmaps, and "centre", a
            centred Gaussian.
        curve: (N, K, steps + 1), for metrics that have a curve; else None.
        baseline_curves: The curves (N, K, steps + 1) of the baselines, by name.
        options: The metric's options, name -> value. A tensor or a function is described by a text.
        seed: Seed of the evaluation, also used for the bootstrap.

    Example:
        >>> baselines = {"random": torch.full((2, 1), 0.2), "centre": torch.full((2, 1), 0.4)}
        >>> m = tp.Measurement("iou", torch.tensor([[0.6], [0.8]]), True, baselines)
        >>> round(m.interval().mean, 2)
        0.7
    """

    metric: str
    values: Tensor
    higher_is_better: bool
    baselines: Mapping[str, Tensor]
    curve: Tensor | None = None
    baseline_curves: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    _intervals: dict[object, Interval] = field(default_factory=dict, init=False, repr=False)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the mean over the samples with its bootstrap interval.

        The scores of one sample are averaged first, because they are not independent of each other.

        Args:
            confidence: The confidence level, between 0 and 1.

        Returns:
            The Interval.

        Raises:
            InputError: When `confidence` is not between 0 and 1.

        Example:
            >>> m = tp.Measurement("iou", torch.tensor([[0.25], [0.75]]), True, {})
            >>> m.interval().mean, m.interval().samples
            (0.5, 2)
        """
        return self._once((confidence,), lambda: bootstrap(of_samples(self.values), confidence, self.seed))

    def class_average(self, labels: Tensor) -> float:
        """Return the mean over the classes of each class's mean, as the pointing game is reported.

        Args:
            labels: (N, K), the class index of each value.

        Returns:
            The mean.

        Raises:
            InputError: When `labels` has another shape than the values.

        Example:
            >>> m = tp.Measurement("pointing-game", torch.tensor([[1.0], [1.0], [0.0]]), True, {})
            >>> m.class_average(torch.tensor([[7], [7], [9]]))  # classes 7 and 9 count alike
            0.5
        """
        labels = dense(labels, "labels")
        values, classes = self.values.double().flatten(), labels.flatten().to(self.values.device)
        if classes.shape != values.shape:
            raise InputError(
                f"labels has shape {tuple(labels.shape)}; allowed: {tuple(self.values.shape)}, one label for each value"
            )
        return mean_of(torch.stack([values[classes == each].nanmean() for each in torch.unique(classes)]))

    def ahead_of(self, baseline: str, confidence: float = 0.95) -> Interval:
        """Return by how much the method is better than a baseline on the same samples. Below zero it is worse.

        Args:
            baseline: "random" or "centre".
            confidence: The confidence level, between 0 and 1.

        Returns:
            The Interval of the mean difference.

        Raises:
            InputError: When there is no such baseline, or `confidence` is not between 0 and 1.

        Example:
            >>> m = tp.Measurement("iou", torch.tensor([[0.5], [0.75]]), True, {"centre": torch.zeros(2, 1)})
            >>> m.ahead_of("centre").mean
            0.625
        """
        sign = 1 if self.higher_is_better else -1
        difference = sign * (of_samples(self.values) - of_samples(self._baseline(baseline)))
        return self._once((baseline, confidence), lambda: bootstrap(difference, confidence, self.seed))

    def beats(self, baseline: str, confidence: float = 0.95) -> bool:
        """Return whether the method is significantly better than a baseline; False with fewer than six samples.

        Args:
            baseline: "random" or "centre".
            confidence: The confidence level, between 0 and 1.

        Returns:
            True if the interval of the mean difference lies above zero.

        Raises:
            InputError: When there is no such baseline, or `confidence` is not between 0 and 1.

        Example:
            >>> m = tp.Measurement("iou", torch.linspace(0.5, 0.6, 8)[:, None], True, {"centre": torch.zeros(8, 1)})
            >>> m.beats("centre")
            True
        """
        return self.verdict(baseline, confidence) is True

    def verdict(self, baseline: str, confidence: float = 0.95) -> bool | None:
        """Return whether the method is significantly better than a baseline; None with fewer than six samples.

        With so few samples, two lucky ones are enough for an interval above zero.

        Args:
            baseline: "random" or "centre".
            confidence: The confidence level, between 0 and 1.

        Returns:
            True if the interval of the mean difference lies above zero, False if not, None if that cannot be said.

        Raises:
            InputError: When there is no such baseline, or `confidence` is not between 0 and 1.

        Example:
            >>> m = tp.Measurement("iou", torch.tensor([[0.5], [0.75]]), True, {"centre": torch.zeros(2, 1)})
            >>> print(m.verdict("centre"))
            None
        """
        interval = self.ahead_of(baseline, confidence)
        return interval.low > 0 if interval.samples >= FEWEST else None

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the mean curve with its confidence interval and the baselines' curves. Needs the extra `plot`.

        Of a metric without a curve, the mean over the samples is drawn with its interval, beside those of the
        baselines.

        Args:
            ax: matplotlib's Axes to draw on. None makes a new figure with pyplot.

        Returns:
            The matplotlib Axes.

        Raises:
            TorchpeekError: When matplotlib is not installed.

        Example:
            >>> m = tp.Measurement("iou", torch.tensor([[0.5], [0.75]]), True, {"centre": torch.zeros(2, 1)})
            >>> [label.get_text() for label in m.plot().get_xticklabels()]
            ['heatmap', 'centre']
        """
        title = metric_title(self.metric, higher_is_better=self.higher_is_better)
        if self.curve is None:
            intervals = {"heatmap": self.interval(), **self._baseline_intervals()}
            means = {name: each[:3] for name, each in intervals.items()}
            return interval_plot(ax, means, title=title, label=f"{self.metric}, mean and 95 % interval")
        curves = {"heatmap": of_samples(self.curve)}
        return curve_plot(
            ax, curves, _mean_curves(self.baseline_curves), title=title, metric=self.metric, seed=self.seed
        )

    def _baseline_intervals(self) -> dict[str, Interval]:
        return {name: bootstrap(of_samples(values), seed=self.seed) for name, values in self.baselines.items()}

    def __repr__(self) -> str:
        better = f"{'higher' if self.higher_is_better else 'lower'} is better"
        baselines = "".join(f", {name} {mean_of(of_samples(values)):.4g}" for name, values in self.baselines.items())
        curve = "" if self.curve is None else f", curve {tuple(self.curve.shape)}"
        shape = tuple(self.values.shape)
        return f"Measurement({self.metric}, {better}: {self.interval()}{baselines}; values {shape}{curve})"

    @notebook_html
    def _repr_html_(self) -> str:
        return Measurements("", {self.metric: self})._repr_html_()

    def _once(self, key: object, make: Callable[[], Interval]) -> Interval:
        if key not in self._intervals:
            self._intervals[key] = make()
        return self._intervals[key]

    def _baseline(self, name: str) -> Tensor:
        if name not in self.baselines:
            raise InputError(f"no baseline {name!r}; allowed: {', '.join(map(repr, self.baselines))}")
        return self.baselines[name]


@checked_class
@dataclass(frozen=True, eq=False)
class Measurements(Mapping[str, Measurement]):
    """The measurements of several metrics for the same heatmaps: a mapping by metric name, printed as a table.

    Args:
        method: Name of the method.
        by_metric: Metric name -> Measurement.

    Example:
        >>> iou = tp.Measurement("iou", torch.tensor([[0.25], [0.75]]), True, {})
        >>> results = tp.Measurements("gradcam", {"iou": iou})
        >>> list(results), results["iou"].values.shape
        (['iou'], torch.Size([2, 1]))
    """

    method: str
    by_metric: Mapping[str, Measurement]

    def __getitem__(self, name: str) -> Measurement:
        if name not in self.by_metric:
            raise MetricNotFound(
                f"{name!r} was not measured{closest(str(name), self.by_metric)}; there are: "
                f"{', '.join(map(repr, self.by_metric))}"
            )
        return self.by_metric[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_metric)

    def __len__(self) -> int:
        return len(self.by_metric)

    def __repr__(self) -> str:
        return text_table(HEADER, self.rows())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the mean curve of each metric that has one. Needs the extra `plot`.

        Args:
            ax: matplotlib's Axes to draw on. None makes a new figure with pyplot.

        Returns:
            The matplotlib Axes.

        Raises:
            InputError: When no metric has a curve.
            TorchpeekError: When matplotlib is not installed.

        Example:
            >>> curve = torch.linspace(1, 0, 5).expand(2, 1, 5)
            >>> deletion = tp.Measurement("deletion", torch.full((2, 1), 0.5), False, {}, curve)
            >>> tp.Measurements("gradcam", {"deletion": deletion}).plot().get_title()
            'gradcam'
        """
        curves = {name: of_samples(each.curve) for name, each in self.items() if each.curve is not None}
        if not curves:
            first = next(iter(self), "iou")
            raise InputError(f"no metric here has a curve. Next: plot one of them, such as m[{first!r}].plot()")
        baselines = {
            f"{name}, {baseline}": of_samples(curve)
            for name in curves
            for baseline, curve in self[name].baseline_curves.items()
        }
        first = next(iter(curves))
        metric = first if len(curves) == 1 else ""
        return curve_plot(ax, curves, baselines, title=self.method, metric=metric, seed=self[first].seed)

    @notebook_html
    def _repr_html_(self) -> str:
        shown = html_table(HEADER, self.rows())
        with suppress(TorchpeekError):  # matplotlib is not installed
            shown += side_by_side([self._curve_image(each) for each in self.values() if each.curve is not None])
        return shown

    def _curve_image(self, each: Measurement) -> str:
        assert each.curve is not None
        curves = {self.method or "heatmap": of_samples(each.curve)}
        return curves_image(
            curves,
            _mean_curves(each.baseline_curves),
            metric=each.metric,
            higher_is_better=each.higher_is_better,
            seed=each.seed,
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of the table, one for each metric, as text.

        Returns:
            Tuples with a cell for each entry of `torchpeek.metrics.HEADER`.

        Example:
            >>> iou = tp.Measurement("iou", torch.tensor([[0.25]]), True, {"random": torch.zeros(1, 1)})
            >>> tp.Measurements("gradcam", {"iou": iou}).rows()
            [('gradcam', 'iou', 'higher', '0.25', '0', '', 'too few to tell')]
        """
        return [row(self.method, each) for each in self.values()]


FEWEST = 6
"""The smallest number of samples for which a verdict on significance is given."""
HEADER = ("method", "metric", "better", "mean", "random", "centre", "better than")
"""The header of the table of measurements."""


@checked_keywords
def row(method: str, each: Measurement) -> tuple[str, ...]:
    """Return one row of the table: the mean with its interval, the baselines' means, and the verdict.

    Args:
        method: Name of the method.
        each: The measurement.

    Returns:
        A cell for each entry of `HEADER`.

    Example:
        >>> iou = tp.Measurement("iou", torch.tensor([[0.25]]), True, {"random": torch.zeros(1, 1)})
        >>> tp.metrics.row("gradcam", iou)
        ('gradcam', 'iou', 'higher', '0.25', '0', '', 'too few to tell')
    """
    interval = each.interval()
    verdicts = {name: each.verdict(name) for name in each.baselines}
    beaten = [name for name, better in verdicts.items() if better]
    verdict = "both" if len(beaten) == 2 else " and ".join(beaten) or ("neither" if verdicts else "")
    if None in verdicts.values():
        verdict = "too few to tell"
    means = [
        f"{mean_of(of_samples(each.baselines[name])):.4g}" if name in each.baselines else "" for name in HEADER[4:6]
    ]
    return method, each.metric, "higher" if each.higher_is_better else "lower", str(interval), *means, verdict


@checked_keywords
def joined(parts: Sequence[Measurements]) -> Measurements:
    """Join the measurements of several batches into those of one.

    Args:
        parts: The measurements of each batch.

    Returns:
        The measurements of all samples, in the order of the batches.

    Raises:
        InputError: When `parts` is empty, or the parts differ in method, metrics, options or number of scores.

    Example:
        >>> iou = tp.Measurement("iou", torch.tensor([[0.25]]), True, {})
        >>> batch = tp.Measurements("gradcam", {"iou": iou})
        >>> tp.metrics.joined([batch, batch])["iou"].values.shape
        torch.Size([2, 1])
    """
    if not parts:
        raise InputError("parts is empty; give the Measurements of at least one batch")
    first = parts[0]
    if any(set(each) != set(first) or each.method != first.method for each in parts):
        raise InputError("parts differ; allowed: measurements of the same method by the same metrics")
    return Measurements(first.method, {name: _joined([each[name] for each in parts]) for name in first})


def _joined(parts: Sequence[Measurement]) -> Measurement:
    first = parts[0]
    if any(each.options != first.options or each.values.shape[1] != first.values.shape[1] for each in parts):
        raise InputError(
            f"measurements by {first.metric!r} with different options or numbers of scores cannot be joined; "
            "measure all batches alike"
        )
    curves = [each.curve for each in parts if each.curve is not None]
    return replace(
        first,
        values=torch.cat([each.values for each in parts]),
        baselines={name: torch.cat([each.baselines[name] for each in parts]) for name in first.baselines},
        curve=torch.cat(curves) if curves else None,
        baseline_curves={
            name: torch.cat([each.baseline_curves[name] for each in parts]) for name in first.baseline_curves
        },
    )


def _mean_curves(curves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: of_samples(curve) for name, curve in curves.items()}

"""What a metric said of one method's heatmaps, beside what it says of the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchpeek.bootstrap import bootstrap_interval
from torchpeek.errors import InputError, MetricNotFound, closest


class Interval(NamedTuple):
    """A mean over the samples, and between which numbers it lies with the confidence that was asked for."""

    mean: float
    low: float  # NaN where there are too few samples to tell, or one is infinite
    high: float
    samples: int  # that have a value

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]" if self.low == self.low else f"{self.mean:.4g}"


@dataclass(frozen=True, eq=False)
class Measurement:
    """One metric of the heatmaps of N samples and K scores."""

    metric: str
    values: Tensor  # (N, K); NaN where the metric is not defined, as without a region
    higher_is_better: bool
    baselines: Mapping[str, Tensor]  # "random", the mean of ten, and "centre": (N, K) each
    curve: Tensor | None = None  # (N, K, steps + 1)
    baseline_curves: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    _intervals: dict[object, Interval] = field(default_factory=dict, init=False, repr=False)

    def interval(self, confidence: float = 0.95) -> Interval:
        """The mean, and its bootstrap interval over the samples."""
        return self._once((confidence,), lambda: bootstrap(of_samples(self.values), confidence, self.seed))

    def class_average(self, labels: Tensor) -> float:
        """The mean over the classes of each class's mean, as the pointing game is reported; `labels` are (N, K)."""
        values, classes = self.values.double().flatten(), labels.flatten().to(self.values.device)
        if classes.shape != values.shape:
            raise InputError(f"labels are {tuple(labels.shape)} for values {tuple(self.values.shape)}; one for each")
        return _mean(torch.stack([values[classes == each].nanmean() for each in torch.unique(classes)]))

    def ahead_of(self, baseline: str, confidence: float = 0.95) -> Interval:
        """By how much it is better than a baseline on the same samples; below zero it is worse."""
        sign = 1 if self.higher_is_better else -1
        difference = sign * (of_samples(self.values) - of_samples(self._baseline(baseline)))
        return self._once((baseline, confidence), lambda: bootstrap(difference, confidence, self.seed))

    def beats(self, baseline: str, confidence: float = 0.95) -> bool:
        """Whether it is better than a baseline by more than chance has it; False also where that cannot be told."""
        return self.verdict(baseline, confidence) is True

    def verdict(self, baseline: str, confidence: float = 0.95) -> bool | None:
        """Whether it is better than a baseline by more than chance has it; None of fewer than six samples.

        Of a few a lucky pair would do.
        """
        interval = self.ahead_of(baseline, confidence)
        return interval.low > 0 if interval.samples >= FEWEST else None

    def _once(self, key: object, make: Callable[[], Interval]) -> Interval:
        if key not in self._intervals:
            self._intervals[key] = make()
        return self._intervals[key]

    def _baseline(self, name: str) -> Tensor:
        if name not in self.baselines:
            raise InputError(f"no baseline {name!r}; allowed: {', '.join(map(repr, self.baselines))}")
        return self.baselines[name]


@dataclass(frozen=True, eq=False)
class Measurements(Mapping[str, Measurement]):
    """What several metrics said of the same heatmaps, by name; printed, a table."""

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
        return "\n".join("  ".join(cells).rstrip() for cells in _aligned([HEADER, *self.rows()]))

    def rows(self) -> list[tuple[str, ...]]:
        """For each metric a line of the table."""
        return [row(self.method, each) for each in self.values()]


FEWEST = 6  # samples, of which it is said whether a method is better than a baseline
HEADER = ("method", "metric", "better", "mean", "random", "centre", "better than")


def row(method: str, each: Measurement) -> tuple[str, ...]:
    """One line of a table: the mean with its interval, both baselines' means, and which of them it is better than."""
    interval = each.interval()
    verdicts = {name: each.verdict(name) for name in each.baselines}
    beaten = [name for name, better in verdicts.items() if better]
    verdict = "both" if len(beaten) == 2 else " and ".join(beaten) or "neither"
    if None in verdicts.values():
        verdict = "too few to tell"
    means = [f"{_mean(of_samples(values)):.4g}" for values in each.baselines.values()]
    return method, each.metric, "higher" if each.higher_is_better else "lower", str(interval), *means, verdict


def joined(parts: Sequence[Measurements]) -> Measurements:
    """Those of several batches as of one. Raises InputError where they are not of the same metrics and options."""
    if not parts:
        raise InputError("nothing to join; give Measurements of at least one batch")
    first = parts[0]
    if any(set(each) != set(first) or each.method != first.method for each in parts):
        raise InputError("only measurements of one method, by the same metrics, can be joined")
    return Measurements(first.method, {name: _joined([each[name] for each in parts]) for name in first})


def _joined(parts: Sequence[Measurement]) -> Measurement:
    first = parts[0]
    if any(each.options != first.options or each.values.shape[1] != first.values.shape[1] for each in parts):
        raise InputError(
            f"measurements by {first.metric!r} with different options or numbers of scores cannot be joined"
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


def bootstrap(values: Tensor, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Of values (n,), of which NaN are left out: the mean, and its interval; of one value there is none."""
    known = values[~values.isnan()].double().cpu()
    low, high = bootstrap_interval(known, confidence, seed)
    return Interval(_mean(known), float(low), float(high), len(known))


def of_samples(values: Tensor) -> Tensor:
    """(N, K, ...) -> (N, ...): the mean of each sample's scores, as they are not independent of each other."""
    return values.detach().double().cpu().nanmean(1)


def _mean(values: Tensor) -> float:
    known = values[~values.isnan()]
    return float(known.double().mean()) if len(known) else float("nan")


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(width) for cell, width in zip(cells, widths, strict=True)] for cells in rows]

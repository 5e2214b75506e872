"""What a metric said of one method's heatmaps, beside what it says of the baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchpeek.errors import InputError, MetricNotFound, closest


class Interval(NamedTuple):
    """A mean over the samples, and between which numbers it lies with the confidence that was asked for."""

    mean: float
    low: float  # NaN where there are too few samples to tell
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

    def interval(self, confidence: float = 0.95) -> Interval:
        """The mean, and its bootstrap interval over the samples (percentiles of 2,000 draws)."""
        return bootstrap(_of_samples(self.values), confidence, self.seed)

    def class_average(self, labels: Tensor) -> float:
        """The mean over the classes of each class's mean, as the pointing game is reported; `labels` are (N, K)."""
        values, classes = self.values.double().flatten(), labels.flatten().to(self.values.device)
        if classes.shape != values.shape:
            raise InputError(f"labels are {tuple(labels.shape)} for values {tuple(self.values.shape)}; one for each")
        return _mean(torch.stack([values[classes == each].nanmean() for each in torch.unique(classes)]))

    def ahead_of(self, baseline: str, confidence: float = 0.95) -> Interval:
        """By how much it is better than a baseline on the same samples; below zero it is worse."""
        difference = _of_samples(self.values) - _of_samples(self._baseline(baseline))
        return bootstrap(difference if self.higher_is_better else -difference, confidence, self.seed)

    def beats(self, baseline: str, confidence: float = 0.95) -> bool:
        """Whether it is better than a baseline by more than chance has it; never of fewer than six samples.

        Of a few the bootstrap's intervals are too narrow, and a lucky pair would do.
        """
        found = self.ahead_of(baseline, confidence)
        return found.samples >= FEWEST and found.low > 0

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
    found = each.interval()
    beaten = [name for name in each.baselines if found.samples >= FEWEST and each.beats(name)]
    said = "both" if len(beaten) == 2 else " and ".join(beaten) or "neither"
    if found.samples < FEWEST:
        said = "too few to tell"
    means = [f"{_mean(_of_samples(values)):.4g}" for values in each.baselines.values()]
    return method, each.metric, "higher" if each.higher_is_better else "lower", str(found), *means, said


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


def bootstrap(values: Tensor, confidence: float = 0.95, seed: int = 0, draws: int = 2000) -> Interval:
    """Of values (n,), of which NaN are left out: the mean, and percentiles of the means of samples drawn from them.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3. Of one value no interval can be had.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence!r}; allowed: a number between 0 and 1, such as 0.95")
    known = values[~values.isnan()].double().cpu()
    if len(known) < 2:
        return Interval(_mean(known), float("nan"), float("nan"), len(known))
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, 2**22 // len(known))
    counts = [min(at_once, draws - start) for start in range(0, draws, at_once)]
    means = torch.cat([known[torch.randint(len(known), (n, len(known)), generator=generator)].mean(1) for n in counts])
    edges = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = means.quantile(edges).tolist()
    return Interval(_mean(known), low, high, len(known))


def _of_samples(values: Tensor) -> Tensor:
    """(N, K) -> (N,): the mean of each sample's scores, as they are not independent of each other."""
    return values.double().nanmean(1)


def _mean(values: Tensor) -> float:
    known = values[~values.isnan()]
    return float(known.double().mean()) if len(known) else float("nan")


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(width) for cell, width in zip(cells, widths, strict=True)] for cells in rows]

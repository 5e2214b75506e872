"""Verdicts over all pictures: which method is best, and which are not better than a baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchpeek.cached import cached_property
from torchpeek.metrics.intervals import Interval, of_samples
from torchpeek.metrics.measurement import FEWEST, Measurement, Measurements, row

_BASELINE_PHRASES = {"random": "a random heatmap", "centre": "a centred Gaussian"}


@dataclass(frozen=True)
class Verdicts:
    """The measurements of several methods over all pictures: metric -> method -> Measurement, the best method first."""

    by_metric: Mapping[str, Mapping[str, Measurement]]

    @classmethod
    def of(cls, measurements: Mapping[str, Measurements]) -> Verdicts:
        """Make the verdicts from the measurements of each method."""
        metrics = [*next(iter(measurements.values()))] if measurements else []
        return cls(
            {name: _best_first({method: each[name] for method, each in measurements.items()}) for name in metrics}
        )

    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows of a table whose header is `torchpeek.metrics.HEADER`."""
        return [row(method, each) for methods in self.by_metric.values() for method, each in methods.items()]

    def sentences(self) -> Iterable[str]:
        """Yield a sentence for each metric: which methods are not significantly better than a baseline.

        If a metric is not defined for every picture, the sentence says for how many it is.
        """
        for metric, methods in self.by_metric.items():
            rows = [each for each in self.summary if each["metric"] == metric]
            decided = [each for each in rows if each["better_than"] is not None]
            worse = {
                words: [each["method"] for each in decided if baseline not in each["better_than"]]
                for baseline, words in _BASELINE_PHRASES.items()
            }
            findings = [f"not better than {words}: {', '.join(names)}" for words, names in worse.items() if names]
            if decided and not findings:
                subject = "each method is" if len(decided) > 1 else f"{decided[0]['method']} is"
                findings.append(f"{subject} better than {' and than '.join(_BASELINE_PHRASES.values())}")
            if len(decided) < len(rows):
                few = ", ".join(each["method"] for each in rows if each not in decided)
                findings.append(f"fewer than {FEWEST} pictures, too few to tell significance: {few}")
            total = max(len(each.values) for each in methods.values())
            defined = sorted({each["pictures"] for each in rows})
            of = f", defined for {' to '.join(map(str, defined))} of {total} pictures" if defined != [total] else ""
            yield f"{metric}{of}: {'; '.join(findings)}"

    @cached_property
    def summary(self) -> list[dict[str, Any]]:
        """The rows of the table with all their numbers, for results.json."""
        return [_summary(method, each) for methods in self.by_metric.values() for method, each in methods.items()]

    def panels(self, metrics: Sequence[str]) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Return, for each measured metric of these, the curves (N, steps + 1) of the methods and of the baselines."""
        return {
            metric: (
                {name: of_samples(each.curve) for name, each in methods.items() if each.curve is not None},
                _baseline_curves(methods),
            )
            for metric, methods in self.by_metric.items()
            if metric in metrics
        }


def _best_first(methods: Mapping[str, Measurement]) -> dict[str, Measurement]:
    def place(method: str) -> tuple[bool, float]:
        mean = _mean(methods[method].values)
        return math.isnan(mean), -mean if methods[method].higher_is_better else mean

    return {method: methods[method] for method in sorted(methods, key=place)}


def _summary(method: str, each: Measurement) -> dict[str, Any]:
    ahead = {name: each.ahead_of(name) for name in each.baselines}
    verdicts = {name: each.verdict(name) for name in each.baselines}  # None for too few pictures
    mean_curves = {"curve": each.curve} if each.curve is not None else {}
    mean_curves |= {f"{name}_curve": curves for name, curves in each.baseline_curves.items()}
    return {
        "metric": each.metric,
        "method": method,
        "higher_is_better": each.higher_is_better,
        **_facts(each.interval()),
        **{name: _mean(values) for name, values in each.baselines.items()},
        "ahead_of": {name: _facts(by) for name, by in ahead.items()},
        # None if there are too few pictures to tell.
        "better_than": None if None in verdicts.values() else [name for name, better in verdicts.items() if better],
        **{name: of_samples(curves).nanmean(0).tolist() for name, curves in mean_curves.items()},
    }


def _facts(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "pictures": interval.samples}


def _mean(values: Tensor) -> float:
    return float(of_samples(values).nanmean())


def _baseline_curves(methods: Mapping[str, Measurement]) -> dict[str, Tensor]:
    """Return the baselines' curves, each once: methods on the same grid share them."""
    curves_by_name: dict[str, Tensor] = {}
    for name in _BASELINE_PHRASES:
        grouped: list[tuple[Tensor, list[str]]] = []
        for method, each in methods.items():
            curves = of_samples(each.baseline_curves[name])
            same = next((those for other, those in grouped if torch.equal(other, curves)), None)
            if same is None:
                grouped.append((curves, [method]))
            else:
                same.append(method)
        for curves, those in grouped:
            curves_by_name[name if len(grouped) == 1 else f"{name} (grid of {those[0]})"] = curves
    return curves_by_name

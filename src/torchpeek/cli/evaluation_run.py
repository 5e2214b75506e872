"""What `torchpeek evaluate` computes: pictures explained and measured one by one, and the tables of all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from torchpeek.cli.evaluation_page import EvaluationPage
from torchpeek.cli.explainer import Explainer, layer_description, report_facts
from torchpeek.cli.loading import about
from torchpeek.cli.regions import Regions
from torchpeek.cli.skipped import REQUEST, Skipped
from torchpeek.engine import Trace
from torchpeek.engine.targets import ClassScores
from torchpeek.errors import InputError, MetricNotApplicable, notify
from torchpeek.evaluation import evaluate
from torchpeek.explanation.predictions import Prediction, picture_predictions
from torchpeek.metrics import METRICS, Measurement, Measurements, check_applies, joined
from torchpeek.models.loaded import TAKEN_AS_WHOLE


class PictureResult(NamedTuple):
    """The measurements of one picture."""

    file: Path
    conversions: Sequence[str]  # how the picture was converted to RGB
    explained: Sequence[Prediction]  # K
    scores: Sequence[float]  # K
    of_classes: bool  # whether the scores are of classes, and metrics read their probabilities
    measurements: Mapping[str, Measurements]  # by method


COLUMNS: dict[str, type] = {
    "picture": str,
    "method": str,
    "metric": str,
    "class": int,
    "class_name": str,
    "score": float,  # the score that is explained, of the unchanged picture
    "value": float,
    "random": float,
    "centre": float,
    "higher_is_better": bool,
    "steps": int,
    "options": str,  # JSON
    "seed": int,
    "model": str,
    "weights": str,
    "curve": list,
    "random_curve": list,
    "centre_curve": list,
}
"""The columns of results.parquet."""


@dataclass
class EvaluationRun:
    """Explains and measures pictures, and collects the results."""

    explainer: Explainer
    metrics: Mapping[str, Mapping[str, Any]]  # name -> options
    regions: Regions
    named: frozenset[str] = frozenset()  # the metrics that --metric names
    page: EvaluationPage | None = None
    """Where the pictures are shown, if a page is written."""
    results: list[PictureResult] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)
    _facts: dict[str, str] = field(default_factory=dict)
    _options: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # method -> all of its options
    _layers: dict[str, None] = field(default_factory=dict)  # in the order in which they were used

    def add(self, file: Path) -> None:
        """Explain and measure one picture. A picture that cannot be read, explained or measured is skipped.

        An error of the request is raised, unless a picture was measured before.
        """
        loaded = self.explainer.loaded
        try:
            picture = self.explainer.read(file)
            if self.regions.source and TAKEN_AS_WHOLE in picture.notes:  # the region may lie elsewhere in the input
                notify(TAKEN_AS_WHOLE)
        except Exception as error:
            self.skipped.add(file, error, unless=() if self.results else (InputError,))
            return
        try:
            region = self.regions.keywords(file, picture)
            trace, heatmaps = self.explainer.explain(picture.tensor)
            if not self.results:
                self._leave_out(trace)
            measurements = evaluate(loaded, picture, heatmaps, metrics=self.metrics, seed=self.seed, **region)
        except Exception as error:
            self.skipped.add(file, error, unless=() if self.results else REQUEST)
            return
        for name, heatmap in heatmaps.items():
            self._facts = self._facts or report_facts(heatmap.provenance, self.explainer.max_size)
            self._options[name] = heatmap.provenance.options
            self._layers[layer_description(heatmap.provenance)] = None  # another input size may have another layer
        predictions = picture_predictions(trace, 0, picture, self.explainer.labels)
        explained = predictions.explained
        of_classes = isinstance(trace.question, ClassScores)
        scores = numbers(trace.scores[0])
        self.results.append(PictureResult(file, picture.notes, explained, scores, of_classes, measurements))
        if self.page is not None:
            self.page.add(file, picture, heatmaps, predictions, measurements, self.score)

    def _leave_out(self, trace: Trace) -> None:
        """Drop the metrics that do not apply to this target, with a notice, unless --metric names them.

        Raises MetricNotApplicable where none applies.
        """
        refused: dict[str, MetricNotApplicable] = {}
        for name in self.metrics:
            try:
                check_applies(METRICS[name], trace)
            except MetricNotApplicable as error:
                refused[name] = error
        if len(refused) == len(self.metrics):
            raise next(iter(refused.values()))
        for name, reason in refused.items():
            if name not in self.named:
                notify(f"left out: {str(reason).partition('. Next')[0]}")
        self.metrics = {name: each for name, each in self.metrics.items() if name not in refused or name in self.named}

    def check(self) -> None:
        """Raise an error where pictures could be read, and none could be measured."""
        if not self.results:
            self.skipped.check()

    @property
    def seed(self) -> int:
        """The seed of everything that is drawn at random."""
        return self.explainer.options.seed

    @property
    def score(self) -> str:
        """What p of the metrics is: the probability of a class, or the score that is explained."""
        return "probability" if all(each.of_classes for each in self.results) else self._facts["score"]

    @property
    def about(self) -> dict[str, Any]:
        """Everything that the numbers depend on."""
        layers = {"layer": "; ".join(self._layers)} if self._layers else {}
        return {
            **(self._facts or about(self.explainer.loaded)),
            **layers,
            "seed": self.seed,
            "methods": {
                name: dict(self._options.get(name, options)) for name, options in self.explainer.methods.items()
            },
            "metrics": {
                name: {
                    "higher_is_better": METRICS[name].higher_is_better,
                    "options": {**METRICS[name].options, **options},
                }
                for name, options in self.metrics.items()
            },
            **({"regions": self.regions.source} if self.regions.source else {}),
        }

    def joined(self) -> dict[str, Measurements]:
        """The measurements of all pictures, for each method; empty where there are none."""
        parts = {name: [each.measurements[name] for each in self.results] for name in self.explainer.methods}
        return {name: joined(each) for name, each in parts.items() if each}

    def pictures(self) -> list[dict[str, Any]]:
        """The entries of results.json: what is explained in each picture, and its values by metric and method."""
        return [
            {
                "picture": str(each.file),
                "notes": list(each.conversions),
                "asked": [
                    {**prediction.as_explained(), "score": score}
                    for prediction, score in zip(each.explained, each.scores, strict=True)
                ],
                "values": {
                    metric: {
                        method: {"values": numbers(measured[metric].values[0])} | _baselines(measured[metric], 0)
                        for method, measured in each.measurements.items()
                    }
                    for metric in self.metrics
                },
            }
            for each in self.results
        ]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of results.parquet: one for each picture, metric, method and score."""
        shared = {key: self.about[key] for key in ("model", "weights", "seed")}
        for each in self.results:
            for metric, (method, measured) in product(self.metrics, each.measurements.items()):
                for k, (prediction, score) in enumerate(zip(each.explained, each.scores, strict=True)):
                    yield {
                        **shared,
                        "picture": str(each.file),
                        "method": method,
                        "metric": metric,
                        "class": prediction.label,
                        "class_name": prediction.title,
                        "score": score,
                        **_row(measured[metric], k),
                    }


def numbers(values: Tensor) -> Any:
    """The tensor as a list; as nested lists if it has several axes."""
    return values.detach().double().cpu().tolist()


def _baselines(measurement: Measurement, n: int) -> dict[str, Any]:
    return {name: numbers(values[n]) for name, values in measurement.baselines.items()}


def _row(measurement: Measurement, k: int) -> dict[str, Any]:
    """The columns for score k of the only sample."""
    options = measurement.options
    row: dict[str, Any] = {
        "value": float(measurement.values[0, k]),
        "higher_is_better": measurement.higher_is_better,
        "steps": options.get("steps"),
        "options": json.dumps(dict(options)),
    }
    row |= {name: float(values[0, k]) for name, values in measurement.baselines.items()}
    if measurement.curve is not None:
        row["curve"] = numbers(measurement.curve[0, k])
    return row | {f"{name}_curve": numbers(curves[0, k]) for name, curves in measurement.baseline_curves.items()}

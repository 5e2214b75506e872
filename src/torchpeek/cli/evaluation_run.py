"""What `torchpeek evaluate` finds: pictures explained and measured one by one, and what that says of all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from torchpeek.cli.explainer import Explaining, facts_of, looked_at
from torchpeek.cli.loading import about
from torchpeek.cli.predictions import Answer, answers
from torchpeek.cli.regions import Regions
from torchpeek.cli.skipped import REQUEST, Skipped
from torchpeek.engine import Trace
from torchpeek.engine.targets import ClassScores
from torchpeek.errors import InputError, MetricNotApplicable, notify
from torchpeek.evaluation import evaluate
from torchpeek.metrics import METRICS, Measurement, Measurements, check_applies, joined
from torchpeek.models.loaded import TAKEN_AS_WHOLE


class Scored(NamedTuple):
    """What was found of one picture."""

    file: Path
    notes: Sequence[str]
    asked: Sequence[Answer]  # K
    scores: Sequence[float]  # K
    classes: bool  # whether these are of classes, so that metrics read probabilities
    measured: Mapping[str, Measurements]  # by method


COLUMNS: dict[str, type] = {
    "picture": str,
    "method": str,
    "metric": str,
    "class": int,
    "class_name": str,
    "score": float,  # that is explained, of the picture as it is
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
"""Of results.parquet."""


@dataclass
class Scorebook:
    """Measures pictures, and remembers."""

    explaining: Explaining
    metrics: Mapping[str, Mapping[str, Any]]  # name -> options
    regions: Regions
    named: frozenset[str] = frozenset()  # the metrics that were asked for one by one
    scored: list[Scored] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)
    _facts: dict[str, str] = field(default_factory=dict)
    _options: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # method -> all of its options
    _layers: dict[str, None] = field(default_factory=dict)

    def add(self, file: Path) -> None:
        """One picture. One that cannot be read, explained or measured is noted.

        An error that is the request's and not the picture's is raised, unless a picture was done in spite of it.
        """
        loaded = self.explaining.loaded
        try:
            picture = loaded.read(file)
            if self.regions.source and TAKEN_AS_WHOLE in picture.notes:  # and so the region may lie elsewhere
                notify(TAKEN_AS_WHOLE)
        except Exception as error:
            self.skipped.add(file, error, unless=() if self.scored else (InputError,))
            return
        try:
            where = self.regions.of(file, picture)
            kept, maps = self.explaining.of(picture.tensor)
            if not self.scored:
                self._leave_out(kept)
            measured = evaluate(loaded, picture, maps, metrics=self.metrics, seed=self.seed, **where)
        except Exception as error:
            self.skipped.add(file, error, unless=() if self.scored else REQUEST)
            return
        for name, heatmap in maps.items():
            self._facts = self._facts or facts_of(heatmap.provenance)
            self._options[name] = heatmap.provenance.options
            self._layers[looked_at(heatmap.provenance)] = None  # it may be another one for another size
        said = answers(kept, 0, picture, self.explaining.names).asked
        classes = isinstance(kept.question, ClassScores)
        self.scored.append(Scored(file, picture.notes, said, numbers(kept.scores[0]), classes, measured))

    def _leave_out(self, kept: Trace) -> None:
        """Of metrics that nobody named those that what is asked does not allow, with a note; if not all of them."""
        refused: dict[str, MetricNotApplicable] = {}
        for name in self.metrics:
            try:
                check_applies(METRICS[name], kept)
            except MetricNotApplicable as error:
                refused[name] = error
        if len(refused) == len(self.metrics):
            raise next(iter(refused.values()))
        for name, why in refused.items():
            if name not in self.named:
                notify(f"left out: {str(why).partition('. Next')[0]}")
        self.metrics = {name: each for name, each in self.metrics.items() if name not in refused or name in self.named}

    def check(self) -> None:
        """Raise InputError where none could be measured, though some could be read."""
        if not self.scored:
            self.skipped.check()

    @property
    def seed(self) -> int:
        """For all that is drawn."""
        return self.explaining.how.seed

    @property
    def score(self) -> str:
        """What p of the metrics is: the probability of a class, or what is asked."""
        return "probability" if all(each.classes for each in self.scored) else self._facts["score"]

    @property
    def about(self) -> dict[str, Any]:
        """What every number hangs on."""
        layers = {"layer": "; ".join(self._layers)} if self._layers else {}
        return {
            **(self._facts or about(self.explaining.loaded)),
            **layers,
            "seed": self.seed,
            "methods": {name: dict(self._options.get(name, given)) for name, given in self.explaining.methods.items()},
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
        """For each method those of all pictures; nothing where there are none."""
        parts = {name: [each.measured[name] for each in self.scored] for name in self.explaining.methods}
        return {name: joined(each) for name, each in parts.items() if each}

    def pictures(self) -> list[dict[str, Any]]:
        """For results.json: of each picture what was asked, and what each metric says of each method."""
        return [
            {
                "picture": str(each.file),
                "notes": list(each.notes),
                "asked": [
                    {**answer.facts("class_name" if answer.kind != "similarity" else "name"), "score": score}
                    for answer, score in zip(each.asked, each.scores, strict=True)
                ],
                "values": {
                    metric: {
                        method: {"values": numbers(found[metric].values[0])} | _by_baseline(found[metric], 0)
                        for method, found in each.measured.items()
                    }
                    for metric in self.metrics
                },
            }
            for each in self.scored
        ]

    def rows(self) -> Iterator[dict[str, Any]]:
        """For results.parquet: one for each picture, metric, method and score."""
        same = {key: self.about[key] for key in ("model", "weights", "seed")}
        for each in self.scored:
            for metric, (method, found) in product(self.metrics, each.measured.items()):
                for k, (answer, score) in enumerate(zip(each.asked, each.scores, strict=True)):
                    yield {
                        **same,
                        "picture": str(each.file),
                        "method": method,
                        "metric": metric,
                        "class": answer.label,
                        "class_name": answer.title,
                        "score": score,
                        **_row(found[metric], k),
                    }


def numbers(values: Tensor) -> Any:
    """A list, of lists where there are several axes."""
    return values.detach().double().cpu().tolist()


def _by_baseline(found: Measurement, n: int) -> dict[str, Any]:
    return {name: numbers(values[n]) for name, values in found.baselines.items()}


def _row(found: Measurement, k: int) -> dict[str, Any]:
    """Of the only sample's score k."""
    row: dict[str, Any] = {"value": float(found.values[0, k]), "higher_is_better": found.higher_is_better}
    row |= {name: float(values[0, k]) for name, values in found.baselines.items()}
    row |= {"steps": found.options.get("steps"), "options": json.dumps(dict(found.options))}
    if found.curve is not None:
        row["curve"] = numbers(found.curve[0, k])
    return row | {f"{name}_curve": numbers(curves[0, k]) for name, curves in found.baseline_curves.items()}

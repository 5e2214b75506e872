"""What is measured of one photograph, or of one mosaic, and what it takes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import torchpeek as tp
from evaluation.pictures import Labelled
from torchpeek.cam import METHODS
from torchpeek.metrics import mosaic

# Above 2,000 passes for a picture: on four pictures only, and some with fewer draws than their papers', as said here.
DEAR: Mapping[str, Mapping[str, Any]] = {"sscam": {"samples": 2}, "iscam": {"steps": 3}, "polycam": {}}
# Up to 50 passes: also by the metrics that ask the method again.
_MANY = {"scorecam", "ablationcam", "opticam", "integrated-gradcam", *DEAR}
ALL = [name for name, each in METHODS.items() if each.needs != "attention" and name != "random"]
CHEAP = [name for name in ALL if name not in DEAR]
FEW = [name for name in CHEAP if name not in _MANY]
TRIVIAL = ("all-ones", "constant")

PASSES: Mapping[str, Mapping[str, Any]] = {
    "average-drop": {},
    "increase": {},
    "average-gain": {},
    "deletion": {"steps": 8},
    "insertion": {"steps": 8},
    "aopc": {"steps": 6},
    "road-morf": {},
    "road-lerf": {},
    "road": {},
    "mufidelity": {"samples": 64},
    "infidelity": {"samples": 32},
}
REGION: Mapping[str, Mapping[str, Any]] = {
    "pointing-game": {},
    "energy-pointing-game": {},
    "relevance-rank-accuracy": {},
    "iou": {},
}
HEATMAP: Mapping[str, Mapping[str, Any]] = {"sparseness": {}, "entropy": {}}
ASKED: Mapping[str, Mapping[str, Any]] = {
    "max-sensitivity": {"samples": 4},
    "randomisation": {"stages": 4},
    "random-class": {},
    "adcc": {},
}
MOSAIC = "grid-pointing-game"
_BATCH = 4  # so many passes at once are fastest on a CPU, as they stay in its cache


@dataclass(frozen=True)
class Row:
    """One method by one metric on one picture, beside the baselines on the same grid."""

    method: str
    metric: str
    value: float
    random: float
    centre: float


def of_picture(loaded: tp.LoadedModel, picture: Labelled, methods: Sequence[str]) -> tuple[list[Row], dict[str, float]]:
    """All rows of one photograph for its label, and the seconds that each method took."""
    given = loaded.read(picture.file)
    heatmaps, seconds = _explained(loaded, given, methods, picture.label)
    if methods == CHEAP:
        heatmaps |= {name: _trivial(heatmaps["gradcam"], name) for name in TRIVIAL}
    boxes = torch.tensor(picture.boxes)
    measured = tp.evaluate(loaded, given, heatmaps, metrics={**PASSES, **REGION, **HEATMAP}, boxes=boxes, batch=_BATCH)
    rows = _rows(measured)
    asked = {name: heatmaps[name] for name in methods if name in FEW}
    if asked:
        rows += _rows(tp.evaluate(loaded, given, asked, metrics=ASKED, batch=_BATCH))
    for name in (name for name in TRIVIAL if name in heatmaps):
        same = heatmaps[name]
        rows += _rows({name: tp.evaluate(loaded, given, same, metrics=ASKED, explain=_always(same), batch=_BATCH)})
    return rows, seconds


def of_mosaic(loaded: tp.LoadedModel, pictures: Sequence[Labelled]) -> list[Row]:
    """The grid pointing game of four photographs of four classes: one row for each class."""
    cells = mosaic(torch.cat([loaded.read(each.file).tensor for each in pictures]))
    heatmaps, _ = _explained(loaded, cells.inputs, FEW, [[each.label for each in pictures]])
    heatmaps |= {name: _trivial(heatmaps["gradcam"], name) for name in TRIVIAL}
    measured = tp.evaluate(loaded, cells.inputs, heatmaps, metrics=[MOSAIC], masks=cells.regions, batch=_BATCH)
    return _rows(measured)


def _explained(
    loaded: tp.LoadedModel, given: Any, methods: Sequence[str], target: Any
) -> tuple[dict[str, tp.Heatmap], dict[str, float]]:
    heatmaps, seconds = {}, {}
    for name in methods:
        start = time.perf_counter()
        heatmaps[name] = tp.explain(loaded, given, method=name, target=target, **DEAR.get(name, {}))
        seconds[name] = time.perf_counter() - start
    return heatmaps, seconds


def _trivial(like: tp.Heatmap, name: str) -> tp.Heatmap:
    """The same number everywhere: what a metric says of a heatmap that says nothing."""
    value = {"all-ones": 1.0, "constant": 0.5}[name]
    made = replace(like.provenance, method=name)
    return replace(like, values=torch.full_like(like.values, value), provenance=made)


def _always(heatmap: tp.Heatmap) -> Any:
    def explain(module: nn.Module, inputs: Tensor, question: object) -> Tensor:
        return heatmap.values.expand(len(inputs), *heatmap.values.shape[1:])

    return explain


def _rows(measured: Mapping[str, tp.Measurements]) -> list[Row]:
    """For each score of the one sample a row."""
    return [
        Row(method, metric, *(float(each[0, k]) for each in (found.values, *found.baselines.values())))
        for method, by_metric in measured.items()
        for metric, found in by_metric.items()
        for k in range(found.values.shape[1])
    ]

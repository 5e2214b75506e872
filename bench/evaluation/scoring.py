"""Measure one photograph, or one mosaic: every method by most metrics, and the time of each method."""

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

# Methods of over 2,000 passes for a picture. They run on four pictures only, three of them with fewer draws or steps
# than in their papers.
EXPENSIVE: Mapping[str, Mapping[str, Any]] = {
    "sscam": {"samples": 2},
    "iscam": {"steps": 3},
    "polycam": {},
    "rise": {"samples": 1000},
}
# Methods of more than 50 passes. Metrics that run the method again are measured for the other methods only.
_OF_INPUTS = ("smoothgrad", "integrated-gradients", "occlusion")
_MANY = {"scorecam", "ablationcam", "opticam", "integrated-gradcam", *_OF_INPUTS, *EXPENSIVE}
ALL = [name for name, each in METHODS.items() if each.needs != "attention" and name != "random"]
CHEAP = [name for name in ALL if name not in EXPENSIVE]
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
RERUN: Mapping[str, Mapping[str, Any]] = {
    "max-sensitivity": {"samples": 4},
    "randomisation": {"stages": 4},
    "random-class": {},
    "adcc": {},
}
MOSAIC = "grid-pointing-game"
_BATCH = 4  # the fastest on a CPU: the activations of so many passes stay in its cache


@dataclass(frozen=True)
class Row:
    """One method by one metric on one picture, with the baselines on the same grid."""

    method: str
    metric: str
    value: float
    random: float
    centre: float


def of_picture(loaded: tp.LoadedModel, picture: Labelled, methods: Sequence[str]) -> tuple[list[Row], dict[str, float]]:
    """All rows of one photograph, explained for its label, and the seconds of each method."""
    read = loaded.read(picture.file)
    heatmaps, seconds = _explained(loaded, read, methods, picture.label)
    if methods == CHEAP:
        heatmaps |= {name: _trivial(heatmaps["gradcam"], name) for name in TRIVIAL}
    boxes = torch.tensor(picture.boxes)
    measured = tp.evaluate(loaded, read, heatmaps, metrics={**PASSES, **REGION, **HEATMAP}, boxes=boxes, batch=_BATCH)
    rows = _rows(measured)
    repeatable = {name: heatmaps[name] for name in methods if name in FEW}
    if repeatable:
        rows += _rows(tp.evaluate(loaded, read, repeatable, metrics=RERUN, batch=_BATCH))
    for name in (name for name in TRIVIAL if name in heatmaps):
        same = heatmaps[name]
        rows += _rows({name: tp.evaluate(loaded, read, same, metrics=RERUN, explain=_always(same), batch=_BATCH)})
    return rows, seconds


def of_mosaic(loaded: tp.LoadedModel, pictures: Sequence[Labelled]) -> list[Row]:
    """The grid pointing game on four photographs of four classes: one row for each class."""
    cells = mosaic(torch.cat([loaded.read(each.file).tensor for each in pictures]))
    heatmaps, _ = _explained(loaded, cells.inputs, FEW, [[each.label for each in pictures]])
    heatmaps |= {name: _trivial(heatmaps["gradcam"], name) for name in TRIVIAL}
    measured = tp.evaluate(loaded, cells.inputs, heatmaps, metrics=[MOSAIC], masks=cells.regions, batch=_BATCH)
    return _rows(measured)


def _explained(
    loaded: tp.LoadedModel, inputs: Any, methods: Sequence[str], target: Any
) -> tuple[dict[str, tp.Heatmap], dict[str, float]]:
    heatmaps, seconds = {}, {}
    for name in methods:
        start = time.perf_counter()
        heatmaps[name] = tp.explain(loaded, inputs, method=name, target=target, **EXPENSIVE.get(name, {}))
        seconds[name] = time.perf_counter() - start
    return heatmaps, seconds


def _trivial(like: tp.Heatmap, name: str) -> tp.Heatmap:
    """A heatmap with the same number everywhere, which says nothing."""
    value = {"all-ones": 1.0, "constant": 0.5}[name]
    made = replace(like.provenance, method=name)
    return replace(like, values=torch.full_like(like.values, value), provenance=made)


def _always(heatmap: tp.Heatmap) -> Any:
    def explain(module: nn.Module, inputs: Tensor, question: object) -> Tensor:
        return heatmap.values.expand(len(inputs), *heatmap.values.shape[1:])

    return explain


def _rows(measured: Mapping[str, tp.Measurements]) -> list[Row]:
    """A row for each score of the one sample."""
    return [
        Row(method, metric, *(float(each[0, k]) for each in (found.values, *found.baselines.values())))
        for method, by_metric in measured.items()
        for metric, found in by_metric.items()
        for k in range(found.values.shape[1])
    ]

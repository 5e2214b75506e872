"""The front door for trust: evaluate()."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

from torchpeek.engine import ModelRunner
from torchpeek.engine.trace import Bound
from torchpeek.errors import InputError
from torchpeek.evaluation.cases import RANDOM, Explain, by_grid, case_of, explainer_of, layers_of
from torchpeek.evaluation.checks import Metrics, check_heatmaps, check_needs, check_same, chosen_metrics
from torchpeek.heatmap import Heatmap
from torchpeek.metrics import (
    CleanPass,
    Measurement,
    Measurements,
    MetricResult,
    check_applies,
    find_metric,
    joined,
    regions_of,
)
from torchpeek.models import Inputs, LoadedModel, Model, given_to, module_of
from torchpeek.picture import Picture


@overload
def evaluate(
    model: Model,
    inputs: Inputs | Sequence[Inputs],
    heatmap: Heatmap | Sequence[Heatmap],
    *,
    metrics: Metrics,
    masks: Any = ...,
    boxes: Any = ...,
    explain: Explain | None = ...,
    batch: int | None = ...,
    seed: int = ...,
) -> Measurements: ...
@overload
def evaluate(
    model: Model,
    inputs: Inputs | Sequence[Inputs],
    heatmap: Mapping[str, Heatmap] | Mapping[str, list[Heatmap]],
    *,
    metrics: Metrics,
    masks: Any = ...,
    boxes: Any = ...,
    explain: Explain | None = ...,
    batch: int | None = ...,
    seed: int = ...,
) -> dict[str, Measurements]: ...
def evaluate(
    model: Model,
    inputs: Inputs | Sequence[Inputs],
    heatmap: Any,
    *,
    metrics: Metrics,
    masks: Any = None,
    boxes: Any = None,
    explain: Explain | None = None,
    batch: int | None = None,
    seed: int = 0,
) -> Measurements | dict[str, Measurements]:
    """Can the heatmap be trusted: each metric's number, beside those of a random and of a centred heatmap.

    `heatmap` is what `explain` returned for this model and these inputs; a dict of them, such as `compare` returns, is
    scored together, and a dict comes back. With a list of inputs, of pictures that differ in size, it is the list of
    their heatmaps, and the measurements are of all of them. `metrics` are names (`torchpeek metrics`), or a dict from a
    name to that metric's options.

    `masks` or `boxes` say where the object is, for the metrics that ask: masks (N, H, W) of bools, or (N, K, H, W) for
    each score its own; boxes (N, 4), or for each sample a tensor or list (b, 4), as left, top, right, bottom. Of a
    Picture, a path or a PIL image they are in the pixels of the original, else in those of the input.

    Metrics that ask the method again do so as the heatmap's provenance says; for heatmaps that come from elsewhere, or
    were fused or smoothed, `explain(module, inputs (n, ...), question)` has to return them, (n, K, *grid).

    `batch` is how many passes go at once, as many as fit unless said; `seed` is for all that is drawn, which also
    hangs on each picture, and on nothing else that is in the batch. The model is left exactly as it was found.
    """
    chosen = chosen_metrics(metrics)
    if isinstance(inputs, (list, tuple)):
        one_by_one = partial(evaluate, model, metrics=chosen, explain=explain, batch=batch, seed=seed)
        return _of_each(one_by_one, inputs, heatmap, masks, boxes)
    single = isinstance(heatmap, Heatmap)
    heatmaps: Mapping[str, Heatmap] = {heatmap.provenance.method: heatmap} if single else heatmap
    check_heatmaps(heatmaps)
    picture = _picture(model, inputs)
    call = given_to(model, inputs if picture is None else picture)
    runner = ModelRunner(module_of(model))
    question = next(iter(heatmaps.values())).question
    check_needs(chosen, heatmaps, regions=masks is not None or boxes is not None, explained=explain is not None)
    trace = runner.trace(call, [], Bound(question, layers_of(question)), gradients=False)
    heatmaps = {name: _on(each, trace.scores.device) for name, each in heatmaps.items()}
    check_same(heatmaps, trace.scores)
    for name in chosen:
        check_applies(find_metric(name), trace)
    geometry = None if picture is None else picture.geometry
    regions = regions_of(masks, boxes, trace.inputs.shape, trace.scores.shape[1], geometry)
    clean = CleanPass(trace, seed, batch)
    measured: dict[str, dict[str, Measurement]] = {name: {} for name in heatmaps}
    for names in by_grid(heatmaps):
        explainers = [explainer_of(trace, heatmaps[name], explain) for name in names]
        case = case_of(clean, [heatmaps[name] for name in names], explainers, regions)
        for metric, options in chosen.items():
            with _own_arithmetic(trace.scores.device.type):
                result = find_metric(metric).compute(case, **options)
            for name, measurement in zip(names, _measurements(metric, options, result, len(names), clean), strict=True):
                measured[name][metric] = measurement
    results = {name: Measurements(name, by_metric) for name, by_metric in measured.items()}
    return next(iter(results.values())) if single else results


@contextmanager
def _own_arithmetic(device: str) -> Iterator[None]:
    """In full precision and without a graph, whatever the caller is in; the passes run as the clean one did."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
        yield


def _of_each(
    evaluate_one: Callable[..., Any], inputs: Sequence[Any], heatmap: Any, masks: Any, boxes: Any
) -> Measurements | dict[str, Measurements]:
    """One input after the other, and their measurements as of one batch."""
    if not inputs:
        raise InputError("inputs is an empty list; give at least one")
    single = not isinstance(heatmap, Mapping)
    lists: Mapping[str, Any] = {"heatmap": heatmap} if single else heatmap
    for name, each in {**lists, "masks": masks, "boxes": boxes}.items():
        whole = isinstance(each, (list, tuple)) or (name in ("masks", "boxes") and isinstance(each, Tensor))
        if each is not None and (not whole or len(each) != len(inputs)):
            got = f"of {len(each)}" if whole else f"a {type(each).__name__}"
            raise InputError(f"{name!r} is {got} for a list of {len(inputs)} inputs; give a list with one for each")
    if single and isinstance(heatmap[0], Heatmap):
        lists = {heatmap[0].provenance.method: heatmap}
    parts = [
        evaluate_one(
            each_input,
            {name: each[number] for name, each in lists.items()},
            masks=None if masks is None else masks[number],
            boxes=None if boxes is None else boxes[number],
        )
        for number, each_input in enumerate(inputs)
    ]
    results = {name: joined([part[name] for part in parts]) for name in lists}
    return next(iter(results.values())) if single else results


def _on(heatmap: Heatmap, device: torch.device) -> Heatmap:
    """Where the model is; a heatmap that was loaded is not."""
    if heatmap.values.device == device:
        return heatmap
    return replace(heatmap, values=heatmap.values.to(device), scores=heatmap.scores.to(device))


def _picture(model: Model, inputs: object) -> Picture | None:
    if isinstance(model, LoadedModel) and isinstance(inputs, (str, PathLike, Image.Image)):
        return model.read(inputs)
    return inputs if isinstance(inputs, Picture) else None


def _measurements(
    metric: str, options: Mapping[str, Any], result: MetricResult, methods: int, clean: CleanPass
) -> list[Measurement]:
    """For each of the methods, with the baselines that stand behind them in the case."""
    scores = clean.trace.scores.shape[1]

    def of_methods(values: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """(N, J, ...) -> (N, M, K, ...), and the baselines' (N, K, ...)."""
        apart = values.reshape(len(values), -1, scores, *values.shape[2:])
        random = apart[:, methods : methods + RANDOM].mean(1)
        return apart[:, :methods], {"random": random, "centre": apart[:, methods + RANDOM]}

    values, baselines = of_methods(result.values)
    curves, baseline_curves = (None, {}) if result.curve is None else of_methods(result.curve)
    definition = find_metric(metric)
    return [
        Measurement(
            metric,
            values[:, number],
            definition.higher_is_better,
            baselines,
            None if curves is None else curves[:, number],
            baseline_curves,
            {**definition.options, **options},
            clean.seed,
        )
        for number in range(methods)
    ]

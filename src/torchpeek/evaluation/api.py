"""evaluate(): scores heatmaps by metrics, beside two baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

from torchpeek.argument_types import PositiveInt, Seed
from torchpeek.engine import CaptureRequest, bound_to, stop_iteration_restored, trace_model
from torchpeek.errors import InputError, type_shown
from torchpeek.evaluation.cases import RANDOM, Explain, by_grid, case_of, explainer_of
from torchpeek.evaluation.checks import (
    check_grids,
    check_heatmaps,
    check_inputs,
    check_needs,
    check_same,
    selected_metrics,
)
from torchpeek.explanation.request import LayerChoice, explanation_request
from torchpeek.heatmap import Heatmap
from torchpeek.hooks import grad_mode
from torchpeek.keywords import checked_keywords
from torchpeek.metrics import (
    CleanPass,
    Measurement,
    Measurements,
    MeasurementsByMethod,
    MetricResult,
    check_applies,
    described_options,
    find_metric,
    joined,
    regions_of,
)
from torchpeek.models import Inputs, LoadedModel, Model
from torchpeek.picture import Picture
from torchpeek.registry import NamesOrOptions


@overload
def evaluate(
    model: Model,
    inputs: Inputs | Sequence[Inputs],
    heatmap: Heatmap | Sequence[Heatmap],
    *,
    metrics: NamesOrOptions,
    masks: Any = ...,
    boxes: Any = ...,
    explain: Explain | None = ...,
    batch: int | None = ...,
    seed: Seed = ...,
) -> Measurements: ...
@overload
def evaluate(
    model: Model,
    inputs: Inputs | Sequence[Inputs],
    heatmap: Mapping[str, Heatmap] | Mapping[str, list[Heatmap]],
    *,
    metrics: NamesOrOptions,
    masks: Any = ...,
    boxes: Any = ...,
    explain: Explain | None = ...,
    batch: int | None = ...,
    seed: Seed = ...,
) -> dict[str, Measurements]: ...
@checked_keywords
def evaluate(
    model: Model,
    inputs: Inputs | Sequence[Inputs],
    heatmap: Any,
    *,
    metrics: NamesOrOptions,
    masks: Any = None,
    boxes: Any = None,
    explain: Explain | None = None,
    batch: PositiveInt | None = None,
    seed: Seed = 0,
) -> Measurements | dict[str, Measurements]:
    """Score heatmaps by metrics, beside a random and a centred heatmap.

    The model runs in eval mode and is left exactly as it was found.

    Args:
        model: An nn.Module or a LoadedModel.
        inputs: The inputs of the heatmaps. A list of inputs, which may differ in size, is evaluated one by one.
        heatmap: What `explain` returned for this model and these inputs. A dict of heatmaps, as from `compare`, is
            scored together. For a list of inputs, a list with a heatmap for each, or a dict of such lists.
        metrics: Names of metrics (`torchpeek metrics` lists them), or a dict name -> options. The option `baseline` is
            the fill: a name, a number, a tensor (C, *size) or (N, C, *size), or a function of the inputs.
        masks: Where the object is, for metrics that need it: (N, H, W), bool, or (N, K, H, W) with a mask for each
            score. For a Picture, a path or a PIL image in pixels of the original picture, else in those of the input.
        boxes: In place of masks, (N, 4), or for each sample (b, 4), as left, top, right, bottom, in the same pixels.
        explain: A function (module, inputs (n, C, *size), question) -> (n, K, *grid), for metrics that explain anew.
            None repeats the method, layer and options of the heatmap's provenance. It is required for heatmaps from
            elsewhere, and for fused or smoothed ones.
        batch: Number of passes that run at once. None is as many as fit into memory.
        seed: Seed of all random numbers. They depend on the seed and on each sample, not on the batch.

    Returns:
        Measurements, a mapping from metric name to Measurement; a dict of them if `heatmap` is a dict.

    Raises:
        InputError: When heatmaps, inputs, masks or boxes do not fit each other, or a heatmap was made with other
            inputs.
        MetricNotFound: When no metric has that name.
        MetricNotApplicable: When a metric is not defined for the target, or needs `masks`, `boxes` or `explain`.
        OptionError: When a metric does not have an option, or not with that value.
        NotFinite: When a heatmap has NaN or infinity.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> x = torch.rand(2, 3, 8, 8)
        >>> m = tp.evaluate(model, x, tp.explain(model, x, layer="0"), metrics={"deletion": {"steps": 4}})
        >>> m["deletion"].values.shape, m["deletion"].curve.shape
        (torch.Size([2, 1]), torch.Size([2, 1, 5]))
    """
    selected = selected_metrics(metrics)
    if isinstance(inputs, (list, tuple)):
        one_by_one = partial(evaluate, model, metrics=selected, explain=explain, batch=batch, seed=seed)
        return _of_each(one_by_one, inputs, heatmap, masks, boxes)
    single = isinstance(heatmap, Heatmap)
    heatmaps: Mapping[str, Heatmap] = {heatmap.provenance.method: heatmap} if single else heatmap
    check_heatmaps(heatmaps)
    picture = _picture(model, inputs)
    question = next(iter(heatmaps.values())).question
    check_needs(selected, heatmaps, regions=masks is not None or boxes is not None, explained=explain is not None)
    request = explanation_request(model, inputs if picture is None else picture, LayerChoice(), bound_to(question))
    captures = CaptureRequest({}, gradients=False)
    trace = trace_model(request.module, request.call, captures, request.target, request.origin)
    heatmaps = {name: _on(each, trace.scores.device) for name, each in heatmaps.items()}
    check_inputs(heatmaps, trace.forward_pass.call)
    check_same(heatmaps, trace.scores)
    check_grids(heatmaps, trace.inputs.shape)
    for name in selected:
        check_applies(find_metric(name), trace)
    geometry = None if picture is None else picture.original_geometry
    regions = regions_of(masks, boxes, trace.inputs.shape, trace.scores.shape[1], geometry)
    clean = CleanPass(trace, seed, batch)
    measured: dict[str, dict[str, Measurement]] = {name: {} for name in heatmaps}
    for names in by_grid(heatmaps):
        explainers = [explainer_of(trace, heatmaps[name], explain) for name in names]
        case = case_of(clean, [heatmaps[name] for name in names], explainers, regions)
        for metric, options in selected.items():
            # In full precision and without a graph. The passes run in the modes of the clean pass.
            full_precision = torch.autocast(trace.scores.device.type, enabled=False)
            with grad_mode(False), full_precision, stop_iteration_restored():
                result = find_metric(metric).compute(case, **options)
            for name, measurement in zip(names, _measurements(metric, options, result, len(names), clean), strict=True):
                measured[name][metric] = measurement
    results = MeasurementsByMethod({name: Measurements(name, by_metric) for name, by_metric in measured.items()})
    return next(iter(results.values())) if single else results


def _of_each(
    evaluate_one: Callable[..., Any], inputs: Sequence[Any], heatmap: Any, masks: Any, boxes: Any
) -> Measurements | dict[str, Measurements]:
    """Evaluate one input after the other, and join their measurements."""
    if not inputs:
        raise InputError("inputs is an empty list; give at least one input")
    single = not isinstance(heatmap, Mapping)
    lists: Mapping[str, Any] = {"heatmap": heatmap} if single else heatmap
    for name, each in {**lists, "masks": masks, "boxes": boxes}.items():
        whole = isinstance(each, (list, tuple)) or (name in ("masks", "boxes") and isinstance(each, Tensor))
        if each is not None and (not whole or len(each) != len(inputs)):
            got = f"a list of {len(each)}" if whole else type_shown(each)
            raise InputError(
                f"{name!r} is {got} for a list of {len(inputs)} inputs; give a list with one entry for each"
            )
    if single and isinstance(heatmap[0], Heatmap):
        lists = {heatmap[0].provenance.method: heatmap}
    parts = []
    for number, each_input in enumerate(inputs):
        try:
            part = evaluate_one(
                each_input,
                {name: each[number] for name, each in lists.items()},
                masks=None if masks is None else masks[number],
                boxes=None if boxes is None else boxes[number],
            )
        except Exception as error:
            error.add_note(f"at inputs[{number}] of the list")
            raise
        parts.append(part)
    results = MeasurementsByMethod({name: joined([part[name] for part in parts]) for name in lists})
    return next(iter(results.values())) if single else results


def _on(heatmap: Heatmap, device: torch.device) -> Heatmap:
    """Move a heatmap to the device of the model. A loaded heatmap is on the CPU."""
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
    """Return a measurement for each method. The baselines come after the methods in the case."""
    scores = clean.trace.scores.shape[1]

    def of_methods(values: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Split (N, J, ...) into the methods (N, M, K, ...) and the baselines (N, K, ...)."""
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
            described_options({**definition.options, **options}),
            clean.seed,
        )
        for number in range(methods)
    ]

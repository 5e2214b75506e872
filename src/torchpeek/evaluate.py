"""The front door for trust: evaluate()."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, TypeAlias, overload

import torch
from PIL import Image
from torch import Tensor, nn

from torchpeek.cam import find_method
from torchpeek.engine import Given, ModelRunner, Question
from torchpeek.engine.closeness import close
from torchpeek.engine.trace import Bound
from torchpeek.errors import InputError, MetricNotApplicable
from torchpeek.explain.heatmaps import How, heatmaps_of
from torchpeek.explain.tracing import Where
from torchpeek.heatmap import Heatmap, Provenance
from torchpeek.metrics import (
    Case,
    Clean,
    Explainer,
    Measurement,
    Measurements,
    Scored,
    always,
    at_random,
    centre,
    find_metric,
    joined,
    regions_of,
)
from torchpeek.models import Inputs, LoadedModel, Model, given_to, module_of
from torchpeek.picture import Picture

Metrics: TypeAlias = Iterable[str] | Mapping[str, Mapping[str, Any]]
Explain: TypeAlias = Callable[[nn.Module, Tensor, Question], Tensor]

_RANDOM = 10  # random heatmaps, whose mean is the baseline


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
    chosen = _chosen(metrics)
    if isinstance(inputs, (list, tuple)):
        one_by_one = partial(evaluate, model, metrics=chosen, explain=explain, batch=batch, seed=seed)
        return _of_each(one_by_one, inputs, heatmap, masks, boxes)
    single = isinstance(heatmap, Heatmap)
    heatmaps: Mapping[str, Heatmap] = {heatmap.provenance.method: heatmap} if single else heatmap
    _check_heatmaps(heatmaps)
    picture = _picture(model, inputs)
    given = given_to(model, inputs if picture is None else picture)
    runner = ModelRunner(module_of(model))
    question = next(iter(heatmaps.values())).question
    trace = runner.trace(given, [], Bound(question, _layers_of(question)), gradients=False)
    _check_same(heatmaps, trace.scores)
    geometry = None if picture is None else picture.geometry
    regions = regions_of(masks, boxes, trace.inputs.shape, trace.scores.shape[1], geometry)
    clean = Clean(trace, seed, batch)
    found: dict[str, dict[str, Measurement]] = {name: {} for name in heatmaps}
    for names in _by_grid(heatmaps):
        explainers = [_explainer(runner.model, given, heatmaps[name], explain) for name in names]
        case = _case(clean, [heatmaps[name] for name in names], explainers, regions)
        for metric, options in chosen.items():
            scored = find_metric(metric).compute(case, **options)
            for name, measurement in zip(names, _measurements(metric, options, scored, len(names), clean), strict=True):
                found[name][metric] = measurement
    made = {name: Measurements(name, measured) for name, measured in found.items()}
    return next(iter(made.values())) if single else made


def _chosen(metrics: Metrics) -> dict[str, Mapping[str, Any]]:
    if isinstance(metrics, str):
        metrics = [metrics]
    if not isinstance(metrics, Iterable):
        raise InputError(f"metrics is {metrics!r}; give names, or a dict from a name to that metric's options")
    chosen = dict(metrics) if isinstance(metrics, Mapping) else {name: {} for name in metrics}
    if not chosen:
        raise InputError("metrics is empty; name at least one (torchpeek metrics lists them)")
    for name, options in chosen.items():
        find_metric(name).check_options(options)
    return chosen


def _of_each(
    measured: Callable[..., Any], inputs: Sequence[Any], heatmap: Any, masks: Any, boxes: Any
) -> Measurements | dict[str, Measurements]:
    """One input after the other, and their measurements as of one batch."""
    single = not isinstance(heatmap, Mapping)
    lists: Mapping[str, Any] = {"": heatmap} if single else heatmap
    for name, each in {**lists, "masks": masks, "boxes": boxes}.items():
        wanted = name in ("masks", "boxes") and each is None
        if not wanted and (not isinstance(each, (list, tuple)) or len(each) != len(inputs)):
            got = len(each) if isinstance(each, (list, tuple)) else f"a {type(each).__name__}"
            what = repr(name) if name else "heatmap"
            raise InputError(f"{what} is {got} for a list of {len(inputs)} inputs; give a list with one for each")
    parts = [
        measured(
            one,
            {name: each[number] for name, each in lists.items()},
            masks=None if masks is None else masks[number],
            boxes=None if boxes is None else boxes[number],
        )
        for number, one in enumerate(inputs)
    ]
    if not parts:
        raise InputError("inputs is an empty list; give at least one")
    found = {name: joined([part[name] for part in parts]) for name in lists}
    if not single:
        return found
    return replace(found[""], method=heatmap[0].provenance.method)


def _check_heatmaps(heatmaps: object) -> None:
    if not isinstance(heatmaps, Mapping) or not all(isinstance(each, Heatmap) for each in heatmaps.values()):
        raise InputError(
            f"heatmap is a {type(heatmaps).__name__}; allowed: a Heatmap, as explain() returns it, a dict of them, as "
            "compare() does, or, for a list of inputs, a list of them"
        )
    if not heatmaps:
        raise InputError("heatmap is an empty dict; give at least one")
    for name, each in heatmaps.items():
        done = [step for step in each.provenance.steps if step.split()[0] in ("positive", "unit", "resized")]
        if done:
            raise InputError(
                f"the heatmap {name!r} was changed already ({', '.join(done)}); metrics read it as explain() returned "
                "it, and make of it what each of them needs"
            )


def _check_same(heatmaps: Mapping[str, Heatmap], scores: Tensor) -> None:
    """Raise InputError unless all are of the same scores, and these those of the clean pass."""
    first = next(iter(heatmaps.values()))
    for name, each in heatmaps.items():
        labels = each.question.labels
        if type(each.question) is not type(first.question) or not torch.equal(labels, first.question.labels):
            raise InputError(f"the heatmap {name!r} is of another question than the first; those together are of one")
        if each.scores.shape != scores.shape or not close(scores, each.scores.to(scores), torch.float16):
            raise InputError(
                f"the heatmap {name!r} is of scores {_few(each.scores)}, and this model gives {_few(scores)} for these "
                "inputs. Next: give the model and the inputs that it was made with"
            )


def _few(scores: Tensor) -> str:
    listed = ", ".join(f"{each:.4g}" for each in scores.flatten()[:3].tolist())
    return f"{tuple(scores.shape)} ({listed}{', ...' if scores.numel() > 3 else ''})"


def _layers_of(question: Question) -> tuple[str, ...]:
    layer = getattr(question, "layer", None)
    return (layer,) if isinstance(layer, str) else ()


def _picture(model: Model, inputs: object) -> Picture | None:
    if isinstance(model, LoadedModel) and isinstance(inputs, (str, PathLike, Image.Image)):
        return model.read(inputs)
    return inputs if isinstance(inputs, Picture) else None


def _by_grid(heatmaps: Mapping[str, Heatmap]) -> list[list[str]]:
    """Those on one grid together, as the random baseline is on it, too."""
    groups: dict[torch.Size, list[str]] = {}
    for name, each in heatmaps.items():
        groups.setdefault(each.values.shape[2:], []).append(name)
    return list(groups.values())


def _case(clean: Clean, heatmaps: list[Heatmap], explainers: list[Explainer], regions: Tensor | None) -> Case:
    """The heatmaps, then as many random ones as make the baseline, then the centred one."""
    first = heatmaps[0].values
    scores, grid = first.shape[1], first.shape[2:]
    rows = torch.arange(len(first))
    of_random = [at_random((scores, *grid), clean.seed, number, first) for number in range(_RANDOM)]
    of_centre = always(centre(grid, first).expand(scores, *grid))
    baselines = [each(clean.trace.inputs, rows) for each in (*of_random, of_centre)]
    values = torch.cat([*(each.values for each in heatmaps), *baselines], dim=1)
    return Case(clean, values, regions, [*explainers, *of_random, of_centre])


def _measurements(
    metric: str, options: Mapping[str, Any], scored: Scored, methods: int, clean: Clean
) -> list[Measurement]:
    """For each of the methods, with the baselines that stand behind them in the case."""
    scores = clean.trace.scores.shape[1]

    def of_methods(values: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """(N, J, ...) -> (N, M, K, ...), and the baselines' (N, K, ...)."""
        apart = values.reshape(len(values), -1, scores, *values.shape[2:])
        random = apart[:, methods : methods + _RANDOM].mean(1)
        return apart[:, :methods], {"random": random, "centre": apart[:, methods + _RANDOM]}

    values, baselines = of_methods(scored.values)
    curves, baseline_curves = (None, {}) if scored.curve is None else of_methods(scored.curve)
    found = find_metric(metric)
    return [
        Measurement(
            metric,
            values[:, number],
            found.higher_is_better,
            baselines,
            None if curves is None else curves[:, number],
            baseline_curves,
            {**found.options, **options},
            clean.seed,
        )
        for number in range(methods)
    ]


def _explainer(network: nn.Module, given: Given, heatmap: Heatmap, explain: Explain | None) -> Explainer:
    def again(inputs: Tensor, rows: Tensor, *, model: nn.Module | None = None, labels: Tensor | None = None) -> Tensor:
        question: Any = heatmap.question.select(rows, slice(None))
        if labels is not None:
            question = replace(question, labels=labels[rows])  # asked of classes only
        if explain is not None:
            return explain(model or network, inputs, question)
        return _asked_again(model or network, given.of(rows, inputs), question, heatmap.provenance)

    return again


def _asked_again(model: nn.Module, given: Given, question: Question, made: Provenance) -> Tensor:
    """(n, K, *grid): the heatmap of other inputs, by the method, layer and options that its provenance names."""
    if made.steps:
        raise MetricNotApplicable(
            f"metrics that ask the method again cannot make this heatmap anew: {'; '.join(made.steps)}. Next: give "
            "explain=, a function (module, inputs, question) -> (n, K, *grid), or choose other metrics"
        )
    method = find_method(made.method)
    layer = None if method.layers == "all" else made.layer if method.layers == "one" else made.layer.split(", ")
    layout = made.layout if layer is not None and made.layout and "," not in made.layout else None
    target, where, how = Bound(question, _layers_of(question)), Where(layer, layout), How(None, None, 0)
    asked: Any = given  # a call as it is made, which is no type that users give
    found: Heatmap = heatmaps_of(model, asked, {made.method: made.options}, where, target, how)[made.method]
    return found.values

"""The heatmaps of several methods: as few passes as they need together, over one batch or many inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchpeek import _version
from torchpeek.cam import FUSIONS, CamMethod, Smoothing, find_method, fused, smoothed, without_unsuitable_flip
from torchpeek.engine import ModelCall, Trace
from torchpeek.engine.targets import ClassesPerSample, Question, as_target, innermost, of_samples
from torchpeek.errors import InputError, NotConnected, NotFinite, OptionError, TargetError, notify
from torchpeek.explanation.plan import TargetLike, Wanted, Where, class_names_of, traced
from torchpeek.heatmap import Heatmap, Provenance
from torchpeek.interrupts import uninterrupted
from torchpeek.models import Inputs, Model, given_to, module_of
from torchpeek.models.quantised import quantisation_named, quantised_layers

Chosen: TypeAlias = list[tuple[CamMethod, Mapping[str, Any]]]


@dataclass(frozen=True)
class How:
    """What else a heatmap depends on, whatever its method."""

    fuse: str | None
    smooth: Smoothing | None
    seed: int

    def __post_init__(self) -> None:
        if self.fuse is not None and self.fuse not in FUSIONS:
            raise OptionError(f"fuse is {self.fuse!r}; allowed: {', '.join(map(repr, FUSIONS))}, or None")
        if self.smooth is not None and not isinstance(self.smooth, Smoothing):
            raise OptionError(f"smooth is {self.smooth!r}; allowed: tp.Smoothing(), or None")


def heatmaps_of(
    model: Model | Trace,
    inputs: Inputs | Sequence[Inputs] | None,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]],
    where: Where,
    target: TargetLike,
    how: How,
) -> Any:  # the overloads of compare() say what it is when
    """What compare() returns: for each method its Heatmap, or, of a list of inputs, one for each."""
    chosen = _chosen(methods)
    if isinstance(model, Trace):
        if inputs is not None or where.layer is not None:
            raise InputError("a Trace has its inputs and its layer; give it alone, or the model with both")
        asked = model if target is None else model.asked(as_target(target, model.origin.class_names))
        return {method.name: _heatmap(asked, method, options, how) for method, options in chosen}
    if inputs is None:
        raise InputError("inputs is missing; explain(model, inputs), or explain(trace)")
    if isinstance(inputs, (list, tuple)):
        with quantisation_named(module_of(model)):
            return _of_each(model, inputs, chosen, where, target, how)
    with quantisation_named(module_of(model)):
        return _of_batch(model, given_to(model, inputs), chosen, where, target, how)


def _of_batch(
    model: Model, given: ModelCall, chosen: Chosen, where: Where, target: TargetLike, how: How
) -> dict[str, Heatmap]:
    found: dict[str, Heatmap] = {}
    if any(method.layers == "all" for method, _ in chosen) and quantised_layers(module_of(model)):
        raise NotConnected("no gradient flows back through quantised layers")  # nor would one be missed
    # Those that combine layers look at others, unless it is said at which.
    traces: dict[tuple[int, bool], Chosen] = {}
    for pair in chosen:
        combines = where.layer is None and (pair[0].layers == "many" or how.fuse is not None)
        traces.setdefault((pair[0].stages if combines else 0, pair[0].needs == "attention"), []).append(pair)
    for (stages, attention), together in traces.items():
        plan = Wanted(
            gradients=attention or any(method.needs == "gradients" for method, _ in together),
            ablates=any(method.ablates for method, _ in together),
            attention=attention,
            stages=stages,
            several=how.fuse is not None or all(method.layers == "many" for method, _ in together),
            nowhere=all(method.layers == "all" for method, _ in together),
        )
        kept = traced(model, given, where, target, plan)
        found |= {method.name: _heatmap(kept, method, options, how) for method, options in together}
    return {method.name: found[method.name] for method, _ in chosen}


def _of_each(
    model: Model, inputs: Sequence[Any], chosen: Chosen, where: Where, target: TargetLike, how: How
) -> dict[str, list[Heatmap]]:
    """One batch for each run of inputs of the same shape; then taken apart again."""
    calls = [given_to(model, each) for each in inputs]
    if not calls:
        raise InputError("inputs is an empty list; give at least one")
    asked = as_target(target, class_names_of(model))
    total = sum(len(given) for given in calls)
    by_sample = innermost(asked)
    if isinstance(by_sample, ClassesPerSample) and len(by_sample.labels) != total:
        raise TargetError(
            f"target has {len(by_sample.labels)} entries for {total} inputs; give one for each, or one for all"
        )
    found: dict[str, list[Heatmap]] = {method.name: [] for method, _ in chosen}
    done = 0
    for run in _runs_of_one_shape(calls):
        size = sum(len(given) for given in run)
        part = of_samples(asked, done, done + size)
        together = run[0] if len(run) == 1 else run[0].changed(torch.cat([given.picture for given in run]))
        for name, heatmap in _of_batch(model, together, chosen, where, part, how).items():
            start = 0
            for given in run:
                found[name].append(heatmap[start : start + len(given)])
                start += len(given)
        done += size
    return found


def _runs_of_one_shape(calls: list[ModelCall], most: int = 16) -> list[list[ModelCall]]:
    """Those that can be one batch: pictures of one size, and nothing else."""
    runs: list[list[ModelCall]] = []
    for given in calls:
        alike = runs and runs[-1][0].picture.shape[1:] == given.picture.shape[1:]
        if alike and given.plain and runs[-1][0].plain and sum(map(len, runs[-1])) < most:
            runs[-1].append(given)
        else:
            runs.append([given])
    return runs


def _heatmap(trace: Trace, method: CamMethod, options: Mapping[str, Any], how: How) -> Heatmap:
    given = {"seed": how.seed, **options} if "seed" in method.options else dict(options)
    fuse = (how.fuse or "max") if method.layers == "one" and len(trace.at) > 1 else None
    if how.fuse is not None and method.layers != "one":
        raise InputError(f"fuse={how.fuse!r} is for methods of one layer; {method.name} looks at several by itself")
    if how.fuse is not None and len(trace.at) == 1:
        raise InputError(
            f"fuse={how.fuse!r} makes one map of several layers; got one, {trace.layer!r}. Give a list or a pattern of "
            "layers, or layer=None for those of the coarsest grids"
        )

    smooth = how.smooth and without_unsuitable_flip(how.smooth, trace.question)

    def computed(one: Trace) -> Tensor:
        if fuse is None:
            return method.compute(one, **given)
        return fused([method.compute(one.only(name), **given) for name in one.at], fuse)

    # The mathematics is in float32 at least, also under the caller's autocast.
    device = trace.inputs.device.type
    with uninterrupted(), torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
        values = smoothed(trace, computed, smooth) if smooth else computed(trace)
        values = values.expand(*trace.scores.shape, *values.shape[2:]).contiguous()  # (N, K, *grid)
    made = _provenance(trace, method, given, smooth, fuse)
    if not torch.isfinite(values).all():
        raise NotFinite(f"{method.name} at {made.layer!r} gave NaN or infinity, though the activations have none")
    if empty := int((values.flatten(2) == 0).all(2).sum()):
        notify(
            f"{method.name} at {made.layer!r}: {empty} of {trace.scores.numel()} maps are exactly zero everywhere; "
            "the layer says nothing about what was asked",
        )
    return Heatmap(values, trace.scores, trace.question, made)


def _provenance(
    trace: Trace, method: CamMethod, options: Mapping[str, Any], smooth: Smoothing | None, fuse: str | None
) -> Provenance:
    labels = sorted(set(trace.question.labels.flatten().tolist()))
    names: Mapping[int, str] = dict(enumerate(trace.origin.class_names or ()))
    if noun := getattr(trace.question, "noun", None):  # the labels are of no classes
        names = {label: f"{noun} {label}" for label in labels}
    looked_at = next((capture.returned for capture in trace.at.values()), trace.inputs)
    every = method.layers == "all"
    steps = [f"each layer's map positive, unit, on the same grid, and their {fuse}"] if fuse else []
    return Provenance(
        method=method.name,
        layer="every layer" if every else ", ".join(trace.at),
        layer_reason="the method takes them all" if every else trace.origin.layer_reason,
        layout=", ".join(dict.fromkeys(str(each.layout) for each in trace.at.values())),
        model=trace.origin.model,
        weights=trace.origin.weights,
        preprocess=trace.origin.preprocess,
        paper=method.paper,
        options={**method.options, **options},
        score=_said(trace.question),
        class_names={label: names[label] for label in labels if label in names},
        device=str(looked_at.device),
        dtype=str(looked_at.dtype).removeprefix("torch."),
        torch=torch.__version__,
        torchpeek=_version.__version__,
        steps=(*steps, str(smooth)) if smooth else tuple(steps),
    )


def _said(question: Question) -> str:
    """What a score is, and of a container which part of it is read."""
    kind, part = getattr(question, "kind", type(question).__name__), getattr(question, "part", "")
    return f"{kind}, from {part!r}" if part else str(kind)


def _chosen(methods: Iterable[str] | Mapping[str, Mapping[str, Any]]) -> Chosen:
    if isinstance(methods, str):
        methods = [methods]
    if not isinstance(methods, Iterable):
        raise InputError(f"methods is {methods!r}; give names, or a dict from a name to that method's options")
    options = methods if isinstance(methods, Mapping) else {name: {} for name in methods}
    if not options:
        raise InputError("methods is empty; name at least one (torchpeek methods lists them)")
    chosen = [(find_method(name), given) for name, given in options.items()]
    for method, given in chosen:
        method.check_options(given)
    return chosen

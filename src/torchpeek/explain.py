"""The front door for heatmaps: trace, explain, compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor, nn

from torchpeek import _version
from torchpeek.cam import FUSIONS, CamMethod, Smoothing, find_method, fused, smoothed, suited
from torchpeek.engine import (
    Given,
    Layout,
    ModelRunner,
    Origin,
    Reading,
    Target,
    Trace,
    as_given,
    suggest_layer,
    suggest_stages,
)
from torchpeek.engine.targets import ClassesPerSample, Question, as_target, innermost, of_samples
from torchpeek.engine.targets.neurons import layers_read
from torchpeek.errors import (
    AmbiguousCall,
    InputError,
    NoSpatialLayer,
    NotConnected,
    NotFinite,
    NotFired,
    OptionError,
    TargetError,
    notify,
)
from torchpeek.heatmap import Heatmap, Provenance
from torchpeek.hooks import Selection, select, uninterrupted
from torchpeek.models import Inputs, LoadedModel, Model, given_to, module_of
from torchpeek.models.quantised import quantisation_named, quantised_layers

TargetLike: TypeAlias = Any
"""None (the predicted class), a class index or name, a tensor or list of these (N,) or (N, K), or a tp.targets.*"""

LayoutLike: TypeAlias = Layout | str
"""How what a layer returns is to be read: `tp.Layout`, or its text, such as "tokens 1+14x14" or "channels-last"."""


def trace(
    model: Model,
    inputs: Inputs,
    *,
    layer: Selection | None = None,
    layout: LayoutLike | None = None,
    target: TargetLike = None,
    gradients: bool = True,
    ablations: bool = False,
    attention: bool = False,
) -> Trace:
    """One pass over `inputs`, kept: ask it for as many methods and classes as you like, without another forward pass.

    `layer` selects one layer, or a list several; None takes a suggested one, and the trace's `origin.layer_reason` says
    why that. `layout` says how what it returns is to be read, where its shape leaves a doubt: a Layout, or its text.
    With `gradients=False` no graph is kept, for methods that need none; with `ablations=True` the pass also keeps what
    `trace.ablate` needs, which otherwise takes one more, and with `attention=True` how the tokens of a transformer
    attended to each other, for the methods that need that. The model is left exactly as it was found.
    """
    where = _Where(layer, layout)
    plan = _Wanted(gradients=gradients, ablates=ablations, attention=attention)
    with quantisation_named(module_of(model)):
        return _traced(model, given_to(model, inputs), where, target, plan)


@dataclass(frozen=True)
class _Where:
    """Which layers are looked at, and how what they return is to be read."""

    layer: Selection | None
    layout: LayoutLike | None

    def __post_init__(self) -> None:
        if self.layout is not None:
            Reading.parsed(self.layout)
            if self.layer is None:
                raise InputError(f"layout={str(self.layout)!r} is for a layer that is named; layer= is missing")


@dataclass(frozen=True)
class _Wanted:
    """What the methods that are asked for together need of one pass."""

    gradients: bool
    ablates: bool = False
    attention: bool = False
    stages: int = 0  # layer=None is one layer of each of so many sizes of grid
    several: bool = False  # a pattern may select more than one layer
    nowhere: bool = False  # no layer is looked at


def _traced(model: Model, given: Given, where: _Where, target: TargetLike, plan: _Wanted) -> Trace:
    runner = ModelRunner(module_of(model))
    asked = as_target(target, _class_names(model))
    given = runner.observing(as_given(runner.model, given), asked)

    def passed(names: Sequence[str], reason: str) -> Trace:
        origin = _origin(model, reason)
        layouts = {} if where.layout is None else dict.fromkeys(names, Reading.parsed(where.layout))
        return runner.trace(
            given,
            names,
            asked,
            # Of a neuron it is not plain that it comes after the layer; gradients show it, whatever the method.
            gradients=plan.gradients or bool(layers_read(asked)),
            noting=plan.ablates,
            attention=plan.attention,
            origin=origin,
            layouts=layouts,
        )

    if where.layer is not None:
        several = plan.several or isinstance(where.layer, (list, tuple))
        return passed(_layers(runner.model, where.layer, several=several), "asked for")
    if plan.nowhere:
        return passed([], "")
    if plan.stages:
        stages = suggest_stages(runner.model, given, plan.stages, asked)
        return passed([each.layer for each in stages], stages[0].reason)
    try:
        found = suggest_layer(runner.model, given, asked)
        return passed([found.layer], found.reason)
    except (NoSpatialLayer, NotFired, AmbiguousCall, NotConnected):
        # What was remembered was of an input of another size, perhaps, or of another score.
        found = suggest_layer(runner.model, given, asked, anew=True)
        return passed([found.layer], found.reason)


@overload
def explain(
    model: Model,
    inputs: Inputs,
    *,
    method: str = ...,
    layer: Selection | None = ...,
    layout: LayoutLike | None = ...,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: int = ...,
    **options: Any,
) -> Heatmap: ...
@overload
def explain(
    model: Trace,
    *,
    method: str = ...,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: int = ...,
    **options: Any,
) -> Heatmap: ...
@overload
def explain(
    model: Model,
    inputs: Sequence[Inputs],
    *,
    method: str = ...,
    layer: Selection | None = ...,
    layout: LayoutLike | None = ...,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: int = ...,
    **options: Any,
) -> list[Heatmap]: ...
def explain(
    model: Model | Trace,
    inputs: Inputs | Sequence[Inputs] | None = None,
    *,
    method: str = "gradcam",
    layer: Selection | None = None,
    layout: LayoutLike | None = None,
    target: TargetLike = None,
    fuse: str | None = None,
    smooth: Smoothing | None = None,
    seed: int = 0,
    **options: Any,
) -> Heatmap | list[Heatmap]:
    """Which part of the picture decided: the Heatmap of one method.

    `model` is an nn.Module, a LoadedModel, or a Trace in place of both model and inputs. A list of inputs, which may
    differ in size, gives a list of heatmaps. `layer=None` takes a suggested layer, and `target=None` the predicted
    class; the provenance says which. `options` are the method's own (`torchpeek methods`); `seed` is for those that
    draw numbers; `smooth` averages over mirrored and scaled inputs.

    Of a list of layers, or with `fuse`, the maps of several layers become one: each is cut off below zero, scaled to
    [0, 1] and resized to the largest grid, and `fuse` is "max" (of a list, unless said otherwise), "mean" or "product".
    With `fuse` and `layer=None` they are the last layers of the three coarsest sizes of grid. Methods that combine
    layers by themselves (polycam, refinecam) take the list as it is, or, with `layer=None`, the like.

    The model runs in eval mode and is left exactly as it was found.
    """
    method = find_method(method).name
    how = How(fuse, smooth, seed)
    where = _Where(layer, layout)
    found: Heatmap | list[Heatmap] = _compare(model, inputs, {method: options}, where, target, how)[method]
    return found


@overload
def compare(  # type: ignore[overload-overlap]  # a str is a Sequence, too; as a path it is one input
    model: Model,
    inputs: Inputs,
    *,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]],
    layer: Selection | None = ...,
    layout: LayoutLike | None = ...,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: int = ...,
) -> dict[str, Heatmap]: ...
@overload
def compare(
    model: Trace,
    *,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]],
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: int = ...,
) -> dict[str, Heatmap]: ...
@overload
def compare(
    model: Model,
    inputs: Sequence[Inputs],
    *,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]],
    layer: Selection | None = ...,
    layout: LayoutLike | None = ...,
    target: TargetLike = ...,
    fuse: str | None = ...,
    smooth: Smoothing | None = ...,
    seed: int = ...,
) -> dict[str, list[Heatmap]]: ...
def compare(
    model: Model | Trace,
    inputs: Inputs | Sequence[Inputs] | None = None,
    *,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]],
    layer: Selection | None = None,
    layout: LayoutLike | None = None,
    target: TargetLike = None,
    fuse: str | None = None,
    smooth: Smoothing | None = None,
    seed: int = 0,
) -> dict[str, Heatmap] | dict[str, list[Heatmap]]:
    """Several methods from one shared trace: one forward pass and, if any of them needs it, one backward pass.

    Besides these, each runs what its entry in `torchpeek methods` says. Methods that combine layers share another
    trace, of their own layers, unless `layer` says which. `methods` are names, or a dict from a name to that method's
    options. Everything else is as for `explain`.
    """
    where, how = _Where(layer, layout), How(fuse, smooth, seed)
    found: dict[str, Heatmap] | dict[str, list[Heatmap]] = _compare(model, inputs, methods, where, target, how)
    return found


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


def _compare(
    model: Model | Trace,
    inputs: Inputs | Sequence[Inputs] | None,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]],
    where: _Where,
    target: TargetLike,
    how: How,
) -> Any:  # the overloads of compare() say what it is when
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
            return _compare_each(model, inputs, chosen, where, target, how)
    with quantisation_named(module_of(model)):
        return _compare_batch(model, given_to(model, inputs), chosen, where, target, how)


def _compare_batch(
    model: Model, given: Given, chosen: Chosen, where: _Where, target: TargetLike, how: How
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
        plan = _Wanted(
            gradients=attention or any(method.needs == "gradients" for method, _ in together),
            ablates=any(method.ablates for method, _ in together),
            attention=attention,
            stages=stages,
            several=how.fuse is not None or all(method.layers == "many" for method, _ in together),
            nowhere=all(method.layers == "all" for method, _ in together),
        )
        kept = _traced(model, given, where, target, plan)
        found |= {method.name: _heatmap(kept, method, options, how) for method, options in together}
    return {method.name: found[method.name] for method, _ in chosen}


def _compare_each(
    model: Model, inputs: Sequence[Any], chosen: Chosen, where: _Where, target: TargetLike, how: How
) -> dict[str, list[Heatmap]]:
    """One batch for each run of inputs of the same shape; then taken apart again."""
    calls = [given_to(model, each) for each in inputs]
    if not calls:
        raise InputError("inputs is an empty list; give at least one")
    asked = as_target(target, _class_names(model))
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
        for name, heatmap in _compare_batch(model, together, chosen, where, part, how).items():
            start = 0
            for given in run:
                found[name].append(heatmap[start : start + len(given)])
                start += len(given)
        done += size
    return found


def _runs_of_one_shape(calls: list[Given], most: int = 16) -> list[list[Given]]:
    """Those that can be one batch: pictures of one size, and nothing else."""
    runs: list[list[Given]] = []
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

    smooth = how.smooth and suited(how.smooth, trace.question)

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
            "the layer says nothing about that class",
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


def _layers(module: nn.Module, layer: Selection, *, several: bool) -> list[str]:
    """The names of the layers that are asked for: one, unless several may be."""
    names = list(select(module, _spelled(module, layer)))
    if len(names) > 1 and not several:
        listed = ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")
        raise AmbiguousCall(
            f"layer {layer!r} selects {len(names)} layers ({listed}); a heatmap is of one. Name one of them, or say "
            "how their maps become one: fuse='max', 'mean' or 'product' (--fuse)"
        )
    return names


def _spelled(module: nn.Module, layer: Selection) -> Selection:
    """Names as they are here: in a wrapper of the model also without, in the model also with, the wrapper's prefix."""
    if isinstance(layer, (list, tuple)):
        return [_spelled(module, each) for each in layer]
    if not isinstance(layer, str):
        return layer
    if isinstance(module, _WRAPPERS):
        return layer if layer.partition(".")[0] == "module" else f"module.{layer}"
    return layer if hasattr(module, "_orig_mod") else layer.removeprefix("_orig_mod.")


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def _type_name(module: nn.Module) -> str:
    """Of the network itself, not of what runs it."""
    if isinstance(module, _WRAPPERS):
        return _type_name(module.module)
    compiled = type(module).__name__ == "OptimizedModule"
    return _type_name(module.get_submodule("_orig_mod")) if compiled else type(module).__name__


def _class_names(model: Model) -> Sequence[str] | None:
    return model.class_names if isinstance(model, LoadedModel) else None


def _origin(model: Model, layer_reason: str) -> Origin:
    if not isinstance(model, LoadedModel):
        return Origin(_type_name(model), layer_reason=layer_reason)
    spec = model.spec or _type_name(model.module)
    own = f"the model's own ({getattr(model.preprocess, '__name__', type(model.preprocess).__name__)})"
    says = "__str__" in vars(type(model.preprocess))  # a function does not
    how = str(model.preprocess) if says else own
    return Origin(spec, model.weights, how, layer_reason, model.class_names)


__all__ = ["Inputs", "Model", "Target", "compare", "explain", "trace"]

"""The heatmaps of several methods, from as few passes as they need together, over one batch or many inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from torchpeek import _version
from torchpeek.cam import (
    FUSIONS,
    METHODS,
    CamMethod,
    Smoothing,
    fused,
    fusion_step,
    smoothed,
    without_unsuitable_flip,
)
from torchpeek.engine import (
    ModelCall,
    Question,
    Trace,
    all_finite,
    label_noun,
    output_part,
    score_kind,
    stop_iteration_restored,
    takes_a_list,
)
from torchpeek.engine.forward_arguments import call_with
from torchpeek.engine.targets import ClassesPerSample, as_target, innermost, of_samples
from torchpeek.errors import InputError, MethodNotApplicable, NotConnected, NotFinite, OptionError, TargetError, notify
from torchpeek.explanation.plan import ASKED_FOR, MethodSelection, PlannedPass, plan_passes, run_pass, selected_methods
from torchpeek.explanation.request import (
    ExplanationRequest,
    LayerChoice,
    TargetLike,
    explanation_request,
    inputs_with_picture,
)
from torchpeek.heatmap import Heatmap
from torchpeek.hooks import grad_mode
from torchpeek.models import Inputs, Model, model_call_for, module_of
from torchpeek.models.quantised import quantisation_errors, quantised_layers
from torchpeek.picture import Picture
from torchpeek.provenance import Provenance
from torchpeek.registry import NamesOrOptions


@dataclass(frozen=True)
class HeatmapOptions:
    """What a heatmap depends on besides its method, layer and target.

    Args:
        fuse: How the maps of several layers become one: "max", "mean" or "product". None where there is one layer.
        smooth: Which changed versions of the input are averaged over; None for none.
        seed: The seed of methods that draw random numbers.

    Raises:
        OptionError: When `fuse` is none of these.
    """

    fuse: str | None = None
    smooth: Smoothing | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.fuse is not None and self.fuse not in FUSIONS:
            raise OptionError(f"fuse is {self.fuse!r}; allowed: {', '.join(map(repr, FUSIONS))}, or None")


def compute_heatmaps(
    model: Model | Trace,
    inputs: Inputs | Sequence[Inputs] | None,
    methods: NamesOrOptions,
    choice: LayerChoice,
    target: TargetLike,
    options: HeatmapOptions,
) -> Any:  # the overloads of compare() give the types
    """What compare() returns: for each method its Heatmap, or, for a list of inputs, one Heatmap for each input."""
    selection = selected_methods(methods)
    if isinstance(model, Trace):
        if inputs is not None or choice.layer is not None:
            raise InputError("a Trace has its inputs and its layer; give it alone, or the model with both")
        trace = model if target is None else model.with_target(as_target(target, model.origin.class_names))
        return _of_pass(trace, selection, options)
    if inputs is None:
        raise InputError("inputs is missing. Next: give (model, inputs), or a trace alone")
    with quantisation_errors(module_of(model)):
        if isinstance(inputs, (list, tuple)):
            return _of_list(model, inputs, selection, choice, target, options)
        return _of_batch(explanation_request(model, inputs, choice, target), selection, options)


def explain_methods(
    model: Model,
    inputs: Inputs,
    methods: Mapping[str, Mapping[str, Any]],
    choice: LayerChoice,
    target: TargetLike,
    options: HeatmapOptions,
) -> tuple[Trace, dict[str, Heatmap]]:
    """The heatmaps of several methods, together with the trace of one of their passes.

    All passes score what the target was bound to in the first: the same class, even where rounding differs.
    """
    with quantisation_errors(module_of(model)):
        selection = selected_methods(methods)
        request = explanation_request(model, inputs, choice, target)
        # A pass at the named or the default layer comes first, if there is one.
        first, *others = sorted(
            _plan(request, selection, options),
            key=lambda planned: (planned.requirements.attention, planned.requirements.stages),
        )
        trace = run_pass(request, first.requirements)
        heatmaps = _of_pass(trace, first.methods, options)
        request = replace(request, target=trace.bound())
        for planned in others:
            heatmaps |= _of_pass(run_pass(request, planned.requirements), planned.methods, options)
    return trace, {method.name: heatmaps[method.name] for method, _ in selection}


def _of_batch(request: ExplanationRequest, selection: MethodSelection, options: HeatmapOptions) -> dict[str, Heatmap]:
    heatmaps: dict[str, Heatmap] = {}
    for planned in _plan(request, selection, options):
        heatmaps |= _of_pass(run_pass(request, planned.requirements), planned.methods, options)
    return {method.name: heatmaps[method.name] for method, _ in selection}


def _plan(request: ExplanationRequest, selection: MethodSelection, options: HeatmapOptions) -> list[PlannedPass]:
    through_all = any(method.layers == "all" or method.through_model for method, _ in selection)
    if through_all and quantised_layers(request.module):
        # Without this, the map would lack the share of the quantised layers.
        raise NotConnected("no gradient flows back through quantised layers")
    if request.layers is not None:
        _check_fuse(selection, request.layers, options)
    return plan_passes(selection, layer_named=request.layers is not None, fused=options.fuse is not None)


def _of_pass(trace: Trace, selection: MethodSelection, options: HeatmapOptions) -> dict[str, Heatmap]:
    _check_fuse(selection, trace.at, options)
    if trace.create_graph:
        _check_differentiable(selection, options)
    return {method.name: _heatmap(trace, method, own, options) for method, own in selection}


def _check_fuse(selection: MethodSelection, layers: Collection[str], options: HeatmapOptions) -> None:
    """Raise InputError where maps are to be fused and there are not several layers, or a method combines them."""
    if options.fuse is None:
        return
    for method, _ in selection:
        if method.layers == "none":
            raise InputError(
                f"fuse={options.fuse!r} makes one map of several layers; {method.name} looks at the input and "
                "not at a layer"
            )
        if method.layers != "one":
            raise InputError(
                f"fuse={options.fuse!r} is for methods of one layer; {method.name} combines layers by itself"
            )
    if len(layers) == 1:
        raise InputError(
            f"fuse={options.fuse!r} makes one map of several layers; got one, {next(iter(layers))!r}. Give a list or a "
            "pattern of layers, or layer=None for those of the coarsest grids"
        )


def _check_differentiable(selection: MethodSelection, options: HeatmapOptions) -> None:
    """Raise MethodNotApplicable where a map of a trace with create_graph needs further passes, or has no derivative."""
    for method, _ in selection:
        if not method.differentiable:
            able = ", ".join(name for name, each in METHODS.items() if each.differentiable)
            raise MethodNotApplicable(
                f"{method.name} is not defined for a trace with create_graph=True: it runs further passes, or its map "
                f"has no useful derivative. Allowed: {able}. Next: choose one of these, or leave out create_graph"
            )
    if options.smooth is not None:
        raise MethodNotApplicable(
            "smooth= runs further passes, which a trace with create_graph=True does not take. Next: leave out smooth"
        )


def _of_list(
    model: Model,
    inputs: Sequence[Any],
    selection: MethodSelection,
    choice: LayerChoice,
    target: TargetLike,
    options: HeatmapOptions,
) -> dict[str, list[Heatmap]]:
    """One batch for each run of inputs of the same shape; its heatmaps are taken apart again."""
    arguments = call_with(module_of(model), len(inputs)) if _are_tensors(inputs) else None
    if arguments and isinstance(inputs, tuple) and not takes_a_list(module_of(model)):
        raise InputError(
            f"inputs is a tuple of {len(inputs)} tensors, and forward takes so many arguments. Next: {arguments} for "
            "one call with these arguments, or a list for inputs one by one"
        )
    try:
        return _one_by_one(model, inputs, selection, choice, target, options)
    except InputError as error:
        if arguments is None or isinstance(error, TargetError) or arguments in str(error):
            raise
        advice = f"A list is of inputs one by one; for one call with these arguments: {arguments}"
        raise InputError(f"{error}. {advice}") from error


def _are_tensors(inputs: Sequence[Any]) -> bool:
    """Whether these may be the arguments of one call. What has one axis are labels."""
    return len(inputs) > 1 and all(isinstance(each, Tensor) and each.ndim > 1 for each in inputs)


def _one_by_one(
    model: Model,
    inputs: Sequence[Any],
    selection: MethodSelection,
    choice: LayerChoice,
    target: TargetLike,
    options: HeatmapOptions,
) -> dict[str, list[Heatmap]]:
    if not inputs:
        raise InputError("inputs is an empty list; give at least one")
    calls, pictures = [], []
    for each in inputs:
        read, picture = inputs_with_picture(model, each)
        calls.append(model_call_for(model, read))
        pictures.append(picture if len(calls[-1]) == len(picture) else ())
    request = explanation_request(model, calls[0], choice, target)
    total = sum(len(call) for call in calls)
    per_sample = innermost(request.target)
    if isinstance(per_sample, ClassesPerSample) and len(per_sample.labels) != total:
        raise TargetError(
            f"target has {len(per_sample.labels)} entries for {total} inputs; give one for each, or one for all"
        )
    heatmaps: dict[str, list[Heatmap]] = {method.name: [] for method, _ in selection}
    first = 0
    for run in _runs_of_one_shape(calls):
        size = sum(len(call) for call in run)
        batch = run[0] if len(run) == 1 else run[0].with_picture(torch.cat([call.picture for call in run]))
        of_batch = request.for_batch(batch, of_samples(request.target, first, first + size))
        for name, heatmap in _of_batch(of_batch, selection, options).items():
            start = 0
            for call in run:
                heatmaps[name].append(heatmap[start : start + len(call)])
                start += len(call)
        first += size
    return {
        name: [_of_picture(*each) for each in zip(inputs, pictures, of_method, strict=True)]
        for name, of_method in heatmaps.items()
    }


def _of_picture(inputs: object, pictures: Sequence[Picture], heatmap: Heatmap) -> Heatmap:
    """The heatmap with its picture. Its provenance says that the picture was reduced if it was."""
    provenance = heatmap.provenance
    if isinstance(inputs, Picture):
        provenance = replace(provenance, preprocess=inputs.preprocessing(provenance.preprocess))
    return replace(heatmap, pictures=pictures, provenance=provenance)


def _runs_of_one_shape(calls: list[ModelCall], most: int = 16) -> list[list[ModelCall]]:
    """Successive calls that can be one batch: pictures of one size, and no other arguments."""
    runs: list[list[ModelCall]] = []
    for call in calls:
        alike = runs and runs[-1][0].picture.shape[1:] == call.picture.shape[1:]
        single = call.is_single_tensor and bool(runs) and runs[-1][0].is_single_tensor
        if alike and single and sum(map(len, runs[-1])) < most:
            runs[-1].append(call)
        else:
            runs.append([call])
    return runs


def _heatmap(trace: Trace, method: CamMethod, own: Mapping[str, Any], options: HeatmapOptions) -> Heatmap:
    """The heatmap of one method; `own` are the method's own options."""
    arguments = {"seed": options.seed, **own} if "seed" in method.options else dict(own)
    fuse = (options.fuse or "max") if method.layers == "one" and len(trace.at) > 1 else None
    smooth = options.smooth and without_unsuitable_flip(options.smooth, trace.question)

    def of_each_view(version: Trace) -> Tensor:
        """(N, K, *grid), or (N, K, views, *grid) where the batch axis of the layers holds views."""
        if method.layers == "all" or version.views is None:
            return method.compute(version, **arguments)
        return torch.stack([method.compute(version.of_view(i), **arguments) for i in range(version.views)], dim=2)

    def compute(version: Trace) -> Tensor:
        if fuse is None:
            return of_each_view(version)
        return fused([of_each_view(version.only(layer)) for layer in version.at], fuse)

    # The mathematics is in float32 at least, also under the caller's autocast.
    device = trace.inputs.device.type
    full_precision = torch.autocast(device, enabled=False)
    with grad_mode(trace.create_graph, delays_signals=True), full_precision, stop_iteration_restored():
        values = smoothed(trace, compute, smooth) if smooth else compute(trace)
        values = values.expand(*trace.scores.shape, *values.shape[2:]).contiguous()  # (N, K, *grid)
    provenance = _provenance(trace, method, arguments, smooth, fuse)
    if not all_finite(values):
        raise NotFinite(f"{method.name} at {provenance.layer!r} gave NaN or infinity, though the scores have none")
    if zeros := int((values.flatten(2) == 0).all(2).sum()):
        why = "the method finds no evidence for or against the target there"
        if fuse:
            why = (
                "fusing sets negative values to zero, and leaves nothing of them. Next: name one of the layers for "
                "its signed map"
            )
        notify(
            f"{method.name} at {provenance.layer!r}: {zeros} of {trace.scores.numel()} maps are exactly zero "
            f"everywhere; {why}",
        )
    pictures = cast(Sequence[Picture], trace.origin.pictures)
    return Heatmap(values, trace.scores, trace.question, provenance, pictures if len(pictures) == len(values) else ())


def _provenance(
    trace: Trace, method: CamMethod, options: Mapping[str, Any], smooth: Smoothing | None, fuse: str | None
) -> Provenance:
    labels = sorted(set(trace.question.labels.flatten().tolist()))
    names: Mapping[int, str] = dict(enumerate(trace.origin.class_names or ()))
    if noun := label_noun(trace.question):  # the labels are no class indices
        names = {label: f"{noun} {label}" for label in labels}
    captures = {} if method.layers == "none" else trace.at
    returned = next((capture.returned for capture in captures.values()), trace.inputs)
    layer, reason = ", ".join(trace.at), trace.origin.layer_reason
    if method.layers == "all":
        layer, reason = "every layer", "the method takes them all"
    elif method.layers == "none":
        layer, ignored = "the input", reason == ASKED_FOR
        reason = "the method looks at the input" + ("; the layer that was asked for is ignored" if ignored else "")
    steps = [fusion_step(fuse)] if fuse else []
    return Provenance(
        method=method.name,
        layer=layer,
        layer_reason=reason,
        layout=", ".join(dict.fromkeys(str(each.layout) for each in captures.values())),
        model=trace.origin.model,
        weights=trace.origin.weights,
        preprocess=trace.origin.preprocess,
        paper=method.paper,
        options={name: _frozen(value) for name, value in {**method.options, **options}.items()},
        score=_score_name(trace.question),
        class_names={label: names[label] for label in labels if label in names},
        device=str(returned.device),
        dtype=str(returned.dtype).removeprefix("torch."),
        torch=torch.__version__,
        torchpeek=_version.__version__,
        steps=(*steps, str(smooth)) if smooth else tuple(steps),
        inputs=trace.forward_pass.call.digests,
    )


def _frozen(value: object) -> object:
    """A copy of an option's value that a later change of the user's own tensor, array or list does not reach."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        copied = torch.as_tensor(value).detach().clone()
        return copied if copied.ndim else copied.item()
    return value


def _score_name(question: Question) -> str:
    """What a score is, and, where the model returns several tensors, which of them it is read from."""
    kind, part = score_kind(question), output_part(question)
    return f"{kind}, from {part!r}" if part else kind

"""The planner: which methods share which pass, and at which layers each pass is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torchpeek.cam import CamMethod, find_method
from torchpeek.engine import CaptureRequest, Suggestion, Trace, suggest_layer, suggest_stages, trace_model
from torchpeek.engine.observed import layers_of_target
from torchpeek.errors import AmbiguousCall, InputError, NoSpatialLayer, NotConnected, NotFired, listed_names
from torchpeek.explanation.request import ExplanationRequest
from torchpeek.hooks import SelectedLayer, layer_at

MethodSelection: TypeAlias = list[tuple[CamMethod, Mapping[str, Any]]]
"""Methods with the options of each."""


@dataclass(frozen=True)
class PassRequirements:
    """What one pass must keep, for everything that is computed from it.

    Args:
        gradients: The graph from the layers on.
        prefix: What ran before the layer, for replays.
        attention: The attention weights.
        stages: Where no layer is named, how many to take: the last of each of the coarsest sizes of grid. 0 takes the
            one default layer.
        several: Whether a selection may match more than one layer.
        no_layer: Whether no layer is captured, because the methods read all layers by themselves.
    """

    gradients: bool
    prefix: bool = False
    attention: bool = False
    stages: int = 0
    several: bool = False
    no_layer: bool = False


@dataclass(frozen=True)
class PlannedPass:
    """One pass, and the methods that share it."""

    requirements: PassRequirements
    methods: MethodSelection


def selected_methods(methods: Iterable[str] | Mapping[str, Mapping[str, Any]]) -> MethodSelection:
    """Methods by name, with their options checked.

    Raises:
        InputError: When there are none.
        MethodNotFound: When a name is no method.
        OptionError: When a method has no such option.
    """
    if isinstance(methods, str):
        methods = [methods]
    if not isinstance(methods, Iterable):
        raise InputError(f"methods is {methods!r}; give names, or a dict from a name to that method's options")
    options = methods if isinstance(methods, Mapping) else {name: {} for name in methods}
    if not options:
        raise InputError("methods is empty; name at least one (torchpeek methods lists them)")
    selection = [(find_method(name), of_method) for name, of_method in options.items()]
    for method, of_method in selection:
        if not isinstance(of_method, Mapping):
            raise InputError(f"the options of method {method.name!r} are {of_method!r}; give a dict, such as {{}}")
        method.check_options(of_method)
    return selection


def plan_passes(methods: MethodSelection, *, layer_named: bool, fused: bool) -> list[PlannedPass]:
    """As few passes as the methods need together.

    All methods share one pass, with two exceptions. Methods that read attention need their own, because it keeps
    attention weights and their graph. Methods that combine layers, and all methods when maps are fused, need a pass at
    several layers where none is named.
    """
    groups: dict[tuple[int, bool], MethodSelection] = {}
    for method, options in methods:
        combines_layers = not layer_named and (method.layers == "many" or fused)
        key = (method.stages if combines_layers else 0, method.needs == "attention")
        groups.setdefault(key, []).append((method, options))
    return [
        PlannedPass(
            PassRequirements(
                gradients=attention or any(method.needs == "gradients" for method, _ in group),
                prefix=any(method.ablates for method, _ in group),
                attention=attention,
                stages=stages,
                several=fused or all(method.layers == "many" for method, _ in group),
                no_layer=attention or (not layer_named and all(method.layers == "all" for method, _ in group)),
            ),
            group,
        )
        for (stages, attention), group in groups.items()
    ]


def run_pass(request: ExplanationRequest, requirements: PassRequirements) -> Trace:
    """One pass at the layers that the user named, or else at those that suit the target.

    Raises:
        AmbiguousCall: When the selection matches several layers and one is needed.
        NoSpatialLayer: When no layer has a grid.
        TorchpeekError: As `trace_model` does.
    """
    if requirements.no_layer:
        return _trace_at(request, requirements, {}, "")
    if request.layers is not None:
        if len(request.layers) > 1 and not (requirements.several or request.several):
            raise AmbiguousCall(
                f"layer= selects {len(request.layers)} layers ({listed_names(request.layers)}); a heatmap is of one. "
                "Name one of them, or say how their maps become one: fuse='max', 'mean' or 'product' (--fuse)"
            )
        return _trace_at(request, requirements, request.layers, "asked for")
    module, call, target = request.module, request.call, request.target

    def trace_at(*suggestions: Suggestion) -> Trace:
        layers = {each.layer: layer_at(module, each.layer) for each in suggestions}
        return _trace_at(request, requirements, layers, suggestions[0].reason)

    if requirements.stages:
        return trace_at(*suggest_stages(module, call, requirements.stages, target))
    try:
        return trace_at(suggest_layer(module, call, target))
    except (NoSpatialLayer, NotFired, AmbiguousCall, NotConnected):
        # The remembered layer may have been found for an input of another size, or for another score.
        return trace_at(suggest_layer(module, call, target, anew=True))


def _trace_at(
    request: ExplanationRequest, requirements: PassRequirements, layers: Mapping[str, SelectedLayer], reason: str
) -> Trace:
    captures = CaptureRequest(
        layers,
        # An inner layer that the target reads may not come after the captured layer. Gradients show that, whatever
        # the method.
        gradients=requirements.gradients or bool(layers_of_target(request.target)),
        prefix=requirements.prefix,
        attention=requirements.attention,
        layouts=dict.fromkeys(layers, request.layout),
    )
    origin = replace(request.origin, layer_reason=reason)
    return trace_model(request.module, request.call, captures, request.target, origin)

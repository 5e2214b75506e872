"""The planner: which methods share which pass, and at which layers each pass is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from torchpeek.cam import CamMethod, find_method
from torchpeek.engine import (
    CaptureRequest,
    Refusal,
    Suggestion,
    Trace,
    attempted,
    suggest_layers,
    suggest_stages,
    trace_model,
)
from torchpeek.engine.ablation import dependent_classes
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.observed import layers_of_target
from torchpeek.engine.targets.question import output_part, reads_entries
from torchpeek.errors import (
    AmbiguousCall,
    InputError,
    NoSpatialLayer,
    NotConnected,
    NotFired,
    listed_names,
)
from torchpeek.explanation.request import ExplanationRequest
from torchpeek.hooks import SelectedLayer, layer_at
from torchpeek.registry import NamesOrOptions, options_by_name

ASKED_FOR = "asked for"
"""The reason for layers that the user named."""

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
        fused: Whether the maps of the layers become one. Of boxes at several scales, these are then the layers of the
            scales, whatever `stages` is.
        create_graph: Whether everything stays connected to the graph of the whole pass, for a training loss.
        no_layer: Whether no layer is captured, because the methods read all layers by themselves, or the input.
    """

    gradients: bool
    prefix: bool = False
    attention: bool = False
    stages: int = 0
    several: bool = False
    fused: bool = False
    no_layer: bool = False
    create_graph: bool = False


@dataclass(frozen=True)
class PlannedPass:
    """One pass, and the methods that share it."""

    requirements: PassRequirements
    methods: MethodSelection


def selected_methods(methods: NamesOrOptions) -> MethodSelection:
    """Methods by name, with their options checked.

    Raises:
        InputError: When there are none.
        MethodNotFound: When a name is no method.
        OptionError: When a method has no such option.
    """
    options = options_by_name("methods", "method", methods)
    if not options:
        raise InputError("methods is empty; name at least one (torchpeek methods lists them)")
    selection = [(find_method(name), of_method) for name, of_method in options.items()]
    return [(method, method.checked_options(of_method)) for method, of_method in selection]


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
                several=fused or all(method.layers in ("many", "none") for method, _ in group),
                fused=fused,
                no_layer=attention
                or all(method.layers == "none" or (method.layers == "all" and not layer_named) for method, _ in group),
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
        return _trace_at(request, requirements, {}, "" if request.layers is None else ASKED_FOR)
    if request.layers is not None:
        if len(request.layers) > 1 and not (requirements.several or request.several):
            raise AmbiguousCall(
                f"layer= selects {len(request.layers)} layers ({listed_names(request.layers)}); a heatmap is of one. "
                "Name one of them, or say how their maps become one: fuse='max', 'mean' or 'product' (--fuse)"
            )
        return _trace_at(request, requirements, request.layers, ASKED_FOR)
    if requirements.stages:
        stages = suggest_stages(
            request.module, request.call, requirements.stages, request.target, scales=requirements.fused
        )
        return _trace_at_suggestions(request, requirements, stages)
    if requirements.create_graph:  # a step of a training loop, which is not repeated at another layer
        suggestions = suggest_layers(request.module, request.call, request.target)
        return _trace_at_suggestions(request, requirements, suggestions)

    def at_suggestions(*, anew: bool) -> tuple[Sequence[Suggestion], Trace]:
        suggestions = suggest_layers(request.module, request.call, request.target, anew=anew)
        return suggestions, _trace_at_suggestions(request, requirements, suggestions)

    # The remembered layer may have been found for another version of the model.
    remembered = attempted(
        partial(at_suggestions, anew=False),
        partial(at_suggestions, anew=True),
        possible=lambda error: isinstance(error, (NoSpatialLayer, NotFired, AmbiguousCall, NotConnected)),
    )
    if isinstance(remembered, Refusal):
        return remembered.unchanged[1]
    suggestions, trace = remembered
    if len(suggestions) > 1:  # each box depends on some of them
        return trace
    [suggestion] = suggestions
    checkable = suggestion.dependent and reads_entries(trace.question)
    if not checkable or _depends_on_layer(trace, request, suggestion):
        return trace
    # Not all classes of this model have the same branch.
    classes = frozenset(trace.question.labels.flatten().tolist())
    [of_classes] = suggest_layers(request.module, request.call, request.target, classes=classes)
    if of_classes.layer == suggestion.layer:
        return trace
    return _trace_at_suggestions(request, requirements, [of_classes])


# By the signature of the call, the part of the output and the layer: the classes whose scores depend on that layer.
_DEPENDENT_CLASSES: ModelCache[tuple[object, str, str], frozenset[int]] = ModelCache(capacity=64)


def _depends_on_layer(trace: Trace, request: ExplanationRequest, suggestion: Suggestion) -> bool:
    """Whether each score depends on the suggested layer, which was chosen for all classes of the model together.

    The gradients of the pass show it for its own classes. A pass without gradients takes one more, which shows it for
    all classes of the model. What is known of a class is remembered.
    """
    key = request.call.signature, output_part(trace.question), suggestion.layer
    classes = frozenset(trace.question.labels.flatten().tolist())
    known = (_DEPENDENT_CLASSES.get(request.module, key) or frozenset()) | suggestion.labels
    if classes <= known:
        return True
    if "gradients_at" in trace.__dict__:
        if not bool((trace.gradients.flatten(2) != 0).any(2).all()):
            return False
        known |= classes
    else:
        known |= dependent_classes(trace.forward_pass, suggestion.layer)
    _DEPENDENT_CLASSES.put(request.module, key, known)
    return classes <= known


def _trace_at_suggestions(
    request: ExplanationRequest, requirements: PassRequirements, suggestions: Sequence[Suggestion]
) -> Trace:
    layers = {each.layer: layer_at(request.module, each.layer) for each in suggestions}
    return _trace_at(request, requirements, layers, suggestions[0].reason)


def _trace_at(
    request: ExplanationRequest, requirements: PassRequirements, layers: Mapping[str, SelectedLayer], reason: str
) -> Trace:
    captures = CaptureRequest(
        layers,
        # An inner layer that the target reads may not come after the captured layer. Gradients show that, whatever
        # the method.
        gradients=requirements.gradients or bool(layers and layers_of_target(request.target)),
        prefix=requirements.prefix,
        attention=requirements.attention,
        create_graph=requirements.create_graph,
        layouts=dict.fromkeys(layers, request.layout),
    )
    origin = replace(request.origin, layer_reason=reason)
    return trace_model(request.module, request.call, captures, request.target, origin)

"""One pass for what is asked together: of which layers, and what a heatmap made of it says of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from torchpeek.engine import (
    Layout,
    LayoutSpec,
    ModelCall,
    ModelRunner,
    Origin,
    Trace,
    as_model_call,
    suggest_layer,
    suggest_stages,
)
from torchpeek.engine.targets import as_target
from torchpeek.engine.targets.neurons import layers_read
from torchpeek.errors import AmbiguousCall, InputError, NoSpatialLayer, NotConnected, NotFired
from torchpeek.hooks import Selection, select
from torchpeek.models import LoadedModel, Model, module_of

TargetLike: TypeAlias = Any
"""None (the predicted class), a class index or name, a tensor or list of these (N,) or (N, K), or a tp.targets.*"""

LayoutLike: TypeAlias = Layout | str
"""How what a layer returns is to be read: `tp.Layout`, or its text, such as "tokens 1+14x14" or "channels-last"."""


@dataclass(frozen=True)
class Where:
    """Which layers are looked at, and how what they return is to be read."""

    layer: Selection | None
    layout: LayoutLike | None

    def __post_init__(self) -> None:
        if self.layout is not None:
            LayoutSpec.parsed(self.layout)
            if self.layer is None:
                raise InputError(f"layout={str(self.layout)!r} is for a layer that is named; layer= is missing")


@dataclass(frozen=True)
class Wanted:
    """What the methods that are asked for together need of one pass."""

    gradients: bool
    ablates: bool = False
    attention: bool = False
    stages: int = 0  # layer=None is one layer of each of so many sizes of grid
    several: bool = False  # a pattern may select more than one layer
    nowhere: bool = False  # no layer is looked at


def traced(model: Model, given: ModelCall, where: Where, target: TargetLike, plan: Wanted) -> Trace:
    """One pass, at the layers asked for, or else at those that are suggested for the target."""
    runner = ModelRunner(module_of(model))
    asked = as_target(target, class_names_of(model))
    given = runner.observing(as_model_call(runner.model, given), asked)

    def passed(names: Sequence[str], reason: str) -> Trace:
        origin = _origin(model, reason)
        layouts = {} if where.layout is None else dict.fromkeys(names, LayoutSpec.parsed(where.layout))
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


def class_names_of(model: Model) -> Sequence[str] | None:
    """Those that a model was loaded with."""
    return model.class_names if isinstance(model, LoadedModel) else None


def _origin(model: Model, layer_reason: str) -> Origin:
    if not isinstance(model, LoadedModel):
        return Origin(_type_name(model), layer_reason=layer_reason)
    spec = model.spec or _type_name(model.module)
    own = f"the model's own ({getattr(model.preprocess, '__name__', type(model.preprocess).__name__)})"
    says = "__str__" in vars(type(model.preprocess))  # a function does not
    how = str(model.preprocess) if says else own
    return Origin(spec, model.weights, how, layer_reason, model.class_names)

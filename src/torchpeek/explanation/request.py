"""The door: model, inputs, layers and target of one call, each checked and normalised once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias

from torch import nn

from torchpeek.argument_types import Allowed
from torchpeek.cached import cached_property
from torchpeek.engine import (
    Layout,
    LayoutSpec,
    ModelCall,
    Origin,
    Target,
    inspectable_module,
    network_name,
    with_observed_layers,
    with_wrapper_prefix,
)
from torchpeek.engine.layout_text import ALLOWED, parsed_layout
from torchpeek.engine.targets import as_target
from torchpeek.errors import InputError
from torchpeek.hooks import SelectedLayer, Selection, select
from torchpeek.models import LoadedModel, Model, model_call_for, module_of, with_picture_read
from torchpeek.picture import Picture

TargetLike: TypeAlias = Any
"""None (the predicted class), a class index or name, a tensor or list of these (N,) or (N, K), or a tp.targets.*"""

LayoutLike: TypeAlias = Annotated[Layout | str, Allowed(f"{ALLOWED}; or tp.Layout(...)")]
"""How to read what a layer returns: `tp.Layout`, or its text, such as "tokens 1+14x14" or "channels-last"."""

_STORED = 800  # longest side, in pixels, of a picture that is read here: about as many bytes as two inputs of 224 x 224


@dataclass(frozen=True)
class LayerChoice:
    """Which layers are explained, and the layout of their outputs; None for the default layer.

    Raises:
        InputError: When the layout cannot be parsed, or no layer is named that it could belong to.
    """

    layer: Selection | None = None
    layout: LayoutLike | None = None

    def __post_init__(self) -> None:
        depth, inner = 0, self.layer
        while isinstance(inner, (list, tuple)) and inner:
            depth, inner = depth + 1, inner[0]
            if depth > 20:
                raise InputError("layer is a list in a list, too many times; give one list of layers")
        if self.layout_spec is not None and self.layer is None:
            raise InputError(f"layout={str(self.layout)!r} is for a layer that is named; layer= is missing")

    @cached_property
    def layout_spec(self) -> LayoutSpec | None:
        """The layout, parsed."""
        return None if self.layout is None else parsed_layout(self.layout)


@dataclass(frozen=True, eq=False)
class ExplanationRequest:
    """What is explained, ready for the engine.

    Args:
        module: The module that runs and takes the hooks.
        call: What it is called with: copies of the user's tensors.
        target: What to explain.
        origin: Where the pass comes from, in words.
        layers: Name -> each layer, or call of one, that the user named; None for the default layer.
        several: Whether the user named them in a list, and so means more than one.
        layout: The layout of these layers' outputs, where the user gave one.
    """

    module: nn.Module
    call: ModelCall
    target: Target
    origin: Origin
    layers: Mapping[str, SelectedLayer] | None = None
    several: bool = False
    layout: LayoutSpec | None = None

    def for_batch(self, call: ModelCall, target: Target) -> ExplanationRequest:
        """The same request about another batch."""
        return replace(self, call=with_observed_layers(self.module, call, target), target=target)


def explanation_request(model: Model, inputs: object, choice: LayerChoice, target: TargetLike) -> ExplanationRequest:
    """The request for one batch of inputs: what the model takes, a Picture, or a ModelCall.

    Raises:
        InputError: When the model cannot be inspected, or the inputs are nothing that it can be called with.
        LayerNotFound: When the selection, or the target, names a layer that does not exist.
        TargetError: When `target` is nothing that names a target.
    """
    module = inspectable_module(module_of(model))
    inputs, pictures = inputs_with_picture(model, inputs)
    call = model_call_for(model, inputs)
    target = as_target(target, class_names_of(model))
    call = with_observed_layers(module, call, target)
    layers = None if choice.layer is None else select(module, with_wrapper_prefix(module, choice.layer))
    several = isinstance(choice.layer, (list, tuple))
    origin = replace(_origin(model, inputs), pictures=pictures if len(call) == len(pictures) else ())
    return ExplanationRequest(module, call, target, origin, layers, several, choice.layout_spec)


def inputs_with_picture(model: Model, inputs: object) -> tuple[object, tuple[Picture, ...]]:
    """The inputs, of which a path or a PIL image is read, and the Picture that their heatmap lies over, if any.

    A Picture of the user is that Picture. Of one that is read here, the image is reduced and the tensor is on the CPU,
    because a heatmap keeps it, and there may be many.
    """
    read = with_picture_read(model, inputs)
    if not isinstance(read, Picture):
        return read, ()
    return read, (read if read is inputs else replace(read.reduced(_STORED), tensor=read.tensor.cpu()),)


def class_names_of(model: Model) -> Sequence[str] | None:
    """The class names that a model was loaded with."""
    return model.class_names if isinstance(model, LoadedModel) else None


def preprocessing_words(model: LoadedModel) -> str:
    """Return the model's preprocessing in words."""
    if "__str__" not in vars(type(model.preprocess)):  # a function, or an object that does not describe itself
        return f"the model's own ({getattr(model.preprocess, '__name__', type(model.preprocess).__name__)})"
    return str(model.preprocess)


def _origin(model: Model, inputs: object) -> Origin:
    if not isinstance(model, LoadedModel):
        return Origin(network_name(model), preprocess=inputs.reduction if isinstance(inputs, Picture) else "")
    spec = model.spec or network_name(model.module)
    preprocess = preprocessing_words(model)
    if isinstance(inputs, Picture):
        preprocess = inputs.preprocessing(preprocess)
    return Origin(spec, model.weights_label, preprocess, class_names=model.class_names)

"""The public types of inputs, and how they become a ModelCall."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeAlias

from PIL import Image
from torch import Tensor, nn

from torchpeek.engine import Arguments, ModelCall, Trace, as_model_call
from torchpeek.errors import InputError, type_shown
from torchpeek.heatmap import Heatmap
from torchpeek.hooks import checked_model
from torchpeek.models.loaded import LoadedModel
from torchpeek.picture import Picture

Model: TypeAlias = nn.Module | LoadedModel
Inputs: TypeAlias = Tensor | Picture | str | PathLike[str] | Image.Image | Mapping[str, Any] | Arguments
"""A batch (N, C, *grid), a Picture, with a LoadedModel a path or PIL image, keyword arguments, or tp.Arguments."""


def model_call_for(model: Model, inputs: object, *, any_tensor: bool = False) -> ModelCall:
    """Return the inputs as a ModelCall with copies of all tensors, because the model may write into its arguments.

    A picture is moved to the model's device. A tensor stays on its device. A ModelCall is returned as it is. With
    `any_tensor`, a model without a picture among its arguments is allowed, such as one of texts.
    """
    if isinstance(inputs, ModelCall):
        return inputs
    module, inputs = module_of(model), with_picture_read(model, inputs)
    if any(isinstance(each, Heatmap) for each in (inputs.values() if isinstance(inputs, Mapping) else [inputs])):
        raise InputError("inputs is a heatmap, or a dict of heatmaps; give the inputs that they were made of")
    if isinstance(inputs, Picture):
        first = next(module.parameters(), None)
        inputs = inputs.tensor if first is None else inputs.tensor.to(first.device)
    return as_model_call(module, inputs, any_tensor=any_tensor).copied()


def with_picture_read(model: Model, inputs: object) -> object:
    """Return the Picture of a path or a PIL image, and any other inputs as they are.

    Raises:
        InputError: When the model has no preprocessing.
    """
    if not isinstance(inputs, (str, PathLike, Image.Image)):
        return inputs
    if not isinstance(model, LoadedModel):
        module_of(model)  # raises where it is no model at all
        raise InputError(
            f"inputs is {type_shown(inputs)}, and a bare {type(model).__name__} does not say how it becomes "
            "a tensor. Next: give a tensor, or tp.LoadedModel(model, preprocess) as the model"
        )
    return model.read(inputs)


def module_of(model: Model) -> nn.Module:
    """Return the network: that of a LoadedModel, or the module itself.

    Raises:
        InputError: When `model` is neither, or takes no hooks. The message says what to give.
    """
    if isinstance(model, Trace):
        raise InputError(
            "model is a Trace, which explain and compare take in place of the model and its inputs; allowed here: an "
            "nn.Module or a LoadedModel"
        )
    module = model.module if isinstance(model, LoadedModel) else model
    return checked_model(module, "an nn.Module or a LoadedModel (tp.load_model)")

"""What a model is given, as the tensor that goes into it."""

from __future__ import annotations

from os import PathLike
from typing import TypeAlias

from PIL import Image
from torch import Tensor, nn

from torchpeek.engine.forward import check_inputs
from torchpeek.errors import InputError
from torchpeek.models.loaded import LoadedModel
from torchpeek.picture import Picture

Model: TypeAlias = nn.Module | LoadedModel
Inputs: TypeAlias = Tensor | Picture | str | PathLike[str] | Image.Image
"""A batch (N, C, *grid); a Picture; with a LoadedModel also a path or a PIL image."""


def input_tensor(model: Model, inputs: object) -> Tensor:
    """(N, C, *grid). Pictures go to the model's device; a tensor stays where it is."""
    if isinstance(inputs, Picture):
        first = next(module_of(model).parameters(), None)
        return inputs.tensor if first is None else inputs.tensor.to(first.device)
    if isinstance(inputs, (str, PathLike, Image.Image)):
        if not isinstance(model, LoadedModel):
            raise InputError(
                f"inputs is a {type(inputs).__name__}, and a bare {type(model).__name__} does not say how it becomes "
                "a tensor. Next: give a tensor, or tp.LoadedModel(model, preprocess)"
            )
        return model.read(inputs).tensor
    check_inputs(inputs)
    assert isinstance(inputs, Tensor)  # for the type checker; check_inputs has said so
    return inputs


def module_of(model: Model) -> nn.Module:
    """The network itself."""
    return model.module if isinstance(model, LoadedModel) else model

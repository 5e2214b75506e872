"""Where a model is called: the only place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torchpeek.errors import InputError
from torchpeek.hooks import interruptible


def run(model: nn.Module, inputs: Tensor) -> Any:
    """Call the model; where it fails, its own exception says what it was given. The only call of a model."""
    try:
        with interruptible():
            return model(inputs)
    except Exception as error:
        first = next(model.parameters(), None)
        own = "" if first is None else f"; its parameters are {first.dtype} on {first.device}"
        shape = tuple(inputs.shape)
        error.add_note(f"{type(model).__name__} was given {inputs.dtype} of shape {shape} on {inputs.device}{own}")
        raise


def check_inputs(inputs: object) -> None:
    """Raise InputError unless `inputs` is a batch of at least one sample."""
    if not isinstance(inputs, Tensor):
        raise InputError(
            f"inputs is a {type(inputs).__name__}; a model is given a tensor (N, C, *grid). With a LoadedModel, a "
            "Picture, a path or a PIL image works, too"
        )
    if inputs.ndim < 2 or 0 in inputs.shape:
        raise InputError(f"inputs has shape {tuple(inputs.shape)}; allowed: (N, C, *grid) with at least one sample")

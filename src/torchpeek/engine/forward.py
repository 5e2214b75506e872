"""The only call of a model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.attempts import NEVER_REFUSALS, is_of_torch
from torchpeek.engine.first_layer import first_layer
from torchpeek.engine.gradients import inference_mode_restored
from torchpeek.engine.input_mismatch import mismatch, wrong_input
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import all_finite
from torchpeek.engine.observed import Observer
from torchpeek.engine.preserve import preserved, running_pass
from torchpeek.errors import InputError, NotConnected, TorchpeekError
from torchpeek.interrupts import interruptible
from torchpeek.signal_gate import is_of_handler


def run(model: nn.Module, call: ModelCall) -> Any:
    """Call the model, and return its output: an ObservedOutput where the call observes layers.

    An exception of the model gets a note with the shapes and types of its arguments. Ctrl-C comes through.

    Raises:
        NotConnected: When an operation with gradients needs a tensor from a part under inference mode.
        InputError: When the model raised because the inputs are none that it takes; the model's exception is the cause.
    """
    try:
        observer = Observer(call.observed)
        # The mode is restored outside of the part that Ctrl-C may interrupt.
        with inference_mode_restored(), interruptible(), observer.observing():
            output = _called(model, call)
    except (TorchpeekError, *NEVER_REFUSALS):
        raise
    except Exception as error:
        if is_of_handler(error):
            raise
        # Errors of the user's own classes stay what they are.
        if is_of_torch(error) and _INFERENCE_TENSOR in str(error):
            raise NotConnected(_no_inference_tensors(model)) from error
        # A text and no error: an error in a variable of this frame, which its traceback has, keeps the model alive.
        if is_of_torch(error) and (wrong := wrong_input(model, call, error, partial(_called, model, call))):
            raise InputError(wrong) from error
        description = _description(model, call)
        if description not in getattr(error, "__notes__", ()):  # the model may raise the same exception again
            error.add_note(description)
        raise
    return observer.result(output) if call.observed else output


# The beginning of torch's message, which no type of exception tells apart.
_INFERENCE_TENSOR = "Inference tensors cannot be saved for backward"


def _no_inference_tensors(model: nn.Module) -> str:
    """Why an operation with gradients met a tensor of inference mode, and what to do."""
    if any(parameter.is_inference() for parameter in model.parameters()):
        return (
            "the model's parameters were made under torch.inference_mode(), so no gradient flows through them. Next: "
            "make the model outside of that mode, or give copy.deepcopy(model), made outside"
        )
    return (
        "no gradient flows through a part that the model runs under torch.inference_mode(). Choose a layer inside or "
        "after that part, or a method that needs no gradients (torchpeek methods lists them); or let the model use "
        "torch.no_grad() there"
    )


def check_fits(model: nn.Module, call: ModelCall) -> None:
    """Raise InputError where the first layer with weights takes no such inputs. The pass ends at that layer."""
    with preserved(model):
        first = first_layer(model, partial(_called, model, call.for_one_pass()))
    if first is not None and first.is_strict and (wrong := mismatch(call, first)):
        raise InputError(wrong)


def _called(model: nn.Module, call: ModelCall) -> Any:
    args, kwargs = call.args_and_kwargs()
    with running_pass(model, lambda: (call.kind, call.signature, len(call))):
        output: Any = model(*args, **kwargs)
    return output


def _description(model: nn.Module, call: ModelCall) -> str:
    """The model's arguments and parameters in words, for a note on the model's own exception."""
    picture = call.model_picture
    text = f"{type(model).__name__} was given {picture.dtype} of shape {tuple(picture.shape)} on {picture.device}"
    if call.sample_paths:
        others = ", ".join(sorted(repr(path.partition(".")[2]) for path in call.sample_paths))
        text += f", and with each sample its own part of {others}, unless tp.Arguments(shared=[...]) says otherwise"
    first = next(model.parameters(), None)
    return text if first is None else f"{text}; its parameters are {first.dtype} on {first.device}"


def why_not_finite(inputs: Tensor, values: Tensor) -> str:
    """The end of an error message for `values` with NaN or infinity: in which samples, and what to check."""
    if inputs.is_floating_point() and not all_finite(inputs):
        return "; the input has them already"
    samples = (~torch.isfinite(values)).flatten(1).any(1).nonzero().flatten().tolist()
    half = " Half precision overflows above 65504; try float32." if values.dtype == torch.float16 else ""
    listed = ", ".join(map(str, samples[:8]))
    return f" in sample {listed}; the input has none. Check the weights and the input's range.{half}"

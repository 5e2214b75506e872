"""Where a model is called: the only place."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.closeness import close
from torchpeek.errors import InputError
from torchpeek.hooks import interruptible, nested


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


# For each model, by kind of inputs: whether it gives the same when they lie in memory channels last.
_CHANNELS_LAST: weakref.WeakKeyDictionary[nn.Module, dict[Any, bool]] = weakref.WeakKeyDictionary()


def run_fast(model: nn.Module, inputs: Tensor, *, half: bool) -> Any:
    """`run`, on a copy of the inputs that lies in memory as convolutions are fastest, where the model does not mind.

    That is channels last, on the CPU and, in `half` precision, anywhere. A model may insist on the usual format, or
    even give other numbers: that is tried on one sample, once for each kind of inputs.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    fastest = formats.get(inputs.ndim)
    if fastest is None or inputs.shape[2:].numel() == 1 or not (half or inputs.device.type == "cpu"):
        return run(model, inputs.clone(memory_format=torch.contiguous_format))
    known = _CHANNELS_LAST.setdefault(model, {})
    key = (tuple(inputs.shape[1:]), inputs.dtype, inputs.device, torch.is_autocast_enabled(inputs.device.type))
    if key not in known:
        known[key] = _same_in(model, inputs[:1], fastest)
    return run(model, inputs.clone(memory_format=fastest if known[key] else torch.contiguous_format))


def _same_in(model: nn.Module, sample: Tensor, fastest: torch.memory_format) -> bool:
    usual = run(model, sample.clone(memory_format=torch.contiguous_format))
    try:
        other = run(model, sample.clone(memory_format=fastest))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # in the usual format it did not fail
        return False
    pairs = zip(nested.leaves(usual), nested.leaves(other), strict=True)
    half = torch.is_autocast_enabled(sample.device.type)
    return all(close(two, one, torch.bfloat16 if half else one.dtype) for (_, one), (_, two) in pairs)


def check_inputs(inputs: object) -> None:
    """Raise InputError unless `inputs` is a batch of at least one sample."""
    if not isinstance(inputs, Tensor):
        raise InputError(
            f"inputs is a {type(inputs).__name__}; a model is given a tensor (N, C, *grid). With a LoadedModel, a "
            "Picture, a path or a PIL image works, too"
        )
    if inputs.ndim < 2 or 0 in inputs.shape:
        raise InputError(f"inputs has shape {tuple(inputs.shape)}; allowed: (N, C, *grid) with at least one sample")

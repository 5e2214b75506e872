"""Where a model is called: the only place."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import close
from torchpeek.engine.targets.neurons import Observed, observing
from torchpeek.hooks import containers
from torchpeek.interrupts import interruptible


def run(model: nn.Module, given: ModelCall) -> Any:
    """Call the model; where it fails, its own exception says what it was given. The only call of a model.

    Where layers are observed, what they return comes along, as an Observed.
    """
    args, kwargs = given.arguments()
    try:
        with interruptible(), observing(given.observed) as seen:
            output = model(*args, **kwargs)
    except Exception as error:
        error.add_note(_what_was_given(model, given))
        raise
    return Observed(output, seen, frozenset(given.observed)) if given.observed else output


def _what_was_given(model: nn.Module, given: ModelCall) -> str:
    """For an exception of the model's own: what it was called with."""
    picture = given.as_taken
    said = f"{type(model).__name__} was given {picture.dtype} of shape {tuple(picture.shape)} on {picture.device}"
    if given.by_sample:
        others = ", ".join(sorted(repr(path.partition(".")[2]) for path in given.by_sample))
        said += f", and with each sample its own part of {others}, unless tp.Arguments(shared=[...]) says otherwise"
    first = next(model.parameters(), None)
    return said if first is None else f"{said}; its parameters are {first.dtype} on {first.device}"


def why_not_finite(inputs: Tensor, found: Tensor) -> str:
    """The rest of a message that says that `found` has NaN or infinity: where, and what to look at."""
    if inputs.is_floating_point() and not torch.isfinite(inputs).all():
        return "; the input has them already"
    samples = (~torch.isfinite(found)).flatten(1).any(1).nonzero().flatten().tolist()
    half = " Half precision overflows above 65504; try float32." if found.dtype == torch.float16 else ""
    where = ", ".join(map(str, samples[:8]))
    return f" in sample {where}; the input has none. Check the weights and the input's range.{half}"


# For each model, by kind of inputs: whether it gives the same when they lie in memory channels last.
_CHANNELS_LAST: weakref.WeakKeyDictionary[nn.Module, dict[Any, bool]] = weakref.WeakKeyDictionary()


def run_fast(model: nn.Module, given: ModelCall, *, half: bool) -> Any:
    """`run`, on a copy of the pictures that lies in memory as convolutions are fastest, where the model does not mind.

    That is channels last, on the CPU and, in `half` precision, anywhere. A model may insist on the usual format, or
    even give other numbers: that is tried on one sample, once for each kind of inputs.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    picture = given.picture
    fastest = formats.get(picture.ndim)
    if fastest is None or given.size.numel() == 1 or not (half or picture.device.type == "cpu") or given.listed:
        return run(model, _lying(given, torch.contiguous_format))
    known = _CHANNELS_LAST.setdefault(model, {})
    key = (tuple(picture.shape[1:]), picture.dtype, picture.device, torch.is_autocast_enabled(picture.device.type))
    if key not in known:
        known[key] = _same_in(model, given.of(torch.tensor([0]), picture[:1]), fastest)
    return run(model, _lying(given, fastest if known[key] else torch.contiguous_format))


def _lying(given: ModelCall, how: torch.memory_format) -> ModelCall:
    return given.handed(given.picture.clone(memory_format=how))


def _same_in(model: nn.Module, sample: ModelCall, fastest: torch.memory_format) -> bool:
    usual = run(model, _lying(sample, torch.contiguous_format))
    try:
        other = run(model, _lying(sample, fastest))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # in the usual format it did not fail
        return False
    pairs = zip(containers.leaves(usual), containers.leaves(other), strict=True)
    half = torch.is_autocast_enabled(sample.picture.device.type)
    return all(close(two, one, torch.bfloat16 if half else one.dtype) for (_, one), (_, two) in pairs)

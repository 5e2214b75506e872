"""The memory format of pictures that convolutions compute fastest in."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from torchpeek.engine.attempts import Refusal, attempted
from torchpeek.engine.fixed_batch import with_fixed_batch
from torchpeek.engine.forward import run
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.numerics import close
from torchpeek.hooks import containers

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes

# By kind of input: whether the model returns the same numbers when the input's memory format is channels last.
_CHANNELS_LAST_IS_SAFE: ModelCache[Any, bool] = ModelCache()


def fastest_format(model: nn.Module, call: ModelCall, *, half: bool) -> torch.memory_format:
    """The memory format that convolutions compute fastest in, where the model returns the same numbers for it.

    That is channels last on the CPU, and in `half` precision on every device. A model may insist on the contiguous
    format, or return other numbers, so one sample is tried in both formats, once for each kind of input.
    """
    picture = call.picture
    channels_last = _CHANNELS_LAST.get(picture.ndim)
    suits = call.size.numel() > 1 and (half or picture.device.type == "cpu") and not call.takes_list
    if channels_last is None or not suits:
        return torch.contiguous_format
    safe = _CHANNELS_LAST_IS_SAFE.get(model, call.kind)
    if safe is None:
        same = with_fixed_batch(model, call, partial(_returns_the_same, model, call, channels_last))
        safe = _CHANNELS_LAST_IS_SAFE.put(model, call.kind, same)
    return channels_last if safe else torch.contiguous_format


def in_memory_format(call: ModelCall, memory_format: torch.memory_format) -> ModelCall:
    """The call for a single pass, with a copy of the pictures in this memory format."""
    return call.for_one_pass(call.picture.clone(memory_format=memory_format))


def _returns_the_same(model: nn.Module, call: ModelCall, memory_format: torch.memory_format, size: int | None) -> bool:
    sample = call.one_sample(size)

    def output(tried: torch.memory_format) -> Any:
        return run(model, in_memory_format(sample, tried))

    contiguous = output(torch.contiguous_format)
    other = attempted(partial(output, memory_format), partial(output, torch.contiguous_format))
    if isinstance(other, Refusal):
        return False
    pairs = zip(containers.leaves(contiguous), containers.leaves(other), strict=True)
    half = torch.is_autocast_enabled(sample.picture.device.type)
    return all(close(two, one, torch.bfloat16 if half else one.dtype) for (_, one), (_, two) in pairs)

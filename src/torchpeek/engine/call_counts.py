"""How often one pass calls each layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from torchpeek.engine.attempts import Refusal, attempted, shown_later
from torchpeek.engine.fixed_batch import with_fixed_batch
from torchpeek.engine.forward import run
from torchpeek.engine.hook_free import HookFreeModel, hook_free
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.preserve import preserved
from torchpeek.hooks import attached, is_sharded


@dataclass(frozen=True)
class CallCounts:
    """How often one pass calls each module.

    Args:
        by_module: The id of each module that was called -> the number of its calls.
        complete: Whether the pass came to its end; if not, modules may be called again, and others, too.
    """

    by_module: Mapping[int, int]
    complete: bool


_COUNTS: ModelCache[Any, CallCounts] = ModelCache(capacity=16)


def call_counts(model: nn.Module, call: ModelCall) -> CallCounts:
    """Count the calls of each module in a pass over one sample of the call.

    The pass is remembered for all calls of the same signature. It runs none of the user's hooks.
    """
    remembered = _COUNTS.get(model, call.signature)
    if remembered is not None:
        return remembered
    if any(map(is_sharded, model.modules())):
        return CallCounts({}, complete=False)  # the other ranks would wait
    counts: list[Counter[int]] = []  # of each pass: where the model fails, others follow that look for the cause
    depth = 0  # a model may call itself

    def start(*hook_arguments: Any) -> None:
        nonlocal depth
        if not depth:
            counts.append(Counter())
        depth += 1

    def end(*hook_arguments: Any) -> None:
        nonlocal depth
        depth -= 1

    def count(number: int, *hook_arguments: Any) -> None:
        counts[-1][number] += 1

    def counted(free: HookFreeModel, size: int | None) -> Counter[int]:
        nonlocal counts, depth
        depth = 0
        counts = []
        hooks = [(each, partial(count, id(original))) for each, original in free.modules]
        with attached(hooks, called=[(free.copy, start)], ended=[(free.copy, end)]), torch.no_grad():
            run(free.copy, call.one_sample(size).for_one_pass())
        return counts[0]

    with preserved(model):
        # One copy for all attempts: a pass of the model may leave in it what its hooks compute.
        in_free = partial(counted, hook_free(model))
        counted_calls = attempted(partial(with_fixed_batch, model, call, in_free), shown_later)
    if isinstance(counted_calls, Refusal):  # such as a model that fails at one sample, or needs the hooks of its layers
        return CallCounts(counts[0] if counts else {}, complete=False)
    return _COUNTS.put(model, call.signature, CallCounts(dict(counted_calls), complete=True))

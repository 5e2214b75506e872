"""A heatmap averaged over versions of the input that should not change it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from torchpeek.engine import Question, Trace
from torchpeek.errors import OptionError, notify


@dataclass(frozen=True)
class Smoothing:
    """Mirrored along the last axis or not, times scaled by each of the factors: for each a pass, and their mean.

    The factors scale the input as the model is given it, which for a picture is mostly its contrast. The defaults are
    six versions, one of which is the input itself.
    """

    flip: bool = True
    factors: Sequence[float] = (0.9, 1.0, 1.1)

    def __post_init__(self) -> None:
        factors = self.factors
        if isinstance(factors, str) or not isinstance(factors, Sequence) or not factors:
            raise OptionError(f"Smoothing(factors={factors!r}): give at least one number, such as (0.9, 1.0, 1.1)")
        if any(isinstance(each, bool) or not isinstance(each, (int, float)) or not 0 < each < inf for each in factors):
            raise OptionError(f"Smoothing(factors={factors!r}): every factor is a number above 0, and finite")

    def __str__(self) -> str:
        factors = ", ".join(f"{each:g}" for each in self.factors)
        return f"the mean over {'mirrored and not, ' if self.flip else ''}inputs times {factors}"


def without_unsuitable_flip(smoothing: Smoothing, question: Question) -> Smoothing:
    """Without mirroring, with a notice, where the question is of a place, which in a mirrored input is elsewhere."""
    if not smoothing.flip or not getattr(question, "positional", False):
        return smoothing
    notify(
        f"the inputs are not mirrored: {getattr(question, 'kind', 'the score')} is of a place, and would be elsewhere"
    )
    return replace(smoothing, flip=False)


def smoothed(trace: Trace, compute: Callable[[Trace], Tensor], smoothing: Smoothing) -> Tensor:
    """The mean of `compute` (N, K, *grid) over the versions of the trace's inputs, each turned back as it was."""
    values = []
    for mirrored in (False, True) if smoothing.flip else (False,):
        for factor in smoothing.factors:
            inputs = trace.inputs * factor
            same = factor == 1 and not mirrored
            version = trace if same else trace.again_of(inputs.flip(-1) if mirrored else inputs)
            heatmap = compute(version)
            values.append(heatmap.flip(-1) if mirrored else heatmap)
    return torch.stack(values).mean(0)

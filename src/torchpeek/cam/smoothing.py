"""Smoothing: a heatmap averaged over versions of the input that should not change it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from torchpeek.engine import Question, Trace, is_positional, score_kind
from torchpeek.errors import OptionError, notify
from torchpeek.keywords import checked_class


@checked_class
@dataclass(frozen=True)
class Smoothing:
    """Average the heatmap over mirrored and scaled inputs. Each version is a pass of its own.

    The defaults are six versions, one of which is the input itself.

    Args:
        flip: Whether to mirror the input along its last axis, too.
        factors: Positive factors of the model's input. For a picture they change mainly the contrast.

    Raises:
        OptionError: When `factors` is empty, or an entry is not a positive finite number.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> heatmap = tp.explain(model, torch.rand(1, 3, 8, 8), layer="0", smooth=tp.Smoothing(factors=(1.0,)))
        >>> heatmap.values.shape
        torch.Size([1, 1, 6, 6])
    """

    flip: bool = True
    factors: Sequence[float] = (0.9, 1.0, 1.1)

    def __post_init__(self) -> None:
        factors = self.factors
        if isinstance(factors, str) or not isinstance(factors, Sequence) or not factors:
            raise OptionError(f"factors is {factors!r}; give at least one number, such as (0.9, 1.0, 1.1)")
        if any(isinstance(each, bool) or not isinstance(each, (int, float)) or not 0 < each < inf for each in factors):
            raise OptionError(f"factors is {factors!r}; allowed: finite numbers above 0")

    def __str__(self) -> str:
        factors = ", ".join(f"{each:g}" for each in self.factors)
        return f"the mean over {'mirrored and not, ' if self.flip else ''}inputs times {factors}"


def without_unsuitable_flip(smoothing: Smoothing, question: Question) -> Smoothing:
    """Turn mirroring off, with a notice, if the question is about a position, which a mirrored input has elsewhere."""
    if not smoothing.flip or not is_positional(question):
        return smoothing
    notify(
        f"the inputs are not mirrored: {score_kind(question)} is about a position, which a mirrored input has elsewhere"
    )
    return replace(smoothing, flip=False)


def smoothed(trace: Trace, compute: Callable[[Trace], Tensor], smoothing: Smoothing) -> Tensor:
    """Return the mean of `compute` (N, K, *grid) over the versions of the inputs. Mirrored maps are mirrored back."""
    values = []
    for mirrored in (False, True) if smoothing.flip else (False,):
        for factor in smoothing.factors:
            inputs = trace.inputs * factor
            same = factor == 1 and not mirrored
            version = trace if same else trace.again_channels_first(inputs.flip(-1) if mirrored else inputs)
            heatmap = compute(version)
            values.append(heatmap.flip(-1) if mirrored else heatmap)
    return torch.stack(values).mean(0)

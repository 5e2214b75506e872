"""Fills: what replaces removed positions of the input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchpeek.cam.algebra import gaussian_blur
from torchpeek.errors import OptionError
from torchpeek.metrics.case import CleanPass


def filled(clean: CleanPass, name: object) -> Tensor:
    """Return the fill of each sample, (N, C, *size). Raises OptionError if no fill has that name."""
    if not isinstance(name, str) or name not in FILLS:
        raise OptionError(f"option baseline is {name!r}; allowed: {', '.join(map(repr, FILLS))}")
    return clean.once(("fill", name), lambda: FILLS[name](clean))


def zeros(clean: CleanPass) -> Tensor:
    """Zero in the model's input. For normalised pictures that is the mean colour."""
    return torch.zeros_like(clean.trace.inputs)


def mean(clean: CleanPass) -> Tensor:
    """The mean of each channel of the sample."""
    inputs = clean.trace.inputs
    return inputs.flatten(2).mean(2).view(*inputs.shape[:2], *(1 for _ in inputs.shape[2:])).expand_as(inputs)


def blur(clean: CleanPass) -> Tensor:
    """The sample blurred with 11 taps and sigma 5: the baseline of RISE's insertion (arXiv:1806.07421)."""
    return gaussian_blur(clean.trace.inputs, kernel=11, sigma=5.0)


def noise(clean: CleanPass) -> Tensor:
    """Uniform noise between the smallest and the largest value of each channel of the sample."""
    inputs = clean.trace.inputs
    drawn = [torch.rand(inputs.shape[1:], generator=each, dtype=torch.float64) for each in clean.generators(salt=1)]
    axes = tuple(range(2, inputs.ndim))
    low, high = inputs.amin(axes, keepdim=True), inputs.amax(axes, keepdim=True)
    return low + (high - low) * torch.stack(drawn).to(inputs)


FILLS: dict[str, Callable[[CleanPass], Tensor]] = {"zeros": zeros, "mean": mean, "blur": blur, "noise": noise}

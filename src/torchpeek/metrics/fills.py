"""Fills: what replaces removed positions of the input, by name or as the user's own numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from numbers import Real
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor

from torchpeek.cam.algebra import expanded, gaussian_blur
from torchpeek.cam.algebra import filled as numbers
from torchpeek.draws import fingerprint
from torchpeek.engine import seeded_draws
from torchpeek.errors import OptionError, shown, type_shown
from torchpeek.keywords import checked_keywords
from torchpeek.metrics.clean_pass import CleanPass


class _Fill:
    """What a fill may be."""

    @property
    def allowed(self) -> str:
        """What is allowed, for the error text."""
        return (
            f"{', '.join(map(repr, FILLS))}, a number, a tensor, or a function of the inputs that returns a tensor of "
            "their shape"
        )

    def take(self, value: Any) -> Any:
        """The fill. Raises ValueError for a name that is not in FILLS, and for what is no fill."""
        number = isinstance(value, Real) and not isinstance(value, bool)
        numbers_of_user = number or isinstance(value, Tensor) or hasattr(value, "__array__")
        if value not in FILLS if isinstance(value, str) else not (numbers_of_user or callable(value)):
            raise ValueError
        return value


Baseline: TypeAlias = Annotated[str | float | Tensor | Callable[[Tensor], Tensor], _Fill()]
"""A fill as an option: a name in FILLS, a number, a tensor, or a function of the inputs."""


def filled(clean: CleanPass, baseline: Baseline) -> Tensor:
    """Return the fill of each sample, (N, C, *size). Raises OptionError if `baseline` is none."""
    return clean.once(("fill", fill_key(baseline)), lambda: _values(clean, baseline))


def fill_key(baseline: Baseline) -> Hashable:
    """Return what tells one fill from another, so that passes with the same fill are shared."""
    # Tensors and functions are told apart by their id, which the options that hold them keep.
    return type(baseline), baseline if isinstance(baseline, (str, Real)) else id(baseline)


def _values(clean: CleanPass, baseline: Any) -> Tensor:
    """Compute the fill, (N, C, *size)."""
    inputs = clean.trace.inputs
    if isinstance(baseline, str) and baseline in FILLS:
        return FILLS[baseline](clean)
    number = isinstance(baseline, Real) and not isinstance(baseline, bool)
    if number or isinstance(baseline, Tensor) or hasattr(baseline, "__array__"):
        return numbers("baseline", baseline, inputs)
    if callable(baseline):
        return _of_function(baseline, inputs, clean.seed)
    raise OptionError(f"option baseline is {shown(baseline)}; allowed: {_Fill().allowed}")


def _of_function(function: Callable[[Tensor], Any], inputs: Tensor, seed: int) -> Tensor:
    """Call the function. What it draws at random follows from the seed, and no generator is left changed."""
    with seeded_draws([inputs.device], seed):
        values = function(inputs.clone())
    got = f"the baseline, {described(function)}, returned {type_shown(values)}"
    if isinstance(values, Tensor):
        got += f" {tuple(values.shape)}"
    if not isinstance(values, Tensor) or values.shape != inputs.shape:
        raise OptionError(f"{got}; allowed: a tensor {tuple(inputs.shape)}, like the inputs")
    return expanded(values, inputs, got)


def described(value: object) -> object:
    """Return an option's value for tables, JSON and comparisons: a tensor or a function becomes a short text."""
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        tensor = torch.as_tensor(value)
        if tensor.numel() == 1:
            return tensor.item()
        digest = fingerprint(tensor).hex()[:8]
        return f"tensor {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} {digest}"
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"function {getattr(value, '__module__', None) or 'unknown'}.{name}"
    return value


@checked_keywords
def described_options(options: Mapping[str, object]) -> dict[str, object]:
    """Return a metric's options as tables and JSON show them. A tensor or a function becomes a short text.

    Args:
        options: The options, name -> value.

    Returns:
        A dict of the same names. The text of a tensor has its shape, its dtype and a digest of its values, so that two
        different tensors have different texts.

    Example:
        >>> options = {"steps": 5, "baseline": torch.zeros(3, 1, 1)}
        >>> tp.metrics.described_options(options)["baseline"]
        'tensor (3, 1, 1) float32 ...'
    """
    return {name: described(value) for name, value in options.items()}


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
    return drawn_noise(clean, 1, salt=1)[:, 0]


def drawn_noise(clean: CleanPass, count: int, salt: int) -> Tensor:
    """Return `count` draws of the fill "noise" for each sample, (N, count, C, *size)."""
    inputs = clean.trace.inputs
    shape = (count, *inputs.shape[1:])
    drawn = [torch.rand(shape, generator=each, dtype=torch.float64) for each in clean.generators(salt)]
    axes = tuple(range(2, inputs.ndim))
    low, high = (each.unsqueeze(1) for each in (inputs.amin(axes, keepdim=True), inputs.amax(axes, keepdim=True)))
    return low + (high - low) * torch.stack(drawn).to(inputs)


FILLS: dict[str, Callable[[CleanPass], Tensor]] = {"zeros": zeros, "mean": mean, "blur": blur, "noise": noise}

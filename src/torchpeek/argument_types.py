"""Types of arguments: numbers within limits, and the check of a value."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Annotated, Any, Protocol, TypeAlias

from torchpeek.errors import InputError, OptionError, shown

_LARGEST = 2**63  # torch has no larger whole numbers


class Check(Protocol):
    """What the values of an argument are limited to, as in `steps: Annotated[int, Whole(1)] = 50`."""

    @property
    def allowed(self) -> str:
        """What is allowed, for the error text."""

    def take(self, value: Any) -> Any:
        """The value, as the function takes it. Raises ValueError or TypeError for one that is not allowed."""


@dataclass(frozen=True)
class Whole:
    """Whole numbers from `least` to `most`, also of NumPy and torch. True and False are none."""

    least: int = 1
    most: int | None = None

    @property
    def allowed(self) -> str:
        """What is allowed, for the error text."""
        return f"a whole number, {self.least:,} {'or more' if self.most is None else f'to {_digits(self.most)}'}"

    def take(self, value: Any) -> int:
        """The number as an int. Raises ValueError or TypeError for anything else."""
        number = whole_number(value)
        if number < self.least or (self.most is not None and number > self.most):
            raise ValueError
        return number


@dataclass(frozen=True)
class Number:
    """Finite numbers from `least` to `most`, also of NumPy and torch. True and False are none."""

    least: float = 0.0
    most: float = math.inf

    @property
    def allowed(self) -> str:
        """What is allowed, for the error text."""
        if self.most == math.inf:
            return f"a number, {self.least:g} or more"
        return f"a number, {self.least:g} to {self.most:g}"

    def take(self, value: Any) -> float:
        """The number. Raises ValueError or TypeError for anything else, also for NaN and infinity."""
        number = finite_number(value)
        if not self.least <= number <= self.most:
            raise ValueError
        return number


@dataclass(frozen=True)
class Allowed:
    """What is allowed, for the error text of an argument whose type says too little, as in
    `smooth: Annotated[Smoothing | None, Allowed("tp.Smoothing(), or None")]`."""

    text: str


PositiveInt: TypeAlias = Annotated[int, Whole()]
"""An argument that is a whole number, 1 or more."""

NonNegativeInt: TypeAlias = Annotated[int, Whole(0)]
"""An argument that is a whole number, 0 or more."""

Count: TypeAlias = Annotated[int, Whole(1, 1_000_000)]
"""How often something is done: a whole number from 1 to a million, because each takes time or memory."""

NonNegative: TypeAlias = Annotated[float, Number()]
"""An argument that is a number, 0 or more."""

Cells: TypeAlias = Annotated[int, Whole(1, 10_000)]
"""Into how many parts a side or a list is divided: a whole number from 1 to ten thousand, because memory grows with
it."""

Side: TypeAlias = Annotated[int, Whole(1, 10_000)]
"""The side of a picture that is drawn, in pixels: a whole number from 1 to ten thousand."""

PixelCount: TypeAlias = Annotated[int, Whole(), Allowed("a number of pixels, 1 or more")]
"""A length in pixels, 1 or more."""

Share: TypeAlias = Annotated[float, Number(most=1.0)]
"""An argument that is a number from 0 to 1."""

Seed: TypeAlias = Annotated[int, Whole(0, 2**63 - 1)]
"""The seed of random numbers: a whole number that a generator of torch takes."""


def checked_value(check: Check, name: str, value: Any) -> Any:
    """The value; a number of NumPy or torch becomes one of Python.

    Args:
        check: What is allowed.
        name: What the value is called in the error text.
        value: The value.

    Raises:
        OptionError: When the check does not allow the value.
    """
    try:
        return check.take(value)
    except (ValueError, TypeError, OverflowError, RuntimeError) as reason:
        if isinstance(reason, (InputError, RecursionError)):  # a check that says more; too few frames are left
            raise
        allowed = check.allowed
        if type(value) is int and abs(value) >= _LARGEST and " to " not in allowed:
            allowed += ", below 2**63"
        raise OptionError(f"{name} is {shown(value)}; allowed: {allowed}") from None


def _digits(number: int) -> str:
    return "2**63 - 1" if number == _LARGEST - 1 else f"{number:,}"


def _is_scalar(value: Any) -> bool:
    """Whether this is one number: no array or tensor with axes, and no truth value."""
    return type(value).__name__ not in ("bool", "bool_") and getattr(value, "ndim", 0) == 0


def whole_number(value: Any) -> int:
    """The number as an int. Raises ValueError or TypeError for what is none."""
    if type(value) is int and -_LARGEST <= value <= _LARGEST:
        return value
    if not _is_scalar(value) or str(getattr(value, "dtype", "")) == "torch.bool":
        raise TypeError
    number = operator.index(value)
    if abs(number) > _LARGEST:
        raise ValueError
    return number


def finite_number(value: Any) -> float:
    """The number, an int or a float. Raises ValueError or TypeError for what is none."""
    if type(value) is float and -math.inf < value < math.inf:
        return value
    if isinstance(value, int) and _is_scalar(value):
        number = float(value)  # raises OverflowError
        return value if abs(value) < _LARGEST else number  # torch takes no larger int
    dtype = str(getattr(value, "dtype", "bool"))  # of an array or a tensor without axes
    if not _is_scalar(value) or not (isinstance(value, (Real, Decimal)) or "float" in dtype or "int" in dtype):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number

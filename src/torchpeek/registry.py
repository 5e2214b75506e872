"""Registered functions: what methods and metrics have in common, and the limits of option values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, TypeAlias, get_type_hints

from torchpeek.cached import cached_property
from torchpeek.errors import OptionError


class Registered:
    """A function that is registered under a name, with its summary and its options."""

    kind: ClassVar[str]
    name: str
    compute: Callable[..., Any]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return inspect.getdoc(self.compute).splitlines()[0]  # type: ignore[union-attr]  # registration requires a docstring

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The function's options: name -> default value."""
        parameters = inspect.signature(self.compute).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}

    @cached_property
    def _limits(self) -> Mapping[str, Sequence[Limit]]:
        """The limits that the annotations of the options hold, by name."""
        try:
            hints = get_type_hints(self.compute, include_extras=True)
        except (NameError, TypeError):  # a user's own function, whose annotations cannot be evaluated here
            hints = {}
        return {name: getattr(hints.get(name), "__metadata__", ()) for name in self.options}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise OptionError for an option that the function does not have, or a value outside the option's limits."""
        for name, value in options.items():
            if name not in self.options:
                allowed = ", ".join(f"{key}={value!r}" for key, value in self.options.items()) or "none"
                raise OptionError(f"{self.kind} {self.name!r} has no option {name!r}; its options: {allowed}")
            if value is None and self.options[name] is None:
                continue
            for limit in self._limits[name]:
                limit.check(name, value)


class Limit(Protocol):
    """What the values of an option are limited to, as in `steps: Annotated[int, Whole(1)] = 50`."""

    def check(self, name: str, value: object) -> None:
        """Raise OptionError for a value of the option of that name that is not allowed."""


@dataclass(frozen=True)
class Whole:
    """Whole numbers, `least` or more."""

    least: int = 1

    def check(self, name: str, value: object) -> None:
        """Raise OptionError for anything else."""
        if not isinstance(value, int) or isinstance(value, bool) or value < self.least:
            raise OptionError(f"option {name} is {value!r}; allowed: a whole number, {self.least} or more")


@dataclass(frozen=True)
class Number:
    """Numbers from `least` to `most`."""

    least: float = 0.0
    most: float = float("inf")

    def check(self, name: str, value: object) -> None:
        """Raise OptionError for anything else, also for NaN."""
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not self.least <= value <= self.most:
            bounds = f"{self.least:g} or more" if self.most == float("inf") else f"{self.least:g} to {self.most:g}"
            raise OptionError(f"option {name} is {value!r}; allowed: a number, {bounds}")


PositiveInt: TypeAlias = Annotated[int, Whole()]
"""An option that is a whole number, 1 or more."""

NonNegative: TypeAlias = Annotated[float, Number()]
"""An option that is a number, 0 or more."""

Share: TypeAlias = Annotated[float, Number(most=1.0)]
"""An option that is a number from 0 to 1."""

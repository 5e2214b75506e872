"""Registered functions: what methods and metrics have in common, and the checks of option values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

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

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise OptionError for an option that the function does not have."""
        for name in options:
            if name not in self.options:
                allowed = ", ".join(f"{key}={value!r}" for key, value in self.options.items()) or "none"
                raise OptionError(f"{self.kind} {self.name!r} has no option {name!r}; its options: {allowed}")


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise OptionError unless the option's value is a whole number, `least` or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"option {name} is {value!r}; allowed: a whole number, {least} or more")


def check_number(name: str, value: object, least: float = 0.0, most: float = float("inf")) -> None:
    """Raise OptionError unless the option's value is a number from `least` to `most`."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        bounds = f"{least:g} or more" if most == float("inf") else f"{least:g} to {most:g}"
        raise OptionError(f"option {name} is {value!r}; allowed: a number, {bounds}")

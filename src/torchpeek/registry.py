"""What methods and metrics have in common: a function that is known by a name, and the checks of its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torchpeek.errors import OptionError


class Registered:
    """A function that is known by a name: what it says of itself, and which options it takes."""

    kind: ClassVar[str]
    name: str
    compute: Callable[..., Any]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return inspect.getdoc(self.compute).splitlines()[0]  # type: ignore[union-attr]  # registering insists on one

    @property
    def options(self) -> Mapping[str, Any]:
        """Keyword -> default."""
        parameters = inspect.signature(self.compute).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise OptionError for one that it does not have."""
        for name in options:
            if name not in self.options:
                allowed = ", ".join(f"{key}={value!r}" for key, value in self.options.items()) or "none"
                raise OptionError(f"{self.kind} {self.name!r} has no option {name!r}; its options: {allowed}")


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise OptionError unless an option is a whole number, at least so large."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"option {name} is {value!r}; allowed: a whole number, {least} or more")


def check_number(name: str, value: object, least: float = 0.0, most: float = float("inf")) -> None:
    """Raise OptionError unless an option is a number between these."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        bounds = f"{least:g} or more" if most == float("inf") else f"{least:g} to {most:g}"
        raise OptionError(f"option {name} is {value!r}; allowed: a number, {bounds}")

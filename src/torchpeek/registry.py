"""Registered functions: what methods and metrics have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, TypeAlias

from torchpeek.annotation_checks import checks_of
from torchpeek.argument_types import Allowed, Check, checked_value
from torchpeek.cached import cached_property
from torchpeek.errors import InputError, OptionError, shown

NamesOrOptions: TypeAlias = Annotated[
    str | Iterable[str] | Mapping[str, Mapping[str, Any]], Allowed("names, or a dict from a name to its options")
]
"""What `methods` and `metrics` may be."""


def options_by_name(argument: str, kind: str, value: NamesOrOptions) -> dict[str, Mapping[str, Any]]:
    """Name -> options, of what a user gave as `methods` or `metrics`: names, or a dict from a name to its options.

    Raises:
        InputError: When a name is no text, or options are no dict.
    """
    options: Any = value
    if not isinstance(value, Mapping):
        listed = [value] if isinstance(value, str) else list(value)
        for name in listed:
            if not isinstance(name, str):
                raise InputError(f"{argument} has {shown(name)}, which is no name of a {kind}; allowed: names")
        options = {name: {} for name in listed}
    for name, of_name in options.items():
        if not isinstance(of_name, Mapping):
            raise InputError(
                f"{argument}: the options of {kind} {shown(name)} are {shown(of_name)}; give a dict, such as {{}}"
            )
    return dict(options)


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
    def _checks(self) -> Mapping[str, Check]:
        """The checks of the options, from their annotations, by name."""
        return checks_of(self.compute)

    def checked_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, with numbers of NumPy and torch as numbers of Python.

        Raises OptionError for an option that the function does not have, or a value that its annotation does not allow.
        """
        checked = {}
        for name, value in options.items():
            if name not in self.options:
                allowed = ", ".join(f"{key}={value!r}" for key, value in self.options.items()) or "none"
                raise OptionError(f"{self.kind} {self.name!r} has no option {shown(name)}; its options: {allowed}")
            unset = value is None and self.options[name] is None
            check = None if unset else self._checks.get(name)
            checked[name] = value if check is None else checked_value(check, f"option {name}", value)
        return checked

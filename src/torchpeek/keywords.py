"""Arguments of public functions: misspelt keywords, and values that the annotations do not allow."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from types import FunctionType
from typing import Any, TypeVar, cast

from torchpeek.annotation_checks import checks_of, field_checks, passing_types
from torchpeek.argument_types import Check, checked_value
from torchpeek.errors import OptionError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# Words in the names of arguments, also of other libraries -> the keywords that they may stand for, where a function has
# them. The first word that fits decides.
_MEANT = {
    "layer": ("layer", "layers"),
    "layout": ("layout",),
    "reshape": ("layout",),
    "target": ("target",),
    "class": ("target",),
    "label": ("target",),
    "category": ("target",),
    "index": ("target",),
    "input": ("inputs", "batches"),
    "image": ("inputs", "batches"),
    "picture": ("inputs", "batches"),
    "tensor": ("inputs", "batches"),
    "method": ("method", "methods"),
    "algorithm": ("method", "methods"),
    "metric": ("metrics",),
    "batch": ("batch", "batches"),
    "grad": ("gradients",),
}


def checked_keywords(function: F) -> F:
    """Make a public function check its arguments: their keywords, and their values by the annotations.

    The function raises OptionError, with the keyword that is meant, for one that it does not have, and for a value that
    an annotation does not allow.

    Args:
        function: The function, or a method. If it takes any keyword, it checks these itself.
    """
    parameters = inspect.signature(function).parameters
    kinds = {each.kind for each in parameters.values()}
    by_position = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    takes_any = inspect.Parameter.VAR_POSITIONAL in kinds, inspect.Parameter.VAR_KEYWORD in kinds
    owned = by_position[:1] in (["self"], ["cls"])
    name = function.__name__

    def refuse(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) > len(by_position) and not takes_any[0]:
            named = ", ".join(f"{key}=" for key, each in parameters.items() if each.kind is each.KEYWORD_ONLY)
            following = f"name the others: {named}" if named else f"name each, such as {name}(x=...)"
            raise OptionError(
                f"{name} takes {' and '.join(by_position[owned:]) or 'nothing'} by position; got {len(args) - owned} "
                f"arguments. Next: {following}"
            )
        if not takes_any[1]:
            for keyword in kwargs:
                if keyword not in parameters:
                    raise OptionError(no_keyword(name, keyword, list(parameters)[owned:]))

    return cast("F", _checked_arguments(function, lambda: checks_of(function), refuse=refuse))


def _checked_arguments(
    function: Callable[..., Any],
    checks: Callable[[], Mapping[str, Check]],
    of_class: str = "",
    refuse: Callable[[tuple[Any, ...], dict[str, Any]], None] | None = None,
) -> Callable[..., Any]:
    """The function, which checks the values of its arguments.

    It is quick where there is nothing to say, because functions that are called for each layer are public, too.

    Args:
        function: The function.
        checks: Returns the check of each parameter. It is called when the function is first called, because an
            annotation may name what is imported later.
        of_class: What comes before the name of a parameter in an error text.
        refuse: Raises the error for more arguments by position, or for keywords, than the function has. It is called
            with all arguments where there may be such ones.
    """
    parameters = inspect.signature(function).parameters
    by_position = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    most, names = len(by_position), frozenset(parameters)
    # Of each parameter with a check, by keyword and by position: the types that pass, the check, the name in an error.
    by_keyword: dict[str, tuple[frozenset[type], Check, str]] = {}
    by_place: list[tuple[int, frozenset[type], Check, str]] = []
    is_prepared = False

    def prepare() -> None:
        nonlocal is_prepared
        by_keyword.update({name: (passing_types(each), each, of_class + name) for name, each in checks().items()})
        by_place[:] = [(place, *by_keyword[name]) for place, name in enumerate(by_position) if name in by_keyword]
        is_prepared = True

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        count = len(args)
        if refuse is not None and (count > most or not names.issuperset(kwargs)):
            refuse(args, kwargs)
        if not is_prepared:
            prepare()
        for place, types, check, label in by_place:
            if place >= count:
                break
            value = args[place]
            if type(value) not in types:
                taken = checked_value(check, label, value)
                if taken is not value:
                    args = (*args[:place], taken, *args[place + 1 :])
        for keyword, value in kwargs.items():
            if keyword in by_keyword:
                types, check, label = by_keyword[keyword]
                if type(value) not in types:
                    kwargs[keyword] = checked_value(check, label, value)
        return function(*args, **kwargs)

    return checked


def checked_methods(cls: type[T]) -> type[T]:
    """Make the public methods that a class defines check their arguments, as `checked_keywords` does."""
    for name, method in list(vars(cls).items()):
        if name.startswith("_") and name != "__call__":
            continue
        if isinstance(method, FunctionType):
            setattr(cls, name, checked_keywords(method))
        elif isinstance(method, (classmethod, staticmethod)):
            setattr(cls, name, type(method)(checked_keywords(method.__func__)))
    return cls


def checked_class(cls: type[T]) -> type[T]:
    """Make a public class check its own arguments, and those of its public methods.

    The fields of a dataclass are checked, too, where `dataclasses.replace` sets them.
    """
    init = vars(cls).get("__init__")
    if init is not None:

        def checks() -> Mapping[str, Check]:
            return field_checks(cls) if is_dataclass(cls) else checks_of(init)

        setattr(cls, "__init__", _checked_arguments(init, checks, f"{cls.__name__}: "))  # noqa: B010  # mypy refuses =
    return checked_methods(cls)


def no_keyword(function: str, keyword: str, keywords: Iterable[str]) -> str:
    """The error text for a keyword that a function does not have."""
    keywords = list(keywords)
    meant = closest_keyword(keyword, keywords)
    suggestion = "." if meant is None else f"; did you mean {meant}=?"
    return f"{function} has no keyword {keyword!r}{suggestion} Its keywords: {', '.join(keywords)}"


def closest_keyword(keyword: str, keywords: Iterable[str]) -> str | None:
    """The one of the keywords that a misspelt one stands for; None where it is like none."""
    keywords = list(keywords)
    for word, meant in _MEANT.items():
        if word in keyword.lower() and (found := next((each for each in meant if each in keywords), None)):
            return found
    return next(iter(difflib.get_close_matches(keyword.lower(), keywords, n=1, cutoff=0.6)), None)

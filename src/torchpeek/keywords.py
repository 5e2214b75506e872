"""Keywords of public functions: say which one is meant where one is misspelt."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from torchpeek.errors import OptionError

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
    """Make a public function raise OptionError, with the keyword that is meant, for one that it does not have.

    Args:
        function: The function. If it takes any keyword, it checks these itself.
    """
    parameters = inspect.signature(function).parameters
    kinds = {each.kind for each in parameters.values()}
    by_position = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    name = function.__name__

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(by_position):
            others = ", ".join(f"{each}=" for each in parameters if each not in by_position and each != "options")
            raise OptionError(
                f"{name} takes {' and '.join(by_position)} by position; got {len(args)} arguments. Next: name the "
                f"others: {others}"
            )
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            for keyword in kwargs:
                if keyword not in parameters:
                    raise OptionError(no_keyword(name, keyword, parameters))
        return function(*args, **kwargs)

    return cast("F", checked)


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

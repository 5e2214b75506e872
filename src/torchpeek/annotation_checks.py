"""Which check the annotation of an argument stands for."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Hashable, Iterable, KeysView, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from inspect import signature, unwrap
from io import IOBase
from itertools import islice, pairwise
from os import PathLike, fsencode, fspath
from pathlib import PosixPath, PurePath, WindowsPath
from types import FunctionType, NoneType, UnionType
from typing import IO, Annotated, Any, BinaryIO, Literal, Union, get_args, get_origin

from torchpeek.argument_types import Allowed, Check, Number, Whole, finite_number, whole_number
from torchpeek.errors import InputError, with_article

_LONGEST_PATH = 4096  # bytes; no system takes a longer one
_MOST_ENTRIES = 1_000_000  # of a generator, which may never end

# Classes that another check is for. Its error also says what to give in place of a model or its inputs.
_EXPLAINED_ELSEWHERE = ("Module", "LoadedModel", "Trace", "Picture", "Image", "Arguments")


def checks_of(function: Callable[..., Any]) -> dict[str, Check]:
    """The checks of a function's parameters, by name. A parameter that takes anything has none."""
    parameters, names = signature(function).parameters, unwrap(function).__globals__  # a decorator has names of its own
    found = {}
    for name, annotation in function.__annotations__.items():
        check = check_of(_evaluated(annotation, names))
        if check is not None and name in parameters:
            found[name] = _also_default(check, parameters[name].default)
    return found


def field_checks(cls: Any) -> dict[str, Check]:
    """The checks of a dataclass's fields, by name, from the annotations of the class and of those above it."""
    owners = {name: owner for owner in reversed(cls.__mro__) for name in vars(owner).get("__annotations__", {})}
    found = {}
    for field in fields(cls):
        if field.init:
            names = vars(sys.modules[owners[field.name].__module__])
            check = check_of(_evaluated(field.type, names))
            if check is not None:
                found[field.name] = _also_default(check, field.default)
    return found


def _also_default(check: Check, default: Any) -> Check:
    """The check, which also takes None where it is the default, whatever the annotation says."""
    try:
        if default is None:
            check.take(None)
    except (ValueError, TypeError):
        return _either([check, _NONE]) or check
    return check


def _evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    """The annotation; Any where it is a text that cannot be evaluated here, such as one only for type checkers."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(names))
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any


@dataclass(frozen=True)
class _Simple:
    allowed: str
    take: Callable[[Any], Any]
    passing: frozenset[type] = frozenset()  # every value of just these types is taken as it is


def passing_types(check: Check) -> frozenset[type]:
    """Types whose values need no look: the check takes every one as it is. Subclasses are not among them."""
    return check.passing if isinstance(check, _Simple) else frozenset()


def _instance(cls: type | UnionType, allowed: str) -> Check:
    def take(value: Any) -> Any:
        if not isinstance(value, cls):
            raise TypeError
        return value

    return _Simple(allowed, take, frozenset({cls} if isinstance(cls, type) else get_args(cls)))


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if getattr(value, "ndim", 0) > 0:
        raise TypeError
    if str(getattr(value, "dtype", "")).endswith("bool") or operator.index(value) in (0, 1):
        return bool(value)
    raise ValueError


def _path(value: Any) -> Any:
    """A path that a file system can have: without NUL, and of letters that it can write."""
    text = fspath(value)
    if not isinstance(text, str):
        raise TypeError
    if "\0" in text or len(fsencode(text)) > _LONGEST_PATH:  # fsencode raises UnicodeEncodeError
        raise ValueError
    return value


def _function(value: Any) -> Any:
    if not callable(value):
        raise TypeError
    return value


def _file(value: Any) -> Any:
    if not (callable(getattr(value, "read", None)) and callable(getattr(value, "seek", None))):
        raise TypeError
    return value


def _iterable(value: Any) -> Any:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        raise TypeError
    return value


def _listed(value: Any) -> Any:
    """The value if it has an order and a length, as a list has; else a list of what it yields.

    A text, a dict and an open file are no lists. Nor is a set of anything but numbers, because it has no order.
    """
    if type(value) in (list, tuple):  # nearly always; the classes of collections.abc are slow to ask
        return value
    if isinstance(value, (Mapping, IOBase)):
        raise TypeError
    if isinstance(_iterable(value), Sequence) or hasattr(value, "ndim"):
        return value
    if isinstance(value, Set) and not isinstance(value, KeysView):  # the keys of a dict have an order
        return sorted(whole_number(each) for each in value)
    listed = list(islice(value, _MOST_ENTRIES + 1))
    if len(listed) > _MOST_ENTRIES:  # such as itertools.count()
        raise ValueError
    return listed


_NONE = _instance(NoneType, "None")
_PATH = _Simple("a path", _path)
_SIMPLE: dict[Any, Check] = {
    None: _NONE,
    NoneType: _NONE,
    bool: _Simple("True or False", _flag, frozenset({bool})),
    int: _Simple("a whole number", whole_number),
    float: _Simple("a finite number", finite_number),
    str: _instance(str, "a text"),
    BinaryIO: _Simple("an open binary file", _file),
    IO: _Simple("an open file", _file),
}


def check_of(annotation: Any) -> Check | None:
    """The check of an annotation; None where anything is allowed, or another check says more."""
    if isinstance(annotation, Hashable) and annotation in _SIMPLE:
        return _SIMPLE[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _limited(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        checks = [check_of(each) for each in arguments]
        return _either([each for each in checks if _PATH not in checks or each is not _SIMPLE[str]])
    if origin is Literal:
        return _literal(arguments)
    base = annotation if origin is None else origin
    if base is Callable:
        return _Simple("a function", _function, frozenset({FunctionType}))
    if not isinstance(base, type) or base is Any:  # Any is a class since Python 3.11
        return None
    if issubclass(base, (PurePath, PathLike)):
        return _PATH
    if issubclass(base, tuple) and base.__name__ == "Size":  # of torch: a tuple of whole numbers
        numbers = _sequence((int, ...))
        return _Simple(numbers.allowed, lambda value: base(numbers.take(value)))
    if issubclass(base, tuple) and base is not tuple:  # named tuples
        return _instance(base, f"a {base.__name__}")
    if issubclass(base, (Sequence, list, tuple)):
        return _sequence(arguments)
    if issubclass(base, Mapping):
        return _mapping(arguments)
    if base is Iterable:
        return _Simple("a list", _iterable)
    if base is object or base.__name__ in _EXPLAINED_ELSEWHERE:
        return None
    if getattr(base, "_is_protocol", False):
        return _protocol(base)
    return _instance(base, _words(base))


def _protocol(cls: type) -> Check:
    """An object with the attributes and methods of a Protocol."""
    members = [name for name, value in vars(cls).items() if not name.startswith("_") and _is_member(value)]

    def take(value: Any) -> Any:
        if isinstance(value, type) or not all(hasattr(value, name) for name in members):
            raise TypeError
        return value if "__call__" not in vars(cls) else _function(value)

    return _Simple(_words(cls), take)


def _is_member(value: Any) -> bool:
    return callable(value) or isinstance(value, property)


def _words(cls: type) -> str:
    name = cls.__qualname__.removesuffix("Like")
    if name == "Tensor":
        return "a tensor"
    return with_article(name)


def _limited(annotation: Any, metadata: Iterable[Any]) -> Check | None:
    """The check of Annotated: the limits decide alone, besides None. Where it has words, no other check says more."""
    words = next((each.text for each in metadata if isinstance(each, Allowed)), "")
    check: Check | None
    if limits := [each for each in metadata if hasattr(each, "take")]:
        check = _either([*limits, _NONE]) if NoneType in get_args(annotation) else limits[0]
    else:
        check = check_of(annotation)
    if check is None and words and isinstance(annotation, (type, UnionType)):
        return _instance(annotation, words)
    return check if check is None or not words else _Simple(words, check.take, passing_types(check))


def _either(checks: Sequence[Check | None]) -> Check | None:
    known = [each for each in checks if each is not None]
    if len(known) < len(checks):
        return None

    def take(value: Any) -> Any:
        for each in known:
            try:
                return each.take(value)
            except (ValueError, TypeError, OverflowError, RuntimeError) as reason:
                if isinstance(reason, (InputError, RecursionError)):
                    raise
        raise TypeError

    words = list(dict.fromkeys(each.allowed for each in known))
    last = ", or " if any(", " in each for each in words) else " or "
    return _Simple(last.join(filter(None, [", ".join(words[:-1]), words[-1]])), take, _passing_one(known))


def _passing_one(checks: Sequence[Check]) -> frozenset[type]:
    """Types whose values the first of these checks that allows them takes as they are."""
    passing = passing_types(checks[0])
    for before, check in pairwise(checks):
        if not isinstance(before, (_Simple, Whole, Number)):  # it may take any value
            break
        passing |= passing_types(check) & _NEVER_NUMBERS  # a number may be converted by a check that comes before
    return passing


_NEVER_NUMBERS = frozenset({NoneType, str, dict, PosixPath, WindowsPath, FunctionType})


def _literal(values: tuple[Any, ...]) -> Check:
    def take(value: Any) -> Any:
        if not isinstance(value, (str, int, NoneType)) or value not in values:
            raise ValueError
        return value

    return _Simple(", ".join(map(repr, values)), take)


def _sequence(arguments: tuple[Any, ...]) -> Check:
    """A list, or what lists values as it does; of arrays and tensors, one with axes. A text is no list of texts."""
    fixed = bool(arguments) and arguments[-1] is not Ellipsis and len(arguments) > 1
    each = [check_of(argument) for argument in arguments if argument is not Ellipsis] or [None]
    of_each = each[0].allowed if each[0] is not None else ""

    def take(value: Any) -> Any:
        value = _listed(value)
        if fixed and len(value) != len(each):
            raise TypeError
        if each[0] is None:
            return value
        if getattr(value, "ndim", 1) > 1:
            raise TypeError
        if hasattr(value, "tolist"):
            value = value.tolist()
        per_entry = each if fixed else each * len(value)
        taken = [check.take(entry) if check else entry for check, entry in zip(per_entry, value, strict=True)]
        same = all(map(operator.is_, taken, value))
        return value if same else tuple(taken) if isinstance(value, tuple) else taken

    if fixed:
        return _Simple(f"({', '.join(check.allowed if check else '...' for check in each)})", take)
    passing = frozenset({list, tuple}) if each[0] is None else frozenset()
    return _Simple(f"a list{f' (each {of_each})' if of_each else ''}", take, passing)


def _mapping(arguments: tuple[Any, ...]) -> Check:
    of_value = check_of(arguments[1]) if len(arguments) == 2 else None

    def take(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError
        if of_value is not None:
            for each in value.values():
                of_value.take(each)
        return value

    passing = frozenset({dict}) if of_value is None else frozenset()
    return _Simple(f"a dict{f' (each value {of_value.allowed})' if of_value is not None else ''}", take, passing)

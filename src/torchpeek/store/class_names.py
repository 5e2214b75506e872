"""Files with the names of a model's classes: a name in each line, or JSON."""

from __future__ import annotations

import re
from collections import Counter
from os import PathLike
from typing import Any

from torchpeek.errors import FormatError, listed_names, notify
from torchpeek.store.json_values import MOST_BYTES, parsed_json
from torchpeek.store.regular_files import read_regular


def read_class_names(path: str | PathLike[str]) -> list[str]:
    """Read the names of the classes, in the order of their indices.

    The file is UTF-8: a name in each line; a JSON list of names; or a JSON object, index -> name or name -> index. In
    place of a name, an object may have a list whose last entry is the name, as ImageNet's index files do.

    Raises FormatError for anything else. The message says where the file differs. A name of several classes is a
    Notice, because it cannot be used to choose a class.
    """
    text = _text(path)
    if text.lstrip()[:1] in ("[", "{"):
        try:
            value = parsed_json(text, str(path), allowed=_ALLOWED, object_pairs_hook=_without_repeated_keys)
        except _RepeatedKey as error:
            raise FormatError(f"{path}: has the key {error} twice; allowed: each class once") from error
        names = _names_of(value, path)
    else:
        names = _lines(text, path)
    if not names:
        raise FormatError(f"{path}: has no class names; {_ALLOWED}")
    several = [name for name, count in Counter(names).items() if count > 1]
    if several:
        notify(f"{path}: several classes are called {listed_names(several, most=3)}; choose among these by index")
    return names


_ALLOWED = 'allowed: a name in each line, a JSON list of names, or a JSON object such as {"0": "cat", "1": "dog"}'


def _text(path: str | PathLike[str]) -> str:
    data = read_regular(path, most=MOST_BYTES)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is no text in UTF-8 (byte {error.start}). Next: save it as UTF-8") from error
    if "\0" in text:
        raise FormatError(f"{path}: is no text; {_ALLOWED}")
    return text


class _RepeatedKey(Exception):
    pass


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Python would take the last of two equal keys."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise _RepeatedKey(repr(key))
    return dict(pairs)


def _lines(text: str, path: str | PathLike[str]) -> list[str]:
    # Not splitlines(), which also splits at characters that a name may have.
    lines = [line.strip() for line in re.split("\r\n|\r|\n", text.rstrip())] if text.strip() else []
    if "" in lines:
        raise FormatError(
            f"{path}: line {lines.index('') + 1} is empty, so it is not clear which index the names after it have. "
            "Next: delete the line, or name that class"
        )
    return lines


def _names_of(value: Any, path: str | PathLike[str]) -> list[str]:
    if isinstance(value, dict):
        value = _by_index(value, path)
    names = [_name(each) for each in value]
    for index, name in enumerate(names):
        if name is None:
            raise FormatError(f"{path}: class {index} is {value[index]!r}, and no name; {_ALLOWED}")
    return [name for name in names if name is not None]


def _name(value: Any) -> str | None:
    if isinstance(value, list) and value:
        value = value[-1]
    return value.strip() if isinstance(value, str) and value.strip() else None


def _by_index(value: dict[str, Any], path: str | PathLike[str]) -> list[Any]:
    if all(isinstance(each, int) and not isinstance(each, bool) for each in value.values()):
        pairs = [(index, name) for name, index in value.items()]
    else:
        try:
            pairs = [(int(index), name) for index, name in value.items()]
        except ValueError as error:
            raise FormatError(f"{path}: has keys that are no class index; {_ALLOWED}") from error
    by_index = dict(pairs)
    missing = [index for index in range(len(pairs)) if index not in by_index]
    if missing:
        raise FormatError(
            f"{path}: has {len(pairs)} names and none for class {missing[0]}; allowed: each index from 0 on, once"
        )
    return [by_index[index] for index in range(len(pairs))]
